from collections.abc import Callable

import by_hand
import models
import pytest
import torch
from torch import Tensor, nn

import surgery
from analyses import attribution, metrics, patching
from analyses.attribution import Selection
from surgery import KeepTop

CORRECT, WRONG = torch.tensor([3, 7, 9]), torch.tensor([1, 2, 5])
CLEAN = models.tokens(3, 6)
CORRUPTED = CLEAN.clone()
CORRUPTED[:, 1:4] = (CLEAN[:, 1:4] + 17) % models.D_VOCAB

OUTPUTS = {
    "hooked ln": {
        "W_Q": "attn.hook_q", "W_K": "attn.hook_k", "W_V": "attn.hook_v", "W_O": "hook_attn_out",
        "W_in": "mlp.hook_pre", "W_out": "hook_mlp_out",
    },
    "bridge gpt2": {
        "W_Q": "attn.q.hook_out", "W_K": "attn.k.hook_out", "W_V": "attn.v.hook_out", "W_O": "attn.o.hook_out",
        "W_in": "mlp.in.hook_out", "W_out": "mlp.out.hook_out",
    },
    "bridge llama compatible": {
        "W_Q": "attn.q.hook_out", "W_K": "attn.k.hook_out", "W_V": "attn.v.hook_out", "W_O": "attn.o.hook_out",
        "W_in": "mlp.in.hook_out", "W_gate": "mlp.gate.hook_out", "W_out": "mlp.out.hook_out",
    },
}  # fmt: skip
INPUTS_OF_W_O = {
    "hooked ln": "attn.hook_z",
    "bridge gpt2": "attn.o.hook_in",
    "bridge llama compatible": "attn.o.hook_in",
}
KINDS = models.kinds(*OUTPUTS)


def difference() -> metrics.Metric:
    return metrics.logit_difference(CORRECT, WRONG)


