"""Decompositions: right, made once, kept, saved, and never silently out of date."""

import copy
import json
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import torch
from by_hand import addresses, head_count, read, split
from models import EVERY_KIND, ONE_OF_EACH, borrowed, build
from safetensors.torch import load_file, save_file

import surgery
from hooks import SiteError
from surgery import (
    SVD,
    Basis,
    Decomposition,
    Decompositions,
    Drop,
    HaarBasis,
    KeepTop,
    RandomBasis,
    RandomizedSVD,
    RowBlocks,
    StaleDecompositionError,
    Zero,
    svd,
)
from surgery._decomposition_files import checksum
from surgery.bases import Factors
from surgery.decompositions import chosen_basis

OUT = "blocks.0.mlp.W_out"


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that are factorised from here on, one entry for each call."""
    calls: list[tuple[int, ...]] = []
    exact = svd.exact

    def counting(W: torch.Tensor) -> svd.Factors:
        calls.append(tuple(W.shape))
        return exact(W)

    monkeypatch.setattr(svd, "exact", counting)
    return calls


@pytest.mark.parametrize("kind", EVERY_KIND)
def test_components_sum_to_the_weights_read_by_hand(kind: str) -> None:
    heads = [f"{a}[{h}]" for a in addresses(kind)[:4] for h in range(head_count(kind, split(a)[1]))]
    with borrowed(kind) as model:
        svds = surgery.decompose(model, [*addresses(kind), *heads], progress=False)
        assert set(svds) == {*addresses(kind), *heads}
        assert [site for site in svds if site in addresses(kind)] == addresses(kind)
        for address, parts in svds.items():
            W = read(model, address).double()
            U, S, Vh = (part.double() for part in (parts.U, parts.S, parts.Vh))
            rank = min(W.shape)
            torch.testing.assert_close((U * S) @ Vh, W, rtol=0, atol=1e-6)
            torch.testing.assert_close(S, torch.linalg.svdvals(W), rtol=1e-6, atol=1e-6)
            torch.testing.assert_close(U.T @ U, torch.eye(rank).double(), rtol=0, atol=1e-5)
            torch.testing.assert_close(Vh @ Vh.T, torch.eye(rank).double(), rtol=0, atol=1e-5)
            assert (parts.site, parts.n_components, parts.shape) == (address, rank, tuple(W.shape))
            torch.testing.assert_close(parts.energy.sum(), torch.tensor(1.0).double())
        surgery.forget(model)


def test_a_matrix_is_decomposed_once_and_reused_by_everything(counted: list) -> None:
    with borrowed("bridge gpt2") as model:
        surgery.forget(model)
        svds = surgery.decompose(model, ["blocks.*.mlp.W_out", "blocks.0.attn.W_Q[*]"])
        assert sorted(counted) == [(4, 32, 8), (128, 32), (128, 32)]
        counted.clear()
        spec = {"blocks.*.mlp.W_out": KeepTop(rank=3), "blocks.0.attn.W_Q[2]": Drop([0])}
        for _ in range(3):
            surgery.apply(model, spec).undo()
        surgery.apply(model, spec, svds=svds).undo()
        surgery.commit(model, spec).undo()
        surgery.fwd_hooks(model, spec)
        assert all(svds[site] is part for site, part in surgery.decompose(model, list(svds)).items())
        assert counted == []
        surgery.forget(model)
        surgery.forget(model)
        surgery.apply(model, {OUT: Zero()}).undo()
        assert counted == [(128, 32)]
        surgery.forget(model)


def test_a_given_collection_is_used_and_added_to(counted: list) -> None:
    with borrowed("bridge gpt2") as model:
        surgery.forget(model)
        svds = Decompositions()
        assert surgery.decompose(model, OUT, svds=svds) is svds
        assert list(svds) == [OUT]
        surgery.apply(model, {"blocks.*.mlp.W_out": Zero()}, svds=svds).undo()
        assert list(svds) == ["blocks.0.mlp.W_out", "blocks.1.mlp.W_out"]
        assert len(counted) == 2
        surgery.decompose(model, OUT)
        assert len(counted) == 3
        surgery.forget(model)


@pytest.mark.parametrize("basis", [RandomizedSVD(3, 0), HaarBasis(0), RowBlocks(4)])
def test_an_empty_collection_keeps_its_basis(basis: surgery.Basis) -> None:
    with borrowed("bridge gpt2") as model:
        svds = surgery.decompose(model, OUT, basis=basis, svds=Decompositions(basis=basis))
        assert (svds.basis, svds[OUT].basis, list(svds)) == (basis, basis, [OUT])
        again = surgery.decompose(model, OUT, basis=basis)
        assert torch.equal(again[OUT].U, svds[OUT].U)
        assert surgery.decompose(model, OUT, basis=basis, svds=svds) is svds
        surgery.forget(model)


def test_the_table_of_components_is_that_of_the_spectra() -> None:
    with borrowed("bridge gpt2") as model:
        svds = surgery.decompose(model, ["blocks.1.attn.W_Q[2]", "blocks.0.mlp.W_in"])
        frame, ranks = svds.to_dataframe(), svds.ranks_to_dataframe().set_index("site")
        assert list(frame.columns) == ["site", "component", "strength", "energy", "cumulative_energy"]
        assert list(frame.groupby("site", sort=False).size().items()) == [
            ("blocks.0.mlp.W_in", 32), ("blocks.1.attn.W_Q[2]", 8)
        ]  # fmt: skip
        for address, table in frame.groupby("site"):
            W = read(model, str(address)).double()
            S = torch.linalg.svdvals(W)
            energy = S.square() / W.square().sum()
            assert table["component"].tolist() == list(range(len(S)))
            for column, expected in {"strength": S, "energy": energy, "cumulative_energy": energy.cumsum(0)}.items():
                torch.testing.assert_close(
                    torch.tensor(table[column].tolist()).double(), expected, atol=1e-6, rtol=1e-5
                )
            row, shares = ranks.loc[address], S / S.sum()
            assert (row.d_in, row.d_out, row.n_components) == (*W.shape, len(S))
            assert row.effective_rank == pytest.approx(float((-shares * shares.log()).sum().exp()), rel=1e-5)
            assert row.stable_rank == pytest.approx(
                float(W.norm() ** 2 / torch.linalg.matrix_norm(W, 2) ** 2), rel=1e-5
            )
        surgery.forget(model)
    assert list(Decompositions().to_dataframe().columns) == list(frame.columns)
    assert Decompositions().ranks_to_dataframe().empty


def test_a_store_stores_and_never_chooses_the_basis() -> None:
    blocks, empty = RowBlocks(2), Decompositions()
    assert chosen_basis(None, None) == chosen_basis(None, empty) == chosen_basis(SVD(), None) == SVD()
    assert chosen_basis(blocks, None) == chosen_basis(blocks, Decompositions(basis=blocks)) == blocks
    with borrowed("bridge gpt2") as model:
        store, other = Decompositions(basis=blocks), {OUT: Drop([0], basis=HaarBasis(0))}
        for act in (surgery.decompose, surgery.sites):
            assert list(act(model, sites=OUT)) == [OUT]
        with pytest.raises(ValueError) as error:
            surgery.decompose(model, OUT, svds=store)
        assert str(error.value) == (
            "svds is in the basis RowBlocks(blocks=2), but no basis= was given, which means SVD(): give "
            "basis=RowBlocks(blocks=2), or a store in SVD()."
        )
        for act in (surgery.apply, surgery.commit, surgery.fwd_hooks):
            with pytest.raises(ValueError) as error:
                act(model, {OUT: Zero(), "blocks.1.mlp.W_in": other[OUT]}, svds=store)
            assert str(error.value) == (
                "svds is in the basis RowBlocks(blocks=2), but the edits are in SVD(), HaarBasis(seed=0): give a store "
                "in the edits' basis, or edits with basis=RowBlocks(blocks=2)."
            )
        surgery.apply(model, {OUT: Zero(basis=blocks), "blocks.1.mlp.W_in": Zero()}, svds=store).undo()
        assert list(store) == [OUT]
        surgery.forget(model)


def test_two_bases_are_remembered_side_by_side() -> None:
    with borrowed("bridge gpt2") as model:
        exact = surgery.decompose(model, OUT)
        rough = surgery.decompose(model, OUT, basis=RandomizedSVD(3, 0))
        assert (exact[OUT].n_components, rough[OUT].n_components) == (32, 3)
        assert surgery.decompose(model, OUT)[OUT] is exact[OUT]
        assert surgery.decompose(model, OUT, basis=RandomizedSVD(3, 0))[OUT] is rough[OUT]
        with pytest.raises(ValueError) as error:
            surgery.decompose(model, OUT, basis=SVD(), svds=rough)
        assert str(error.value) == (
            "svds is in the basis RandomizedSVD(rank=3, seed=0, n_iter=2), but basis=SVD() was asked for: "
            "give basis=RandomizedSVD(rank=3, seed=0, n_iter=2), or a store in SVD()."
        )
        with pytest.raises(ValueError) as error:
            exact.add(rough[OUT])
        assert "this collection is in SVD(): keep one collection for each basis." in str(error.value)
        with pytest.raises(ValueError, match="keep one collection for each basis"):
            Decompositions([rough[OUT]])
        surgery.forget(model)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_under_an_edit_the_original_weights_are_decomposed(kind: str) -> None:
    with borrowed(kind) as model:
        surgery.forget(model)
        original = read(model, OUT)
        for act in (surgery.apply, surgery.commit):
            with act(model, {OUT: RandomBasis(0)}):
                surgery.forget(model)
                parts = surgery.decompose(model, OUT)[OUT]
            torch.testing.assert_close((parts.U * parts.S) @ parts.Vh, original, rtol=0, atol=1e-6)
        surgery.forget(model)


@pytest.mark.parametrize("kind", ["bridge gpt2", "bridge llama compatible"])
def test_a_changed_weight_is_noticed(kind: str) -> None:
    model = build(kind)
    svds = surgery.decompose(model, ["blocks.*.mlp.W_out", "blocks.0.attn.W_Q[*]"])
    model.blocks[0].mlp.out.original_component.weight.data[0, 0] += 1e-6
    for site in (OUT, "blocks.*.mlp.W_out"):
        with pytest.raises(StaleDecompositionError) as error:
            surgery.apply(model, {site: Zero()}, svds=svds)
        assert str(error.value) == (
            f"the decomposition of '{OUT}' was made from other weights than the model holds now (trained since, loaded "
            "anew, or another model). Decompose again: surgery.decompose(model, ...)."
        )
    with pytest.raises(StaleDecompositionError):
        surgery.decompose(model, OUT, svds=svds)
    surgery.apply(model, {"blocks.1.mlp.W_out": Zero(), "blocks.0.attn.W_Q[1]": Zero()}, svds=svds).undo()
    fresh = surgery.decompose(model, OUT)[OUT]
    assert fresh.fingerprint != svds[OUT].fingerprint
    torch.testing.assert_close((fresh.U * fresh.S) @ fresh.Vh, read(model, OUT), rtol=0, atol=1e-6)


def test_decompositions_of_raw_weights_are_refused_by_processed_ones() -> None:
    raw, processed = build("bridge gpt2"), build("bridge gpt2 compatible")
    svds = surgery.decompose(raw, OUT)
    with pytest.raises(StaleDecompositionError) as error:
        surgery.apply(processed, {OUT: Zero()}, svds=svds)
    assert str(error.value) == (
        f"the decomposition of '{OUT}' was made from weights that were 'raw'; this model's are 'processed (LayerNorm "
        "folded or weights centred)', which is another matrix. Decompose this model: surgery.decompose(model, ...)."
    )
    assert svds[OUT].weight_state == "raw"


def test_decompositions_of_folded_weights_are_refused_by_raw_ones(hooked_transformer: type) -> None:
    folded, raw = build("hooked ln-folded"), build("hooked ln")
    with pytest.raises(StaleDecompositionError, match=r"weights that were 'LayerNorm folded \(LNPre or RMSPre\)'"):
        surgery.apply(raw, {"blocks.0.mlp.W_in": Zero()}, svds=surgery.decompose(folded, "blocks.0.mlp.W_in"))


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("basis", [SVD(), RandomizedSVD(3, 5), RowBlocks(2)])
def test_saved_and_loaded_they_are_the_same_to_the_last_bit(kind: str, basis: surgery.Basis, tmp_path: Path) -> None:
    with borrowed(kind) as model:
        svds = surgery.decompose(model, ["blocks.0.attn.W_Q[*]", "blocks.1.attn.W_O", "blocks.*.mlp.*"], basis=basis)
        svds.save(tmp_path / "svds.safetensors")
        loaded = Decompositions.load(tmp_path / "svds.safetensors")
        assert (list(loaded), loaded.basis, loaded.nbytes) == (list(svds), basis, svds.nbytes)
        for site, parts in svds.items():
            there = loaded[site]
            assert (there.fingerprint, there.weight_state) == (parts.fingerprint, parts.weight_state)
            for name in ("U", "S", "Vh"):
                assert torch.equal(getattr(there, name), getattr(parts, name))
                assert getattr(there, name).dtype == getattr(parts, name).dtype
        surgery.forget(model)


def test_loaded_decompositions_are_used_instead_of_new_ones(counted: list, tmp_path: Path) -> None:
    model = build("bridge gpt2")
    surgery.decompose(model, OUT).save(str(tmp_path / "svds.safetensors"))
    model = build("bridge gpt2")
    counted.clear()
    with surgery.apply(model, {OUT: Drop([0])}, svds=Decompositions.load(str(tmp_path / "svds.safetensors"))):
        assert counted == []


def test_a_basis_of_ones_own_is_refused_before_anything_is_written(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Halved(Basis):
        def decompose(self, W: torch.Tensor) -> Factors:
            U, S, Vh = SVD().decompose(W)
            return Factors(U * 2, S / 2, Vh)

    class Plain(Halved):  # not a dataclass itself, and of the name of none that is known
        pass

    for basis in (Halved(), Plain()):
        svds = surgery.decompose(build("bridge gpt2"), OUT, basis=basis)
        with pytest.raises(ValueError, match=r"cannot be saved .*a file holds bases of this package only"):
            svds.save(tmp_path / "svds.safetensors")
    assert not list(tmp_path.iterdir())


def unchecked(parts: Decomposition, **other: torch.Tensor) -> Decomposition:
    """The decomposition with other parts, whether they fit or not, as somebody may hand it over."""
    made = copy.copy(parts)
    for name, part in other.items():
        object.__setattr__(made, name, part)
    return made


def damage(path: Path, how: str) -> None:
    """Spoils a saved collection."""
    if how == "cut short":
        path.write_bytes(path.read_bytes()[:-40])
        return
    if how == "something else":
        path.write_text("hello")
        return
    tensors = load_file(path)
    about = {"format": "model-surgery decompositions", "version": "3", "basis": '{"type": "SVD"}'}
    sites = {OUT: {"fingerprint": "0" * 32, "weight_state": "raw", "rest": 0.0}}
    match how:
        case "another version":
            about["version"] = "1"
        case "no metadata":
            save_file(tensors, path)
            return
        case "a missing part":
            del tensors[f"{OUT}|S"]
        case "parts of other shapes":
            tensors[f"{OUT}|S"] = torch.ones(7)
        case "a NaN":
            tensors[f"{OUT}|Vh"][3, 3] = float("nan")
        case "an infinity":
            tensors[f"{OUT}|U"][3, 3] = float("inf")
        case "a negative strength":
            tensors[f"{OUT}|S"][-1] *= -1
        case "strengths in disorder":
            tensors[f"{OUT}|S"] = tensors[f"{OUT}|S"].flip(0)
        case "parts of two types":
            tensors[f"{OUT}|U"] = tensors[f"{OUT}|U"].double()
        case "halves":
            tensors = {name: tensor.half() for name, tensor in tensors.items()}
        case "a list of sites":
            sites = [OUT]
        case "sites of text":
            sites = {OUT: "raw"}
        case "deep sites":
            sites = None
        case "an unknown basis":
            about["basis"] = '{"type": "os.system"}'
        case "a basis that is no object":
            about["basis"] = "[1]"
    text = "[" * 100_000 if sites is None else json.dumps(sites)
    texts = {"basis": about["basis"], "sites": text}
    save_file(tensors, path, metadata={**about, "sites": text, "checksum": checksum(texts, tensors)})


DAMAGE = {
    "cut short": "",
    "something else": "",
    "another version": "not one that this release wrote, version 3",
    "no metadata": "not one that this release wrote, version 3",
    "a missing part": f"{OUT}|S",
    "parts of other shapes": "",
    "a NaN": "it holds NaN or infinity",
    "an infinity": "it holds NaN or infinity",
    "a negative strength": "it holds negative strengths",
    "strengths in disorder": "its strengths do not fall from first to last",
    "parts of two types": "its parts are of float64, float32, float32, not all of float32 or all of float64",
    "halves": "its parts are of float16, float16, float16, not all of float32 or all of float64",
    "a list of sites": "",
    "sites of text": "",
    "deep sites": "",
    "an unknown basis": "'os.system' is no basis",
    "a basis that is no object": "",
}


@pytest.mark.parametrize("how", DAMAGE)
def test_a_damaged_file_is_refused(how: str, tmp_path: Path) -> None:
    path = tmp_path / "svds.safetensors"
    with borrowed("bridge gpt2") as model:
        surgery.decompose(model, OUT).save(path)
        surgery.forget(model)
    damage(path, how)
    with pytest.raises(ValueError) as error:
        Decompositions.load(path)
    assert str(error.value).startswith(f"{path} is damaged or not a file of decompositions (")
    assert str(error.value).endswith("): make them anew and save.")
    assert DAMAGE[how] in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 300


@pytest.mark.parametrize("name", ["U", "S", "Vh"])
def test_a_flipped_bit_in_a_file_is_noticed(name: str, tmp_path: Path) -> None:
    path = tmp_path / "svds.safetensors"
    with borrowed("bridge gpt2") as model:
        surgery.decompose(model, OUT).save(path)
        surgery.forget(model)
    size = int.from_bytes(path.read_bytes()[:8], "little")
    header = json.loads(path.read_bytes()[8 : 8 + size])
    written = bytearray(path.read_bytes())
    written[8 + size + header[f"{OUT}|{name}"]["data_offsets"][0]] ^= 1
    path.write_bytes(written)
    with pytest.raises(ValueError, match="its contents are not what was written"):
        Decompositions.load(path)


def test_another_basis_in_the_header_of_a_file_is_noticed(tmp_path: Path) -> None:
    path = tmp_path / "svds.safetensors"
    with borrowed("bridge gpt2") as model:
        surgery.decompose(model, OUT, basis=RandomizedSVD(3, 1)).save(path)
        surgery.forget(model)
    there, other = (json.dumps(f'"seed": {seed}').strip('"').encode() for seed in (1, 2))
    assert there in path.read_bytes()
    path.write_bytes(path.read_bytes().replace(there, other))
    with pytest.raises(ValueError, match="its contents are not what was written"):
        Decompositions.load(path)


def test_damaged_parts_are_not_taken_in() -> None:
    model = build("bridge gpt2")
    parts = surgery.decompose(model, OUT)[OUT]
    nan = torch.full_like(parts.S, float("nan"))
    for bad, reason in (
        ({"S": -parts.S}, "it holds negative strengths"),
        ({"S": nan}, "it holds NaN or infinity"),
        ({"U": parts.U.double()}, "its parts are of float64, float32, float32, not all of float32 or all of float64"),
        ({"S": parts.S[1:]}, "U (128, 32), S (31,) and Vh (32, 32) do not fit together"),
    ):
        with pytest.raises(ValueError) as error:
            Decompositions([unchecked(parts, **bad)])
        assert str(error.value) == (
            "Decomposition(blocks.0.mlp.W_out) cannot be used: " + reason + ". Decompose the model again."
        )


def test_a_decomposition_of_another_shape_is_not_used() -> None:
    model = build("bridge gpt2")
    parts = surgery.decompose(model, OUT)[OUT]
    svds = Decompositions([replace(parts, U=parts.U[:64])])
    with pytest.raises(ValueError) as error:
        surgery.apply(model, {OUT: Drop([0])}, svds=svds)
    assert str(error.value).startswith(f"the decomposition of '{OUT}' was made from other weights")


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        Decompositions.load(tmp_path / "nowhere.safetensors")


@pytest.mark.parametrize("pattern", ["blocks.*.mlp.W_*", "blocks.*.attn.W_Q[*]"])
@pytest.mark.parametrize("given", [False, True])
def test_an_interrupted_run_keeps_what_it_has_finished(
    pattern: str, given: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    with borrowed("bridge llama") as model:
        surgery.forget(model)
        exact, calls = svd.exact, []
        stop_at = 3 if "mlp" in pattern else 2

        def interrupted(W: torch.Tensor) -> svd.Factors:
            calls.append(W)
            if len(calls) == stop_at:
                raise KeyboardInterrupt
            return exact(W)

        monkeypatch.setattr(svd, "exact", interrupted)
        svds = Decompositions() if given else None
        with pytest.raises(KeyboardInterrupt):
            surgery.decompose(model, pattern, svds=svds)
        if svds is not None:
            assert len(svds) == {3: 2, 2: 4}[stop_at]
        calls.clear()
        stop_at = -1
        finished = surgery.decompose(model, pattern, svds=svds)
        assert len(finished) == {"m": 6, "a": 8}[pattern.split(".")[2][0]]
        assert len(calls) == {"m": 4, "a": 1}[pattern.split(".")[2][0]]
        surgery.forget(model)


def test_progress_is_shown_for_what_is_missing_and_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    bars = []

    def bar(work: list, **settings: object) -> list:
        bars.append(len(work))
        return work

    monkeypatch.setattr("surgery.progress.tqdm", bar)
    with borrowed("bridge gpt2") as model:
        surgery.forget(model)
        surgery.decompose(model, ["blocks.0.mlp.*", "blocks.0.attn.W_Q[*]"])
        assert bars == [3]  # the heads of a matrix are decomposed together
        surgery.decompose(model, "blocks.*.mlp.*", progress=False)
        assert bars == [3]
        surgery.forget(model)


def test_weights_that_are_not_finite_are_refused_by_name() -> None:
    model = build("bridge gpt2")
    with torch.no_grad():
        model.blocks[1].mlp.out.original_component.weight[3, 2:4] = torch.tensor([float("nan"), float("inf")])
        model.blocks[0].attn.q.original_component.weight[9] = float("nan")
    message = (
        "holds {} entries that are not finite (NaN or infinity), so it has no singular values: reload the model, or "
        "leave this matrix out."
    )
    for pattern, site, count in (
        ("blocks.*.mlp.W_out", "blocks.1.mlp.W_out", 2),
        ("blocks.0.attn.W_Q[*]", "blocks.0.attn.W_Q[1]", 32),
    ):
        for act in (surgery.decompose, lambda m, p: surgery.apply(m, {p: Zero()})):
            with pytest.raises(ValueError) as error:
                act(model, pattern)
            assert str(error.value) == f"'{site}' " + message.format(count)
    assert surgery.active(model) == ()
    surgery.apply(model, {"blocks.0.attn.W_Q[2]": Zero()}).undo()


def test_reading_them() -> None:
    with borrowed("bridge gpt2") as model:
        svds = surgery.decompose(model, "blocks.0.mlp.*")
        assert repr(svds[OUT]) == "Decomposition(blocks.0.mlp.W_out: 128 x 32, 32 components, raw)"
        assert repr(svds) == f"Decompositions(2 matrices, SVD(), {2 * 4 * (160 * 32 + 32) / 2**20:.1f} MiB)"
        assert svds.nbytes == 2 * 4 * (160 * 32 + 32)
        assert OUT in svds
        assert svds[OUT].to(torch.device("cpu")) is svds[OUT]
        assert svds[OUT].to(torch.device("meta")).S.device.type == "meta"
        with pytest.raises(KeyError) as error:
            svds["blocks.1.mlp.W_out"]
        assert error.value.args[0] == (
            "'blocks.1.mlp.W_out' has not been decomposed: there are blocks.0.mlp.W_in, blocks.0.mlp.W_out."
        )
        with pytest.raises(SiteError, match="Nearest"):
            surgery.decompose(model, "blocks.0.mlp.W_ot")
        surgery.forget(model)


def test_the_global_seed_and_gradients_are_left_alone() -> None:
    with borrowed("bridge gpt2") as model, torch.inference_mode():
        torch.manual_seed(0)
        surgery.decompose(model, "*")
        drawn = torch.rand(2)
        torch.manual_seed(0)
        assert torch.equal(drawn, torch.rand(2))
        parts = surgery.decompose(model, OUT)[OUT]
        assert not any(t.is_inference() or t.requires_grad for t in (parts.U, parts.S, parts.Vh))
        surgery.forget(model)
