"""Finished work comes back as it was stored, or not at all."""

from pathlib import Path

import pytest
import torch

from analyses.store import Store, digest

TENSORS = {"W": torch.arange(6.0).reshape(2, 3), "count": torch.tensor(3)}


def store(folder: Path, *, scale: float = 1.0, **settings: object) -> Store:
    return Store.of(folder, "work", settings={"lr": 0.1, **settings}, tensors={"start": scale * torch.ones(2)})


def test_a_piece_comes_back_and_only_to_the_same_work(tmp_path: Path) -> None:
    mine = store(tmp_path / "new folder")
    assert mine.read("one") is None
    mine.write("one", {**TENSORS, "W": TENSORS["W"].mT})  # not contiguous
    mine.write("two", TENSORS)
    again = store(tmp_path / "new folder").read("one")
    assert again is not None
    assert again.keys() == TENSORS.keys()
    assert torch.equal(again["W"], TENSORS["W"].mT)
    assert mine.pieces() == {"one", "two"}
    for other in (store(tmp_path / "new folder", lr=0.2), store(tmp_path / "new folder", scale=2.0)):
        assert other.read("one") is None
        assert other.pieces() == set()
    mine.remove("one")
    mine.remove("one")
    assert mine.pieces() == {"two"}


def test_a_file_that_was_renamed_or_changed_is_refused(tmp_path: Path) -> None:
    mine = store(tmp_path)
    mine.write("one", TENSORS)
    mine.path("one").rename(mine.path("two"))
    with pytest.raises(
        ValueError, match=r"work-.*-two\.safetensors is damaged \(its piece differ from what was written"
    ):
        mine.read("two")
    mine.write("one", TENSORS)
    content = bytearray(mine.path("one").read_bytes())
    content[-1] ^= 1
    mine.path("one").write_bytes(bytes(content))
    with pytest.raises(ValueError, match=r"its digest differ from what was written\): delete it, and it is done again"):
        mine.read("one")


def test_an_interrupted_write_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine = store(tmp_path)
    mine.write("one", TENSORS)

    def interrupted(tensors: dict, file: str, metadata: dict) -> None:
        Path(file).write_bytes(b"half a file")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr("analyses.store.save_file", interrupted)
        mine.write("one", {"W": torch.zeros(1)})
    assert torch.equal(mine.read("one")["W"], TENSORS["W"])  # type: ignore[index]
    assert len(list(tmp_path.iterdir())) == 1


def test_a_digest_depends_on_every_bit_name_dtype_and_shape() -> None:
    W = torch.arange(4.0)
    different = [
        {"W": W}, {"V": W}, {"W": W.double()}, {"W": W.reshape(2, 2)}, {"W": W.nextafter(torch.ones(4))}, {},
    ]  # fmt: skip
    assert len({digest(tensors, {}) for tensors in different} | {digest({"W": W}, {"lr": 1})}) == 7
    assert digest({"W": W, "V": W}, {"a": 1, "b": 2}) == digest({"V": W.clone(), "W": W}, {"b": 2, "a": 1})
