"""Stores with a budget and a folder: what is held, mapped and refused, and that the numbers are the same."""

import mmap
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from models import ONE_OF_EACH, borrowed, build

import surgery
from hooks.sizes import free_memory
from surgery import (
    SVD,
    Basis,
    Decomposition,
    Decompositions,
    Drop,
    HaarBasis,
    KeepTop,
    LeadingSVD,
    RandomizedSVD,
    RowBlocks,
    StaleDecompositionError,
    svd,
)
from surgery.bases import Factors

MLP, OUT = "blocks.*.mlp.*", "blocks.0.mlp.W_out"
BYTES = 4 * (160 * 32 + 32)
"""What the components of an MLP matrix of 32 x 128 take."""


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """The shapes that are factorised from here on."""
    calls: list[tuple[int, ...]] = []
    exact = svd.exact

    def counting(W: torch.Tensor) -> svd.Factors:
        calls.append(tuple(W.shape))
        return exact(W)

    monkeypatch.setattr(svd, "exact", counting)
    return calls


def is_mapped(entry: Decomposition, folder: Path) -> bool:
    """Whether the system says that U lies in the mapping of the matrix's file."""
    maps = Path("/proc/self/maps")
    if not maps.exists():
        pytest.skip("this system does not tell what is mapped")
    address, file = entry.U.data_ptr(), str((folder / f"{entry.site}.safetensors").resolve())
    for line in maps.read_text().splitlines():
        start, end = (int(edge, 16) for edge in line.split()[0].split("-"))
        if start - mmap.PAGESIZE <= address < end and line.endswith(file):
            return True
    return False


def same(a: Decomposition, b: Decomposition) -> bool:
    about = [(e.site, e.basis, e.fingerprint, e.weight_state, e.rest) for e in (a, b)]
    return about[0] == about[1] and all(torch.equal(getattr(a, name), getattr(b, name)) for name in Factors._fields)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
@pytest.mark.parametrize("basis", [SVD(), LeadingSVD(5), RowBlocks(2)])
def test_a_folder_holds_the_same_components_mapped(kind: str, basis: Basis, tmp_path: Path) -> None:
    with borrowed(kind) as model:
        held = surgery.decompose(model, ["blocks.1.mlp.*", "blocks.0.attn.W_Q[*]"], basis=basis)
        svds = Decompositions(basis=basis, folder=tmp_path / "new" / "folder")
        assert surgery.decompose(model, ["blocks.1.mlp.*", "blocks.0.attn.W_Q[*]"], basis=basis, svds=svds) is svds
        assert list(svds) == list(held) and svds.nbytes == 0
        again = Decompositions(basis=basis, folder=tmp_path / "new" / "folder")
        assert list(again) == list(held) and again.nbytes == 0 and len(again) == len(held)
        for site, entry in held.items():
            for store in (svds, again):
                assert same(store[site], entry) and is_mapped(store[site], tmp_path / "new" / "folder")
                assert store[site] is store[site]
            assert not is_mapped(entry, tmp_path / "new" / "folder")
        surgery.forget(model)


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_an_edit_from_a_folder_is_the_same_edit_holds_no_components_and_is_undone(
    kind: str, counted: list, tmp_path: Path
) -> None:
    with borrowed(kind) as model:
        for edit in (KeepTop(rank=3), Drop([0, 4])):
            with surgery.apply(model, {MLP: edit}):
                wanted = {site: surgery.weight(model, site).clone() for site in surgery.sites(model, MLP)}
            for _ in range(2):  # written first, read from the folder then
                svds = Decompositions(folder=tmp_path)
                with surgery.apply(model, {MLP: edit}, svds=svds) as operation:
                    assert all(torch.equal(surgery.weight(model, site), W) for site, W in wanted.items())
                    for change in operation.changes:
                        assert change.decomposition is svds[str(change.site)]
                        assert is_mapped(change.decomposition, tmp_path)
        assert len(counted) == 2 * len(wanted)  # once in the model's memory, once into the folder
        surgery.forget(model)


