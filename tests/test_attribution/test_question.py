import by_hand
import models
import pytest
import torch

import surgery
from analyses import attribution, metrics, patching
from analyses.attribution import Selection
from analyses.attribution.question import LOGITS_PER_PASS, TOKENS_PER_PASS, ask
from analyses.prompts import read
from surgery import Drop, Scale

OUT = "blocks.1.mlp.W_out"


def first(logits: torch.Tensor) -> torch.Tensor:
    return logits[:, -1, 0]


def units(question: object) -> dict:
    return {str(site): target.units for site, target in question.targets.items()}


def test_patterns_and_selections_name_targets_in_the_order_of_the_forward_pass():
    tokens = models.tokens(2)
    with models.borrowed("bridge gpt2") as model:

        def chosen(sites: object) -> dict:
            return units(ask(model, tokens, first, sites, progress=False))

        assert list(chosen([OUT, "blocks.0.attn.W_Q[1]", OUT])) == ["blocks.0.attn.W_Q[1]", OUT]
        assert list(chosen("*")) == surgery.sites(model, "*")
        assert chosen("blocks.0.attn.W_Q[1]") == {"blocks.0.attn.W_Q[1]": tuple((i,) for i in range(8))}
        assert chosen(Selection({OUT: [(3, 1), 0]})) == {OUT: ((3, 1), (0,))}
        both = chosen(Selection({"blocks.*.mlp.W_out": [2], "blocks.0.attn.W_Q[-1]": [0]}))
        assert both == {"blocks.0.mlp.W_out": ((2,),), OUT: ((2,),), "blocks.0.attn.W_Q[3]": ((0,),)}
        assert list(chosen(Selection({OUT: [], "blocks.0.mlp.W_out": [1]}))) == ["blocks.0.mlp.W_out"]


def test_components_in_a_plain_dict_are_not_ignored():
    tokens, some = models.tokens(2), {OUT: [0, (1, 2)], "blocks.0.mlp.*": [3]}
    with models.borrowed("bridge gpt2") as model:
        assert units(ask(model, tokens, first, some, progress=False)) == units(
            ask(model, tokens, first, Selection(some), progress=False)
        )
        blocks = surgery.decompose(model, OUT, basis=surgery.RowBlocks(2), progress=False)
        found = attribution.by_ablation(
            model, tokens, first, {OUT: [1]}, basis=blocks.basis, svds=blocks, progress=False
        )
        assert found.units == {OUT: ((1,),)}
        assert found.basis == surgery.RowBlocks(2)
        patched = patching.by_component(model, tokens, tokens, first, {OUT: [1]}, progress=False)
        assert patched.effects.units == {OUT: ((1,),)}
        pairs = attribution.interactions(model, tokens, first, {OUT: [0, 3]}, progress=False)
        assert pairs.labels == (f"{OUT} 0", f"{OUT} 3")
        spec = {OUT: Drop([0, 1, 2])}
        shares = attribution.by_shapley(model, tokens, first, spec, players={OUT: [(0, 1), 2]}, progress=False)
        assert shares.units == {OUT: ((0, 1), (2,))}
        assert list(units(ask(model, tokens, first, surgery.sites(model, OUT)[0], progress=False))) == [OUT]


def test_components_in_force_have_the_strengths_that_edits_left_them():
    tokens = models.tokens(2)
    with models.borrowed("bridge gpt2") as model:
        S = torch.linalg.svdvals(by_hand.read(model, OUT))
        with (
            surgery.apply(model, {OUT: Drop([1])}, progress=False),
            surgery.apply(model, {OUT: Scale({0: 2.0})}, progress=False),
        ):
            (target,) = ask(model, tokens, first, OUT, progress=False).targets.values()
        S[1], S[0] = 0, 2 * S[0]
        torch.testing.assert_close(target.components.S, S, atol=1e-5, rtol=1e-5)


def test_the_budget_bounds_the_rows_of_a_pass():
    with models.borrowed("bridge gpt2") as model:
        d_vocab = model.cfg.d_vocab
        for tokens in (models.tokens(2, 7), models.tokens(500, 60)):
            all_positions = ask(model, tokens, metrics.logit(0, position=slice(None)), OUT, progress=False)
            rows = all_positions.rows_per_pass()
            n_pos = tokens.shape[1]
            assert rows * n_pos <= TOKENS_PER_PASS < (rows + 1) * n_pos
            assert rows * n_pos * d_vocab <= LOGITS_PER_PASS
            batches = list(all_positions.batches())
            assert torch.cat(batches).tolist() == list(range(len(tokens)))
            assert max(map(len, batches)) <= rows
        assert ask(model, models.tokens(5), first, OUT, batch_size=2, progress=False).rows_per_pass() == 2
        assert all_positions.rows_per_pass(n_pos=20_000) == 1

        def hook(activation: torch.Tensor, hook: object) -> None: ...

        with model.hooks(fwd_hooks=[("blocks.0.hook_resid_pre", hook)]):
            assert [len(batch) for batch in all_positions.batches()] == [500]


