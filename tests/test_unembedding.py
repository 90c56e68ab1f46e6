import models
import pytest
import torch

from hooks.unembedding import nothing_unembedded, unembedding_at, unembedding_only

ROW, POS = torch.tensor([1, 0, 1]), torch.tensor([4, 2, 0])


@pytest.mark.parametrize("kind", models.EVERY_KIND)
def test_logits_at_chosen_places_are_those_of_the_whole_model(kind: str) -> None:
    tokens = models.tokens(2)
    with models.borrowed(kind) as model, torch.no_grad():
        logits = model(tokens)
        with unembedding_only(model, (4, 1)):
            torch.testing.assert_close(model(tokens), logits[:, [4, 1]])
        with unembedding_only(model, None):
            torch.testing.assert_close(model(tokens), logits)
        with unembedding_at(model, ROW, POS):
            torch.testing.assert_close(model(tokens), logits[ROW, POS].unsqueeze(0))
        with nothing_unembedded(model):
            assert model(tokens).shape == (2, 0, logits.shape[-1])
        assert torch.equal(model(tokens), logits)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_hooks_on_the_unembedding_and_gradients_stay(kind: str) -> None:
    tokens, seen = models.tokens(2), []
    with models.borrowed(kind) as model:
        parameter = next(p for name, p in model.named_parameters() if "mlp" in name and p.ndim == 2)
        hook = "unembed.hook_out", lambda logits, hook: seen.append(tuple(logits.shape[:2]))
        (slope,) = torch.autograd.grad(model(tokens)[:, 3].logsumexp(-1).sum(), parameter)
        with model.hooks(fwd_hooks=[hook]), unembedding_only(model, (3,)):
            (cut,) = torch.autograd.grad(model(tokens).logsumexp(-1).sum(), parameter)
        torch.testing.assert_close(cut, slope)
        assert seen == [(2, 1)]


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_a_failing_run_leaves_no_trace(kind: str) -> None:
    with models.borrowed(kind) as model, pytest.raises(IndexError), unembedding_only(model, (99,)):
        model(models.tokens(2))


@pytest.mark.hooked
def test_an_unembedding_of_the_users_own_is_called_as_it_is() -> None:
    model = models.hooked("ln")

    class Capped(type(model.unembed)):
        def forward(self, residual: torch.Tensor) -> torch.Tensor:
            return super().forward(residual).tanh()

    model.unembed.__class__ = Capped
    with torch.no_grad(), unembedding_only(model, (3,)):
        cut = model(models.tokens(2))
    torch.testing.assert_close(cut, model(models.tokens(2))[:, [3]].detach())
    assert cut.abs().max() <= 1


@pytest.mark.hooked
def test_the_matrix_is_not_copied(monkeypatch: pytest.MonkeyPatch) -> None:
    model = models.hooked("ln")
    model.unembed.W_U.requires_grad_(False)
    copied, contiguous = [], torch.Tensor.contiguous

    def watched(tensor: torch.Tensor) -> torch.Tensor:
        copied.append(tuple(tensor.shape))
        return contiguous(tensor)

    monkeypatch.setattr(torch.Tensor, "contiguous", watched)
    with unembedding_only(model, (1,)):
        model(models.tokens(2))
    assert tuple(model.W_U.T.shape) not in copied