def test_what_is_in_the_folder_is_read_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    from surgery import _decomposition_files as files

    original = files.read
    with borrowed("bridge gpt2") as model:
        surgery.decompose(model, MLP, svds=Decompositions(folder=tmp_path))
        monkeypatch.setattr(files, "read", lambda path, **settings: read.append(path) or original(path, **settings))
        svds = Decompositions(folder=tmp_path)
        assert OUT in svds and "blocks.7.mlp.W_out" not in svds and read == []
        for _ in range(2):
            surgery.apply(model, {OUT: Drop([0])}, svds=svds).undo()
        # The checks of types in tests look at the first entry of a mapping.
        assert [path.stem for path in read if path.stem != "blocks.0.mlp.W_in"] == [OUT]
        with pytest.raises(KeyError, match=r"has not been decomposed: there are blocks\.0\.mlp\.W_in"):
            svds["blocks.7.mlp.W_out"]


def test_what_fits_the_memory_is_held_and_written_too(tmp_path: Path) -> None:
    with borrowed("bridge gpt2") as model:
        svds = Decompositions(folder=tmp_path, memory=2 * BYTES + 1)
        surgery.decompose(model, MLP, svds=svds)
        assert [is_mapped(entry, tmp_path) for entry in svds.values()] == [False, False, True, True]
        assert svds.nbytes == 2 * BYTES
        on_disk = sum(file.stat().st_size for file in tmp_path.iterdir())
        assert repr(svds) == (
            f"Decompositions(4 matrices, SVD(), {2 * BYTES / 2**20:.1f} MiB, {on_disk / 2**20:.1f} MiB in '{tmp_path}')"
        )
        svds.add(svds[OUT])  # in place of itself, which leaves as much room as before
        assert svds.nbytes == 2 * BYTES and list(svds) == surgery.sites(model, MLP)
        assert list(Decompositions(folder=tmp_path)) == surgery.sites(model, MLP)


def test_a_budget_is_refused_to_be_passed_before_anything_is_computed(counted: list) -> None:
    with borrowed("bridge gpt2") as model:
        svds = Decompositions(memory=3 * BYTES)
        surgery.decompose(model, "blocks.0.mlp.*", svds=svds)
        counted.clear()
        for act in (
            lambda: surgery.decompose(model, MLP, svds=svds),
            lambda: surgery.apply(model, {MLP: KeepTop(rank=2)}, svds=svds),
        ):
            with pytest.raises(MemoryError) as error:
                act()
            assert str(error.value) == (
                f"the components of 2 matrices take {2 * BYTES / 2**20:.1f} MiB, and the store holds "
                f"{2 * BYTES / 2**20:.1f} MiB of the {3 * BYTES / 2**20:.1f} MiB that it may: give it a folder "
                "(Decompositions(folder=..., memory=...)), more memory, or basis=LeadingSVD(rank)."
            )
        assert counted == [] and len(svds) == 2 and surgery.active(model) == ()
        surgery.decompose(model, "blocks.1.mlp.W_in", svds=svds)
        assert (len(svds), svds.nbytes) == (3, 3 * BYTES)
        with pytest.raises(MemoryError, match="the components of 1 matrix take"):
            Decompositions(svds.values(), memory=2 * BYTES)