def svd(W: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    U, S, Vh = torch.linalg.svd(W.double(), full_matrices=False)
    return U.float(), S.float(), Vh.float()


def by_output(
    kind: str, model: nn.Module, site: str, component: int, base: Tensor, other: Tensor, at: int | None = None
) -> Tensor:
    """The logits when only the output's part along v_i is the other run's, read and written where the output shows."""
    layer, matrix, head = by_hand.split(site)
    name = f"blocks.{layer}.{OUTPUTS[kind][matrix]}"
    W = by_hand.read(model, site)
    v = svd(W)[2][component]

    def flat(activation: Tensor) -> Tensor:
        return activation.flatten(2) if activation.ndim == 4 else activation

    def along(cache: dict[str, Tensor]) -> Tensor:
        if matrix == "W_O" and head is not None:  # the output shows the sum of the heads
            z = flat(cache[f"blocks.{layer}.{INPUTS_OF_W_O[kind]}"])
            return z[..., head * len(W) : (head + 1) * len(W)] @ W @ v
        y = flat(cache[name])
        return (y if matrix == "W_O" or head is None else y[..., head * len(v) : (head + 1) * len(v)]) @ v

    def names(point: str) -> bool:
        return point.startswith(f"blocks.{layer}.") and point.endswith((OUTPUTS[kind][matrix], "hook_z", "o.hook_in"))

    there, here = (along(model.run_with_cache(tokens, names_filter=names)[1]) for tokens in (other, base))
    moved = there - here
    if at is not None:
        moved = moved * torch.eye(base.shape[1])[at]

    def patch(y: Tensor, hook: object) -> Tensor:
        new = flat(y).clone()
        columns = slice(None) if head is None or matrix == "W_O" else slice(head * len(v), (head + 1) * len(v))
        new[..., columns] += moved.unsqueeze(-1) * v
        return new.view(y.shape)

    return model.run_with_hooks(base, fwd_hooks=[(name, patch)])


def sites_of(kind: str) -> list[str]:
    every = by_hand.addresses(kind)
    return [*every, *(f"{site}[1]" for site in every if ".attn." in site)]


@pytest.mark.parametrize("direction", ["denoising", "noising"])
@pytest.mark.parametrize("kind", KINDS)
def test_patching_a_component_is_patching_its_direction_of_the_output(kind: str, direction: patching.Direction):
    base, other = (CORRUPTED, CLEAN) if direction == "denoising" else (CLEAN, CORRUPTED)
    metric = difference()
    with models.borrowed(kind) as model, torch.no_grad():
        chosen = Selection({site: [0, 5] for site in sites_of(kind)})
        whole = Selection({site: units for site, units in chosen.items() if "[" not in site})
        heads = Selection({site: units for site, units in chosen.items() if "[" in site})
        for some in (whole, heads):
            found = patching.by_component(model, CLEAN, CORRUPTED, metric, some, direction=direction, progress=False)
            torch.testing.assert_close(found.measure.baseline, metric(model(base)).float())
            torch.testing.assert_close(found.source, metric(model(other)).float())
            before = metric(model(base))
            for site in some:
                for column, component in enumerate((0, 5)):
                    expected = metric(by_output(kind, model, site, component, base, other)) - before
                    actual = found.effects.examples[site][:, column]
                    torch.testing.assert_close(actual, expected.float(), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    "site", ["blocks.0.attn.W_K", "blocks.0.attn.W_O[1]", "blocks.0.mlp.W_in", "blocks.1.mlp.W_out"]
)
def test_each_position_is_patched_by_itself(kind: str, site: str):
    metric = metrics.loss(metrics.next_token_labels(CLEAN))
    with models.borrowed(kind) as model, torch.no_grad():
        every = patching.by_component(
            model, CLEAN, CORRUPTED, metric, Selection({site: [2, 0]}), positions="each", progress=False
        )
        some = patching.by_component(
            model, CLEAN, CORRUPTED, metric, Selection({site: [2, 0]}), positions=[-2, 1], progress=False
        )
        assert every.positions == tuple(range(6))
        assert some.positions == (4, 1)
        before = metric(model(CORRUPTED))
        for at in range(6):
            for component in (0, 2):
                after = metric(by_output(kind, model, site, component, CORRUPTED, CLEAN, at))
                expected = (after - before).mean().float()
                torch.testing.assert_close(every[site][at, component], expected, atol=1e-5, rtol=1e-3)
                if at in (1, 4):
                    torch.testing.assert_close(some.at(at)[site][component], expected, atol=1e-5, rtol=1e-3)
    assert every[site].shape == (6, len(every.parts[0].strengths[site]))
    assert bool(every[site][:, 1].isnan().all())


@pytest.mark.parametrize("kind", models.EVERY_KIND)
def test_the_hooks_do_what_by_component_measures(kind: str):
    metric = difference()
    with models.borrowed(kind) as model, torch.no_grad():
        logits, cache = model.run_with_cache(CORRUPTED)
        for site in ("blocks.0.attn.W_Q", "blocks.1.attn.W_O", *by_hand.addresses(kind)[-2:]):
            found = patching.by_component(
                model, CLEAN, CORRUPTED, metric, Selection({site: [(1, 3)]}), direction="noising", progress=False
            )
            hooks = patching.fwd_hooks(model, site, [1, 3], cache, progress=False)
            patched = metric(model.run_with_hooks(CLEAN, fwd_hooks=hooks)) - metric(model(CLEAN))
            torch.testing.assert_close(found.effects.examples[site][:, 0], patched.float(), atol=1e-5, rtol=1e-3)
    assert logits.shape == (3, 6, models.D_VOCAB)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_noising_is_resample_ablation(kind: str):
    with models.borrowed(kind) as model:
        noised = patching.by_component(
            model, CLEAN, CORRUPTED, difference(), "*.W_out", direction="noising", progress=False
        )
        ablated = attribution.by_ablation(
            model, CLEAN, difference(), "*.W_out", replacement="resample", corrupted=CORRUPTED, progress=False
        )
    for site in noised.sites:
        assert torch.equal(noised.effects.examples[site], ablated.examples[site])


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_equal_runs_score_zero(kind: str):
    with models.borrowed(kind) as model:
        for positions in ("all", "each"):
            found = patching.by_component(
                model, CLEAN, CLEAN, difference(), "blocks.1.*", positions=positions, progress=False
            )
            assert max(float(found[site].abs().max()) for site in found.sites) < 1e-5


@pytest.mark.hooked
def test_where_the_rest_is_linear_single_effects_sum_to_patching_the_whole_output():
    name, site = "blocks.1.hook_mlp_out", "blocks.1.mlp.W_out"
    metric = metrics.logit(CORRECT)
    with models.borrowed("hooked no-norm") as model, torch.no_grad():
        found = patching.by_component(model, CLEAN, CORRUPTED, metric, site, progress=False)
        clean = model.run_with_cache(CLEAN)[1][name]
        whole = model.run_with_hooks(CORRUPTED, fwd_hooks=[(name, lambda y, hook: clean)])
        expected = metric(whole) - metric(model(CORRUPTED))
        each = patching.by_component(model, CLEAN, CORRUPTED, metric, site, positions="each", progress=False)
    torch.testing.assert_close(found.effects.examples[site].sum(1), expected.float(), atol=1e-5, rtol=1e-4)
    # Nothing after the last MLP mixes positions: only the one that the metric reads counts, and no other is run.
    assert float(each[site][:-1].abs().max()) == 0
    torch.testing.assert_close(each[site][-1], found[site], atol=1e-6, rtol=1e-4)
    assert each.parts[0].passes == pytest.approx(2 + 0.5 * 32)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
@pytest.mark.parametrize("batch_size", [1, 2, 5])
def test_the_batch_budget_changes_nothing(kind: str, batch_size: int):
    chosen = Selection({"blocks.0.attn.W_O": range(5), "blocks.1.mlp.W_in": [(0, 1), 4]})
    with models.borrowed(kind) as model:
        runs = [
            patching.by_component(
                model, CLEAN, CORRUPTED, difference(), chosen, positions="each", batch_size=size, progress=False
            )
            for size in (None, batch_size)
        ]
    for site in chosen:
        torch.testing.assert_close(runs[0][site], runs[1][site], atol=1e-5, rtol=1e-4, equal_nan=True)
    torch.testing.assert_close(runs[0].source, runs[1].source)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_padding_on_the_right_changes_nothing(kind: str):
    chosen = Selection({"blocks.0.attn.W_Q": [0], "blocks.1.mlp.W_out": [0, 1]})
    mask = torch.ones(3, 8, dtype=torch.long)
    mask[:, 6:] = 0
    metric = metrics.logit_difference(CORRECT, WRONG, attention_mask=mask)
    model = models.build(kind)  # a bridge remembers that it was given a mask
    plain = patching.by_component(model, CLEAN, CORRUPTED, difference(), chosen, positions="each", progress=False)
    longer = patching.by_component(
        model, torch.cat([CLEAN, CLEAN[:, :2]], 1), torch.cat([CORRUPTED, CLEAN[:, 2:4]], 1), metric, chosen,
        positions="each", attention_mask=mask, progress=False,
    )  # fmt: skip
    for site in chosen:
        torch.testing.assert_close(plain[site], longer[site][:6], atol=2e-5, rtol=1e-3, equal_nan=True)
        assert float(longer[site][6:].nan_to_num().abs().max()) < 1e-6


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_it_composes_with_an_operation_and_with_hooks_of_ones_own(kind: str):
    site, component, name = "blocks.0.mlp.W_in", 1, "blocks.0.hook_resid_pre"

    def damp(activation: Tensor, hook: object) -> Tensor:
        return activation * torch.linspace(0.5, 1, len(activation)).view(-1, 1, 1)

    with models.borrowed(kind) as model, torch.no_grad():
        with surgery.apply(model, {site: KeepTop(rank=4)}, progress=False), model.hooks(fwd_hooks=[(name, damp)]):
            found = patching.by_component(model, CLEAN, CORRUPTED, difference(), site, progress=False)
        U, S, Vh = svd(by_hand.read(model, site))
        W = by_hand.read(model, site)
        by_hand.write(model, site, (U[:, :4] * S[:4]) @ Vh[:4])
        with model.hooks(fwd_hooks=[(name, damp)]):
            patched = by_output(kind, model, site, component, CORRUPTED, CLEAN)
            expected = difference()(patched) - difference()(model(CORRUPTED))
        by_hand.write(model, site, W)
    torch.testing.assert_close(found.effects.examples[site][:, 1], expected.float(), atol=1e-5, rtol=1e-4)
    assert float(found[site][4:].abs().max()) < 1e-6
    torch.testing.assert_close(found.effects.strengths[site][:4], S[:4])
    assert float(found.effects.strengths[site][4:].max()) == 0


def test_bf16_agrees_with_fp32():
    sites = ["blocks.0.mlp.W_in", "blocks.1.attn.W_O"]
    found = [
        patching.by_component(
            models.build("bridge gpt2", dtype=dtype), CLEAN, CORRUPTED, difference(), sites, progress=False
        )
        for dtype in (torch.bfloat16, torch.float32)
    ]
    half, full = (torch.cat([one[site] for site in sites]) for one in found)
    # A logit of about 1 is rounded to 2⁻⁸, and so are the weights.
    assert float((half - full).abs().max()) < 0.05
    assert float(torch.corrcoef(torch.stack([half, full]))[0, 1]) > 0.8


def result(positions: str = "all", direction: patching.Direction = "denoising") -> patching.Patching:
    with models.borrowed("bridge gpt2") as model:
        return patching.by_component(
            model, CLEAN, CORRUPTED, difference(), ["blocks.0.mlp.W_out", "blocks.1.attn.W_V[*]"],
            positions=positions, direction=direction, progress=False,
        )  # fmt: skip


def test_a_result_reads_as_tables():
    whole, each = result(), result("each")
    gap = float(whole.source.mean() - whole.measure.baseline.mean())
    site = "blocks.0.mlp.W_out"
    torch.testing.assert_close(whole.fraction(site), whole[site] / gap)
    assert whole["blocks.1.attn.W_V[*]"].shape == (4, 8)
    assert each["blocks.1.attn.W_V[*]"].shape == (4, 6, 8)
    torch.testing.assert_close(each["blocks.1.attn.W_V[*]"][2], each["blocks.1.attn.W_V[2]"])
    rows = whole.effects.examples[site]
    torch.testing.assert_close(whole.stderr(site), rows.std(0) / 3**0.5)
    torch.testing.assert_close(each.stderr(site)[2], each.at(2).examples[site].std(0) / 3**0.5)

    frame = each.to_dataframe()
    assert list(frame.columns) == [
        "site", "layer", "matrix", "head", "position", "component", "strength", "effect", "stderr", "fraction",
        "degenerate",
    ]  # fmt: skip
    assert len(frame) == 6 * (32 + 4 * 8)
    one = frame[(frame["site"] == site) & (frame["position"] == 3) & (frame["component"] == 7)].iloc[0]
    assert one["effect"] == pytest.approx(float(each[site][3, 7]))
    assert one["fraction"] == pytest.approx(float(each[site][3, 7]) / gap, rel=1e-4)
    assert "position" not in whole.to_dataframe()
    assert len(whole.to_dataframe()) == 32 + 4 * 8


def test_a_result_names_the_largest_wherever_they_are():
    each = result("each")
    found = each.top(3)
    largest = torch.cat([each[site].abs().amax(0) for site in each.sites])
    labels = [(site, i) for site in each.sites for i in range(each[site].shape[1])]
    expected = {labels[at] for at in largest.topk(3).indices.tolist()}
    assert {(site, i) for site in found for (i,) in found[site]} == expected


def test_a_result_says_what_it_is():
    whole, each, noised = repr(result()), repr(result("each")), repr(result(direction="noising"))
    assert whole.startswith(
        "patching (denoising) of 64 components of 5 matrices at all positions, 3 examples\n"
        "logit difference [logits]: corrupted, unpatched, "
    )
    assert "at each of 6 positions" in each
    assert "position  component" in each
    assert "clean, unpatched, " in noised


@pytest.mark.parametrize("direction", ["denoising", "noising"])
def test_effects_of_patching_are_not_turned_into_removals(direction: patching.Direction):
    # Where another run's coordinate of a component helps, taking the component out need not.
    found = result(direction=direction).effects
    for choose in (found.most_harmful, found.drop_most_harmful):
        with pytest.raises(ValueError, match=r"these are effects of patching, .* not of removal, .* drop\(k\)"):
            choose(3)
    assert repr(found).startswith("effect of patching, c")
    assert len(found.drop(3)) <= 3


def test_a_result_by_position_has_no_effects_at_all_positions():
    with pytest.raises(ValueError) as caught:
        _ = result("each").effects
    assert str(caught.value) == (
        "components were patched at each of 6 positions by itself, and these effects do not sum to one: use "
        "at(position), or patch with positions='all'."
    )
    with pytest.raises(
        ValueError, match=r"position 9 was not patched by itself: patched were each of 0, 1, 2, 3, 4, 5. "
    ):
        result("each").at(9)
    with pytest.raises(ValueError, match=r"patched were all together. Patch again with positions=\[0\]"):
        result().at(0)


def test_bad_questions_are_refused():
    with models.borrowed("bridge gpt2") as model:

        def ask(clean: Tensor = CLEAN, corrupted: Tensor = CORRUPTED, **settings: object) -> None:
            patching.by_component(model, clean, corrupted, difference(), "*.W_out", progress=False, **settings)

        for corrupted in (CORRUPTED[:, :5], CORRUPTED[:2]):
            with pytest.raises(ValueError) as caught:
                ask(corrupted=corrupted)
            shape = tuple(corrupted.shape)
            assert str(caught.value).startswith(f"the corrupted tokens have shape {shape}, the clean ones (3, 6)")
        for positions in ([0, 6], [], [-7]):
            with pytest.raises(ValueError, match=r"positions(\[.\]=.*from -6 to 5|=\[\]: give one or more)"):
                ask(positions=positions)
        with pytest.raises(surgery.SiteError, match="no matrix is named"):
            patching.by_component(model, CLEAN, CORRUPTED, difference(), "blocks.7.*", progress=False)
        with pytest.raises(ValueError, match="NaN"):
            patching.by_component(
                model, CLEAN, CORRUPTED, lambda logits: logits[:, -1, 0] * torch.nan, "*", progress=False
            )


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
@pytest.mark.parametrize(
    "site", ["blocks.0.attn.W_K[2]", "blocks.0.attn.W_O", "blocks.1.mlp.W_in", "blocks.1.mlp.W_out"]
)
def test_coordinates_go_from_one_run_to_another_by_cache_or_by_value(kind: str, site: str):
    with models.borrowed(kind) as model, torch.no_grad():
        name = patching.hook_point(model, site)
        _, cache = model.run_with_cache(CLEAN, names_filter=name)
        values = patching.coordinates(model, site, cache, components=[4, 0], progress=False)
        every = patching.coordinates(model, site, cache, progress=False)
        torch.testing.assert_close(values, every[..., [4, 0]], atol=1e-5, rtol=1e-4)
        expected = by_output(kind, model, site, 4, CORRUPTED, CLEAN, at=2)
        for source in (cache, values[..., :1]):
            hooks = patching.fwd_hooks(model, site, [4], source, positions=2, progress=False)
            actual = model.run_with_hooks(CORRUPTED, fwd_hooks=hooks)
            torch.testing.assert_close(actual, expected, atol=1e-5, rtol=1e-4)
        # Zero for every example and position: what removing the component does.
        hooks = patching.fwd_hooks(model, site, [4], torch.zeros(1, 1, 1), progress=False)
        with surgery.apply(model, {site: surgery.Drop([4])}, progress=False):
            removed = model(CORRUPTED)
        torch.testing.assert_close(model.run_with_hooks(CORRUPTED, fwd_hooks=hooks), removed, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_hooks_see_what_hooks_before_them_in_the_list_have_done(kind: str):
    site = "blocks.1.mlp.W_out"

    def double(activation: Tensor, hook: object) -> Tensor:
        return 2 * activation

    with models.borrowed(kind) as model, torch.no_grad():
        ours = patching.fwd_hooks(model, site, [0], torch.ones(1, 1, 1), progress=False)
        other = (patching.hook_point(model, site), double)
        seen: list[Tensor] = []
        W = by_hand.read(model, site)

        def look(activation: Tensor, hook: object) -> None:
            seen.append(activation @ W @ svd(W)[2][0])

        for hooks in ([other, *ours], [*ours, other]):
            model.run_with_hooks(CLEAN, fwd_hooks=[*hooks, (other[0], look)])
    torch.testing.assert_close(seen[0], torch.ones_like(seen[0]), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(seen[1], torch.full_like(seen[1], 2.0), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
@pytest.mark.parametrize("site", ["blocks.0.attn.W_V[0]", "blocks.1.attn.W_O", "blocks.0.mlp.W_in"])
def test_every_example_has_gains_of_its_own(kind: str, site: str):
    with models.borrowed(kind) as model, torch.no_grad():
        some = torch.tensor([[0.0, 1.0], [1.0, 0.0], [3.0, 0.5]])
        hooks = patching.scaling_hooks(model, site, some, components=[0, 3], progress=False)
        actual = model.run_with_hooks(CLEAN, fwd_hooks=hooks)
        for n, (first, second) in enumerate(some.tolist()):
            with surgery.apply(model, {site: surgery.Scale({0: first, 3: second})}, progress=False):
                torch.testing.assert_close(actual[n], model(CLEAN[n : n + 1])[0], atol=1e-5, rtol=1e-4)
        every = torch.ones(1, len(svd(by_hand.read(model, site))[1]))
        hooks = patching.scaling_hooks(model, site, every, progress=False)
        torch.testing.assert_close(model.run_with_hooks(CLEAN, fwd_hooks=hooks), model(CLEAN), atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("kind", models.ONE_OF_EACH)
def test_a_component_is_steered_at_the_chosen_positions_only(kind: str):
    site, where = "blocks.1.mlp.W_in", torch.tensor([0, 2, -1])
    name = f"blocks.1.{OUTPUTS[kind]['W_in']}"
    with models.borrowed(kind) as model, torch.no_grad():
        v = svd(by_hand.read(model, site))[2][1]
        v = v if float(v[v.abs().argmax()]) > 0 else -v  # the sign that surgery.decompose chooses
        bias = by_hand.bias(model, site)
        at = torch.zeros(3, 6, 1)
        at[torch.arange(3), where] = 1

        def expected(change: Callable[[Tensor], Tensor]) -> Tensor:
            def steer(y: Tensor, hook: object) -> Tensor:
                return y + at * change((y - bias) @ v).unsqueeze(-1) * v

            return model.run_with_hooks(CLEAN, fwd_hooks=[(name, steer)])

        hooks = patching.steering_hooks(model, site, 1, factor=-2.5, positions=where, progress=False)
        actual = model.run_with_hooks(CLEAN, fwd_hooks=hooks)
        torch.testing.assert_close(actual, expected(lambda c: -3.5 * c), atol=1e-5, rtol=1e-4)
        hooks = patching.steering_hooks(model, site, 1, amount=4, positions=where, progress=False)
        actual = model.run_with_hooks(CLEAN, fwd_hooks=hooks)
        torch.testing.assert_close(actual, expected(lambda c: torch.full_like(c, 4.0)), atol=1e-5, rtol=1e-4)


@pytest.mark.hooked
@pytest.mark.parametrize("cached", [True, False])
def test_steering_works_while_generating(cached: bool):
    site = "blocks.0.mlp.W_out"
    with models.borrowed("hooked ln") as model, torch.no_grad():

        def generate() -> Tensor:
            return model.generate(
                CLEAN[:1], max_new_tokens=6, do_sample=False, verbose=False, stop_at_eos=False, use_past_kv_cache=cached
            )

        with model.hooks(fwd_hooks=patching.steering_hooks(model, site, 0, factor=30, progress=False)):
            steered = generate()
        with surgery.apply(model, {site: surgery.Scale({0: 30.0})}, progress=False):
            assert torch.equal(steered, generate())
        assert not torch.equal(steered, generate())


def test_under_an_operation_hooks_take_the_strengths_in_force():
    site = "blocks.0.mlp.W_out"
    with models.borrowed("bridge gpt2") as model, torch.no_grad():
        with surgery.apply(model, {site: surgery.Scale({0: 0.5, 1: 0.0})}, progress=False):
            hooks = patching.scaling_hooks(model, site, torch.full((1, 1), 4.0), components=[0], progress=False)
            actual = model.run_with_hooks(CLEAN, fwd_hooks=hooks)
            with pytest.raises(ValueError) as caught:
                patching.steering_hooks(model, site, 1, amount=1.0, progress=False)
        with surgery.apply(model, {site: surgery.Scale({0: 2.0, 1: 0.0})}, progress=False):
            torch.testing.assert_close(actual, model(CLEAN), atol=1e-5, rtol=1e-4)
    assert str(caught.value) == (
        "component 1 of 'blocks.0.mlp.W_out' has next to no strength, so no input of the matrix gives its output a "
        "chosen coordinate along it. Choose a stronger component."
    )


def test_hooks_take_the_names_that_an_edit_takes():
    with models.borrowed("bridge gpt2") as model:
        for name in ("blocks.1.mlp.W_out", "transformer.h.1.mlp.c_proj", "*.1.mlp.W_out"):
            assert patching.hook_point(model, name) == "blocks.1.mlp.out.hook_in"
            ((point, _),) = patching.steering_hooks(model, name, 0, factor=0.0, progress=False)
            assert point == "blocks.1.mlp.out.hook_in"


def test_bad_hooks_are_refused():
    site = "blocks.0.mlp.W_out"
    with models.borrowed("bridge gpt2") as model, torch.no_grad():

        def refused(message: str, make: Callable[[], object]) -> None:
            with pytest.raises(ValueError, match=message):
                make()

        def run(hooks: patching.Hooks) -> Callable[[], object]:
            return lambda: model.run_with_hooks(CLEAN, fwd_hooks=hooks)

        patch, scale, steer = patching.fwd_hooks, patching.scaling_hooks, patching.steering_hooks
        refused(
            r"the cache does not hold 'blocks.0.mlp.out.hook_in', where the components of 'blocks.0.mlp.W_out' are "
            r"read. Cache it: model.run_with_cache\(tokens, names_filter='blocks.0.mlp.out.hook_in'\).",
            lambda: patch(model, site, [0], {}, progress=False),
        )
        refused(
            r"components\[1\]=32: give a whole number, from 0 to 31.",
            lambda: patch(model, site, [0, 32], {}, progress=False),
        )
        refused(r"components=\[\]: give one or more", lambda: patch(model, site, [], {}, progress=False))
        refused(r"components=\[1, 1\] of", lambda: patch(model, site, [1, 1], {}, progress=False))
        refused(
            r"has shape \(3, 6, 2\): coordinates are \[example pos component\], here of 1 component.",
            lambda: patch(model, site, [0], torch.zeros(3, 6, 2), progress=False),
        )
        refused(
            r"the source of 'blocks.0.mlp.W_out' holds 3 examples of 5 positions, this run 3 of 6: every",
            run(patch(model, site, [0], torch.zeros(3, 5, 1), progress=False)),
        )
        refused(
            r"the gains of 'blocks.0.mlp.W_out' have shape \(3, 4\): they are \[example component\], here of 32",
            lambda: scale(model, site, torch.ones(3, 4), progress=False),
        )
        refused(
            r"gains of 2 examples in a run of 3: each example has a row, or one row serves all.",
            run(scale(model, site, torch.ones(2, 32), progress=False)),
        )
        for given in ({}, {"factor": 1.0, "amount": 2.0}):
            refused("give exactly one of them", lambda given=given: steer(model, site, 0, progress=False, **given))
        refused(
            "positions name column 6, but this run has 6",
            run(steer(model, site, 0, factor=0.0, positions=6, progress=False)),
        )
        blocks = surgery.decompose(model, site, basis=surgery.RowBlocks(2), progress=False)
        refused(
            r"svds is in the basis RowBlocks\(blocks=2\), but no basis= was given, which means SVD",
            lambda: steer(model, site, 0, factor=0.0, svds=blocks, progress=False),
        )