def test_wide_vocabularies_make_smaller_batches():
    with models.borrowed("bridge gpt2") as model:
        question = ask(model, models.tokens(3), metrics.logit(0, position=slice(None)), OUT, progress=False)
        held = model.cfg.d_vocab
        model.cfg.d_vocab = LOGITS_PER_PASS // 14
        try:
            assert question.rows_per_pass() == 2
            assert question.rows_per_pass(n_reads=1) == 14
        finally:
            model.cfg.d_vocab = held


def test_taking_examples_takes_their_answers_and_masks():
    tokens, mask = models.tokens(3), torch.tensor([[1] * 7, [1] * 6 + [0], [1] * 5 + [0] * 2])
    metric = metrics.logit(torch.tensor([4, 5, 6]), attention_mask=mask)
    with models.borrowed("bridge gpt2") as model:
        question = ask(model, tokens, metric, OUT, attention_mask=mask.bool(), progress=False)
        part = question.examples.take(torch.tensor([2, 0, 2]))
    assert torch.equal(part.inputs.tokens, tokens[[2, 0, 2]])
    assert torch.equal(part.inputs.mask, mask[[2, 0, 2]])
    logits = torch.arange(3 * 7 * 50.0).view(3, 7, 50)
    assert part.metric(logits).tolist() == [float(logits[0, 4, 6]), float(logits[1, 6, 4]), float(logits[2, 4, 6])]


def test_bad_input_is_refused():
    tokens = models.tokens(2)
    with models.borrowed("bridge gpt2") as model:

        def given(*args: object, sites: object = OUT, **more: object) -> None:
            ask(model, *args, first, sites, progress=False, **more)

        for bad in (tokens[0], tokens[:0], tokens[:, :0], tokens.float()):
            with pytest.raises(ValueError, match=r"the tokens have shape .*give token ids \[example pos\]"):
                given(bad)
        with pytest.raises(ValueError, match=r"batch_size=0: give a whole number, 1 or more"):
            given(tokens, batch_size=0)
        with pytest.raises(ValueError, match=r"attention_mask has shape \(2, 6\), the tokens \(2, 7\)"):
            given(tokens, attention_mask=tokens[:, :6])
        for nothing in ([], Selection({}), Selection({OUT: []})):
            with pytest.raises(ValueError, match=r"no component is selected: name at least one matrix"):
                given(tokens, sites=nothing)
        with pytest.raises(
            ValueError, match=r"names 'blocks.1.mlp.W_out' twice, once as '\*.W_out': name each matrix once"
        ):
            given(tokens, sites=Selection({OUT: [0], "*.W_out": [1]}))
        with pytest.raises(ValueError, match=r"component 32 of 'blocks.1.mlp.W_out' was selected, but it has 32"):
            given(tokens, sites=Selection({OUT: [(0, 32)]}))
        with pytest.raises(surgery.SiteError, match=r"no matrix is named"):
            given(tokens, sites=Selection({"blocks.9.mlp.W_out": [0]}))
        assert read(model, tokens.int()).tokens.shape == (2, 7)


def test_train_mode_is_refused_only_where_something_is_dropped(monkeypatch: pytest.MonkeyPatch):
    import transformers as hf

    falls = hf.LlamaConfig(**models._GROUPED, attention_dropout=0.25)
    monkeypatch.setitem(models.ARCHITECTURES, "llama", lambda: hf.LlamaForCausalLM(falls))
    dropping = models.build("bridge llama").train()
    with torch.no_grad():
        assert float((dropping(models.tokens()) - dropping(models.tokens())).abs().max()) > 1e-3
    with pytest.raises(ValueError, match=r"in train mode and has dropout \(0.25\).*call model.eval\(\) first"):
        ask(dropping, models.tokens(), first, OUT, progress=False)
    dropping.eval()
    assert ask(dropping, models.tokens(), first, OUT, progress=False).n_examples == 2
    monkeypatch.undo()
    assert ask(models.build("bridge llama").train(), models.tokens(), first, OUT, progress=False).n_examples == 2