def test_components_that_no_device_has_room_for_are_refused_before_any_is_computed(
    counted: list, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("surgery.decompositions.free_memory", lambda device: 3 * BYTES)
    with borrowed("bridge gpt2") as model:
        surgery.forget(model)
        surgery.decompose(model, ["blocks.0.mlp.*", "blocks.1.mlp.W_in"])
        surgery.forget(model)
        counted.clear()
        for act in (surgery.decompose, lambda m, p: surgery.apply(m, {p: KeepTop(rank=2)})):
            with pytest.raises(MemoryError) as error:
                act(model, MLP)
            assert str(error.value) == (
                f"the components of 4 matrices take {4 * BYTES / 2**20:.1f} MiB, and cpu has "
                f"{3 * BYTES / 2**20:.1f} MiB of memory free: give svds=Decompositions(folder=...), which keeps them "
                "on disk, or basis=LeadingSVD(rank), or name fewer matrices."
            )
        assert counted == []
        surgery.decompose(model, MLP, basis=LeadingSVD(4))
        assert len(surgery.decompose(model, MLP, svds=Decompositions(folder=tmp_path))) == 4
        monkeypatch.setattr("surgery.stores.disk_usage", lambda path: SimpleNamespace(free=3 * BYTES))
        with pytest.raises(OSError, match=r"the disk with the folder '.*other' has 0\.1 MiB free: choose a folder"):
            surgery.decompose(model, MLP, svds=Decompositions(folder=tmp_path / "other"))
        assert list((tmp_path / "other").iterdir()) == []
        monkeypatch.setattr("surgery.decompositions.free_memory", lambda device: None)
        assert len(surgery.decompose(model, MLP)) == 4
        surgery.forget(model)


def test_free_memory_is_what_the_system_tells(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    told = tmp_path / "meminfo"
    monkeypatch.setattr("hooks.sizes._MEMINFO", told)
    assert free_memory(torch.device("cpu")) is None
    told.write_text("MemTotal:       24000000 kB\nMemFree:         1000000 kB\nMemAvailable:    3000000 kB\n")
    assert free_memory(torch.device("cpu")) == 3_000_000 * 1024
    assert free_memory(torch.device("meta")) is None


@pytest.mark.parametrize("sites", [MLP, "blocks.0.attn.W_Q[*]"])
@pytest.mark.parametrize("basis", [SVD(), LeadingSVD(5), RandomizedSVD(3, 0), HaarBasis(0), RowBlocks(3)])
def test_what_is_planned_is_what_is_held(basis: Basis, sites: str) -> None:
    planned: list[int] = []

    class Watched(Decompositions):
        def check_room(self, sizes: dict[str, int]) -> None:
            planned.append(sum(sizes.values()))

    with borrowed("bridge llama") as model:
        svds = Watched(basis=basis)
        surgery.decompose(model, sites, basis=basis, svds=svds)
        assert planned[0] == svds.nbytes == sum(planned[1:])


def test_a_changed_weight_is_noticed_and_a_folder_is_not_overwritten(tmp_path: Path) -> None:
    model = build("bridge gpt2")
    surgery.decompose(model, MLP, svds=Decompositions(folder=tmp_path))
    before = {file.name: file.read_bytes() for file in tmp_path.iterdir()}
    model.blocks[0].mlp.out.original_component.weight.data[0, 0] += 1e-6
    with pytest.raises(StaleDecompositionError, match=f"the decomposition of '{OUT}' was made from other weights"):
        surgery.apply(model, {OUT: Drop([0])}, svds=Decompositions(folder=tmp_path))
    assert {file.name: file.read_bytes() for file in tmp_path.iterdir()} == before


def test_a_damaged_file_is_refused_when_it_is_read(tmp_path: Path) -> None:
    with borrowed("bridge gpt2") as model:
        surgery.decompose(model, MLP, svds=Decompositions(folder=tmp_path))
        file = tmp_path / f"{OUT}.safetensors"
        written = bytearray(file.read_bytes())
        written[-7] ^= 1
        file.write_bytes(written)
        svds = Decompositions(folder=tmp_path)
        with pytest.raises(ValueError, match=r"W_out\.safetensors is damaged .*its contents are not what was written"):
            surgery.apply(model, {MLP: Drop([0])}, svds=svds)
        assert surgery.active(model) == ()
        surgery.apply(model, {"blocks.1.mlp.W_out": Drop([0])}, svds=svds).undo()


def test_folders_that_hold_something_else_are_refused(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Own(Basis):
        def decompose(self, W: torch.Tensor) -> Factors:
            return SVD().decompose(W)

    with borrowed("bridge gpt2") as model:
        surgery.decompose(model, OUT, svds=Decompositions(folder=tmp_path / "a"))
        with pytest.raises(ValueError) as error:
            Decompositions(folder=tmp_path / "a", basis=LeadingSVD(4))
        assert str(error.value) == (
            f"the folder '{tmp_path / 'a'}' holds decompositions in SVD(), this store is in LeadingSVD(rank=4): give "
            "basis=SVD(), or another folder."
        )
        with pytest.raises(ValueError, match="a file holds bases of this package only"):
            Decompositions(folder=tmp_path / "b", basis=Own())
        surgery.decompose(model, MLP).save(tmp_path / "a" / "several.safetensors")
        with pytest.raises(ValueError, match="not a file that a store wrote into its folder"):
            Decompositions(folder=tmp_path / "a")
        surgery.forget(model)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "model.safetensors").write_bytes(b"x" * 100)
    with pytest.raises(ValueError, match=r"model\.safetensors is damaged or not a file of decompositions"):
        Decompositions(folder=tmp_path / "c")
    with pytest.raises(NotADirectoryError, match="is a file: give the name of a folder"):
        Decompositions(folder=tmp_path / "c" / "model.safetensors")
    for memory in (-1, 2.5):
        with pytest.raises(ValueError, match=r"Decompositions was given memory=.*: give a whole number, 0 or more"):
            Decompositions(memory=memory)  # type: ignore[arg-type]
    assert not (tmp_path / "b").exists()
