"""Specs as files: there and back unchanged, refused on other weights, and harmless whatever they hold."""

import json
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from models import ONE_OF_EACH, borrowed, build

import surgery
from hooks import SiteError
from surgery import (
    SVD,
    Compensated,
    Decomposition,
    Drop,
    DropBottom,
    DropTop,
    Edit,
    Gains,
    HaarBasis,
    Keep,
    KeepBottom,
    KeepTop,
    RandomBasis,
    RandomComponents,
    RandomizedSVD,
    RowBlocks,
    Scale,
    SpecFileError,
    Zero,
)
from surgery._spec_files import decode_edit
from surgery.json_values import encode

OUT = "blocks.0.mlp.W_out"
seeds = st.integers(0, 2**63 - 1)
bases = st.one_of(
    st.just(SVD()),
    st.builds(RandomizedSVD, st.integers(0, 99), seeds, st.integers(0, 9)),
    st.builds(HaarBasis, seeds),
    st.builds(RowBlocks, st.integers(1, 99)),
)
fractions = st.floats(0, 1)
rules = st.sampled_from(["marchenko-pastur", "gavish-donoho", "effective-rank"])
cut_choices = st.one_of(
    st.fixed_dictionaries({"rank": st.integers(0, 99)}, optional={"basis": bases}),
    st.fixed_dictionaries({"rho": fractions}, optional={"basis": bases}),
    st.fixed_dictionaries({"energy": fractions}),
    st.fixed_dictionaries({"rule": rules}),
)
cuts = st.builds(
    lambda cut, choice: cut(**choice), st.sampled_from([KeepTop, KeepBottom, DropTop, DropBottom]), cut_choices
)
written = st.sampled_from(["5:8", ":-1", "::2", "-3::-1", ":"])
indices = st.lists(st.one_of(st.integers(-99, 99), written), max_size=5)
gains = st.floats(0, 1e300)
plain_edits = st.one_of(
    cuts,
    st.builds(Keep, indices, bases),
    st.builds(Drop, indices, bases),
    st.builds(Scale, st.dictionaries(st.integers(-99, 99), gains, max_size=5), st.booleans(), bases),
    st.builds(Scale, st.lists(gains, max_size=5), st.booleans(), bases),
    st.builds(Zero, bases),
    st.builds(lambda seed, count: RandomComponents(seed=seed, count=count), seeds, st.integers(0, 99)),
    st.builds(lambda seed, energy: RandomComponents(seed=seed, energy=energy), seeds, fractions),
    st.builds(RandomBasis, seeds),
)
constants = st.lists(st.floats(allow_nan=False, allow_infinity=False), max_size=5)
edits = st.one_of(plain_edits, st.builds(Compensated, plain_edits, constants))
patterns = st.sampled_from(
    [OUT, "blocks.*.attn.W_Q[*]", "*W_in", "blocks.1.attn.W_{K,V}", "blocks.[0-1].mlp.*", "U_out"]
)


def written_by(model: torch.nn.Module, folder: Path) -> Path:
    path = folder / "edit.json"
    surgery.save({OUT: KeepTop(rho=0.5)}, path, model=model)
    return path


@settings(max_examples=200)
@given(edits)
def test_an_edit_comes_back_from_json_equal(edit: Edit) -> None:
    there = decode_edit(json.loads(json.dumps(encode(edit))))
    assert there == edit
    assert repr(there) == repr(edit)


@settings(max_examples=15)
@given(st.dictionaries(patterns, edits, max_size=4))
def test_a_spec_comes_back_from_its_file_equal(spec: dict[str, Edit]) -> None:
    with borrowed("bridge gpt2") as model, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edit.json"
        surgery.save(spec, path, model=model)
        for loaded in (surgery.load(path, model=model), surgery.load(str(path))):
            assert loaded == spec
            assert list(loaded) == list(spec)


def test_gains_in_a_tensor_come_back_as_the_same_numbers(tmp_path: Path) -> None:
    gain = torch.rand(32, requires_grad=True)
    with borrowed("bridge gpt2") as model:
        surgery.save({OUT: Scale(gain)}, tmp_path / "edit.json", model=model)
        loaded = surgery.load(tmp_path / "edit.json", model=model)
        assert loaded[OUT] == Scale(gain.tolist())
        with surgery.apply(model, loaded) as first:
            one = first.weight(OUT).clone()
        with surgery.apply(model, {OUT: Scale(gain.detach())}) as second:
            torch.testing.assert_close(second.weight(OUT), one, rtol=0, atol=1e-6)


def test_the_file_says_what_it_is_in_plain_json(tmp_path: Path) -> None:
    with borrowed("bridge gpt2") as model:
        spec = {
            "blocks.*.mlp.W_out": KeepTop(rho=0.05),
            "blocks.1.attn.W_Q[3]": Drop([0, "4:"], basis=RandomizedSVD(6, 1)),
        }
        surgery.save(spec, tmp_path / "edit.json", model=model)
    document = json.loads((tmp_path / "edit.json").read_text())
    assert document["format"] == "model-surgery spec"
    assert document["version"] == 1
    assert document["weight_state"] == "raw"
    assert document["edits"] == {
        "blocks.*.mlp.W_out": {"type": "KeepTop", "rho": 0.05},
        "blocks.1.attn.W_Q[3]": {
            "type": "Drop",
            "components": [0, "4:"],
            "basis": {"type": "RandomizedSVD", "rank": 6, "seed": 1},
        },
    }
    assert list(document["fingerprints"]) == ["blocks.0.mlp.W_out", "blocks.1.mlp.W_out", "blocks.1.attn.W_Q[3]"]


@pytest.mark.parametrize("kind", ONE_OF_EACH)
def test_saving_and_loading_under_an_edit_look_behind_it(kind: str, tmp_path: Path) -> None:
    with borrowed(kind) as model:
        path = written_by(model, tmp_path)
        plain = path.read_text()
        for act in (surgery.apply, surgery.commit):
            with act(model, {OUT: Zero()}):
                assert surgery.load(path, model=model) == {OUT: KeepTop(rho=0.5)}
                assert written_by(model, tmp_path).read_text() == plain


def test_another_model_is_refused(tmp_path: Path) -> None:
    model = build("bridge gpt2")
    path = written_by(model, tmp_path)
    tail = (
        " (another checkpoint, dtype, or trained since). Load that model, or load(path) without a model to skip the "
        "check."
    )
    message = f"{path} was made for other weights: this model's '{OUT}' differs{tail}"
    for other in (build("bridge gpt2", dtype=torch.bfloat16), build("bridge phi")):
        with pytest.raises(SpecFileError) as error:
            surgery.load(path, model=other)
        assert str(error.value) == message
    model.blocks[0].mlp.out.original_component.weight.data[0, 0] += 1e-6
    with pytest.raises(SpecFileError) as error:
        surgery.load(path, model=model)
    assert str(error.value) == message
    assert surgery.load(path) == {OUT: KeepTop(rho=0.5)}
    for pattern, differ in (("W_out", "and one other matrix differ"), ("mlp.*", "and 3 other matrices differ")):
        surgery.save({pattern: Zero()}, path, model=build("bridge gpt2"))
        with pytest.raises(SpecFileError) as error:
            surgery.load(path, model=build("bridge gpt2", dtype=torch.bfloat16))
        assert f" {differ}{tail}" in str(error.value)


def test_processed_weights_are_refused_by_name_of_their_state(tmp_path: Path) -> None:
    path = written_by(build("bridge gpt2"), tmp_path)
    with pytest.raises(SpecFileError) as error:
        surgery.load(path, model=build("bridge gpt2 compatible"))
    assert str(error.value) == (
        f"{path} was made for weights that were 'raw'; this model's are 'processed (LayerNorm folded or weights "
        "centred)', so the same edit would be another one. Load the model in the state the spec was made for."
    )


def test_a_model_without_the_matrices_is_refused(tmp_path: Path) -> None:
    with borrowed("bridge llama") as model:
        surgery.save({"blocks.*.mlp.W_gate": Zero()}, tmp_path / "edit.json", model=model)
    with borrowed("bridge gpt2") as model, pytest.raises(SiteError) as error:
        surgery.load(tmp_path / "edit.json", model=model)
    assert "spec['blocks.*.mlp.W_gate']: no matrix is named 'blocks.*.mlp.W_gate'" in str(error.value)


def test_a_file_whose_fingerprints_do_not_cover_its_edits_is_refused(tmp_path: Path) -> None:
    with borrowed("bridge gpt2") as model:
        path = written_by(model, tmp_path)
        document = json.loads(path.read_text())
        for marks in ({}, {**document["fingerprints"], "blocks.1.mlp.W_out": "0" * 32}):
            path.write_text(json.dumps({**document, "fingerprints": marks}))
            with pytest.raises(SpecFileError, match="was made for other weights"):
                surgery.load(path, model=model)


def test_a_bad_spec_writes_nothing(tmp_path: Path) -> None:
    class Mine(Edit):
        basis = SVD()

        def gains(self, decomposition: Decomposition) -> Gains:
            return Gains(torch.ones_like(decomposition.S), 1.0)

    @dataclass(frozen=True)
    class Own(Mine):
        strength: float = 1.0

    path = tmp_path / "edit.json"
    with borrowed("bridge gpt2") as model:
        with pytest.raises(SiteError, match="no matrix is named"):
            surgery.save({OUT: Zero(), "blocks.7.mlp.W_out": Zero()}, path, model=model)
        for edit in (Mine(), Own(2.0), Compensated(Own(2.0), [0.0])):
            with pytest.raises(ValueError) as error:
                surgery.save({OUT: edit}, path, model=model)
            assert f"spec['{OUT}'] is " in str(error.value)
            assert "build it from the edits and bases of this package, Scale for instance." in str(error.value)
    assert not path.exists()


HEADER = {"format": "model-surgery spec", "version": 1, "weight_state": "raw", "fingerprints": {}}


def document(**changes: object) -> str:
    return json.dumps({**HEADER, "edits": {}, **changes})


def edit(entry: object) -> str:
    return document(edits={OUT: entry})


NESTED = '{"type": "Compensated", "constants": [], "edit": '
BAD_FILES = {
    "empty": ("", "it is not readable JSON (Expecting value"),
    "cut short": (document()[:-20], "it is not readable JSON ("),
    "not text": (b"\xff\xfe\x00{}", "it is not readable JSON ('utf-8' codec can't decode byte 0xff"),
    "NaN": (
        edit({"type": "KeepTop", "rho": float("nan")}),
        "it is not readable JSON (it contains NaN, which JSON does not know)",
    ),
    "infinity": (edit({"type": "Scale", "gain": [float("inf")]}), "it contains Infinity, which JSON does not know"),
    "deep": ("[" * 100_000, "it is not readable JSON ("),
    "deep objects": ('{"a":' * 100_000, "it is not readable JSON ("),
    "a huge number": (
        edit({"type": "KeepTop"}).replace('"type"', '"rank": ' + "9" * 5000 + ', "type"'),
        "it is not readable JSON (",
    ),
    "one name twice": ('{"edits": {}, "edits": {}}', "it is not readable JSON (it names 'edits' twice)"),
    "a list": ("[]", "at the top level, [] is not of type 'object'"),
    "null": ("null", "at the top level, None is not of type 'object'"),
    "nothing in it": ("{}", "at the top level, 'format' is a required property"),
    "another format": (document(format="spec"), "at format, 'model-surgery spec' was expected"),
    "extra keys": (
        document(run="rm -rf /"),
        "at the top level, Additional properties are not allowed ('run' was unexpected)",
    ),
    "a version in words": (document(version="1"), "at version, 1 was expected"),
    "a list of edits": (document(edits=[]), "at edits, [] is not of type 'object'"),
    "an edit that is a list": (edit([1]), f"at edits/{OUT}, [1] is not of type 'object'"),
    "an edit without a type": (edit({"rank": 1}), f"at edits/{OUT}, 'type' is a required property"),
    "a fingerprint that is none": (
        document(fingerprints={OUT: "../../x"}),
        f"at fingerprints/{OUT}, '../../x' does not match",
    ),
    "fingerprints in a list": (document(fingerprints=[]), "at fingerprints, [] is not of type 'object'"),
    "a state that is no text": (document(weight_state=1), "at weight_state, 1 is not of type 'string'"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_what_is_no_spec_is_refused(name: str, tmp_path: Path) -> None:
    content, message = BAD_FILES[name]
    path = tmp_path / "edit.json"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(SpecFileError) as error:
        surgery.load(path)
    assert str(error.value).startswith(f"{path} is not a spec: ")
    assert message in str(error.value)
    assert str(error.value).endswith("Save the spec again.")
    assert len(str(error.value)) < len(str(path)) + 400


BAD_EDITS = {
    "code": ({"type": "os.system"}, "'os.system' is no edit: known are KeepTop, KeepBottom, DropTop"),
    "a dunder": ({"type": "__import__"}, "'__import__' is no edit"),
    "the base class": ({"type": "Edit"}, "'Edit' is no edit"),
    "a basis": ({"type": "SVD"}, "'SVD' is no edit"),
    "a type in a list": ({"type": ["KeepTop"]}, "['KeepTop'] is no edit"),
    "a long type": ({"type": "K" * 10**6}, "KKK... is no edit"),
    "a field too many": ({"type": "Zero", "__class__": "Drop"}, "Zero takes basis, not '__class__'"),
    "no field": ({"type": "KeepTop"}, "KeepTop was given no rank: give exactly one of rank="),
    "a basis that is a list": ({"type": "Zero", "basis": [1]}, "[1] stands where an object with a 'type' belongs"),
    "a basis that is an edit": ({"type": "Zero", "basis": {"type": "Zero"}}, "'Zero' is no basis"),
    "an edit that is text": (
        {"type": "Compensated", "edit": "x", "constants": []},
        "'x' stands where an object with a 'type'",
    ),
    "gains for words": ({"type": "Scale", "gain": {"a": 1.0}}, "'a' stands where a component belongs, a whole number"),
    "gains for a spaced number": ({"type": "Scale", "gain": {" 1": 1.0}}, "' 1' stands where a component belongs"),
    "gains for a number with lines": ({"type": "Scale", "gain": {"1_0": 1.0}}, "'1_0' stands where a component"),
    "gains for an Arabic number": ({"type": "Scale", "gain": {"٣": 1.0}}, "'٣' stands where a component belongs"),
    "gains for a long number": ({"type": "Scale", "gain": {"9" * 5000: 1.0}}, "stands where a component belongs"),
    "one gain in two ways": ({"type": "Scale", "gain": {"1": 1.0, "01": 2.0}}, "'01' stands where a component"),
    "a negative gain": (
        {"type": "Scale", "gain": {"0": -1.0}},
        "Scale was given gain=-1.0: give a finite number, 0 or more",
    ),
    "a fraction above 1": ({"type": "KeepTop", "rho": 1.5}, "KeepTop was given rho=1.5: give a fraction, from 0 to 1"),
    "components in words": ({"type": "Drop", "components": ["one"]}, "Drop was given 'one' as a component"),
    "a huge seed": ({"type": "RandomBasis", "seed": 10**40}, "give a whole number, from 0 to 9223372036854775807"),
    "compensated twice": (
        {
            "type": "Compensated",
            "constants": [],
            "edit": {"type": "Compensated", "constants": [], "edit": {"type": "Zero"}},
        },
        "as its edit: give a plain edit such as Drop([0])",
    ),
}


@pytest.mark.parametrize("name", BAD_EDITS)
def test_what_is_no_edit_is_refused_in_its_place(name: str, tmp_path: Path) -> None:
    entry, message = BAD_EDITS[name]
    path = tmp_path / "edit.json"
    path.write_text(edit(entry))
    with pytest.raises(SpecFileError) as error:
        surgery.load(path)
    assert str(error.value).startswith(f"{path}, edit of '{OUT}': ")
    assert message in str(error.value)
    assert len(str(error.value)) < len(str(path)) + 400


@pytest.mark.parametrize("depth", [3, 200, 900])
def test_edits_within_edits_are_refused_at_any_depth(depth: int, tmp_path: Path) -> None:
    path = tmp_path / "edit.json"
    inner = NESTED * depth + '{"type": "Zero"}' + "}" * depth
    path.write_text(document().replace('"edits": {}', f'"edits": {{"{OUT}": {inner}}}'))
    with pytest.raises(SpecFileError):
        surgery.load(path)


@pytest.mark.parametrize("version", [0, 2, 10**30])
def test_another_version_is_said_before_anything_else(version: int, tmp_path: Path) -> None:
    path = tmp_path / "edit.json"
    path.write_text(document(version=version, new_key=1))
    with pytest.raises(SpecFileError) as error:
        surgery.load(path)
    assert str(error.value) == (
        f"{path} has schema version {version}; this release reads version 1. Install the release that wrote it, or "
        "save "
        "the spec again."
    )


def test_a_spec_with_a_byte_order_mark_is_read(tmp_path: Path) -> None:
    path = written_by(build("bridge gpt2"), tmp_path)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert surgery.load(path) == {OUT: KeepTop(rho=0.5)}


def test_a_folder_is_said_to_be_one(tmp_path: Path) -> None:
    with pytest.raises(SpecFileError) as error:
        surgery.load(tmp_path)
    assert str(error.value) == (
        f"{tmp_path} is a folder, not a spec: give the name of the file that surgery.save wrote."
    )


def test_a_tensor_of_gains_comes_back_equal(tmp_path: Path) -> None:
    path = tmp_path / "edit.json"
    for gain in (torch.ones(32), torch.rand(32), torch.rand(32).double(), torch.rand(32).bfloat16(), torch.tensor(0.1)):
        spec = {OUT: Scale(gain), "blocks.1.mlp.W_out": Scale(0.1)}
        surgery.save(spec, path)
        assert surgery.load(path) == spec
        assert surgery.load(path) != {**spec, OUT: Scale(gain * 0.5)}


def test_a_spec_saved_without_a_model_says_that_it_cannot_be_checked(tmp_path: Path) -> None:
    path = tmp_path / "edit.json"
    spec = {"blocks.*.mlp.W_out": KeepTop(rank=2)}
    surgery.save(spec, path)
    document = json.loads(path.read_text())
    assert (document["weight_state"], document["fingerprints"]) == (None, {})
    assert surgery.load(path) == spec
    with borrowed("bridge gpt2") as model:
        with pytest.warns(UserWarning) as warned:
            assert surgery.load(path, model=model) == spec
        assert [str(w.message) for w in warned] == [
            f"{path} was saved without a model, so nothing tells whether it was made for the weights of this one. Save "
            "it with surgery.save(spec, path, model=model) to have that checked."
        ]
        surgery.save({"blocks.7.mlp.W_out": Zero()}, path)
        with pytest.raises(SiteError, match="no matrix is named"):
            surgery.load(path, model=model)
        path.write_text(json.dumps({**document, "fingerprints": {OUT: "0" * 32}}))
        with pytest.raises(SpecFileError, match="was made for weights that were None"):
            surgery.load(path, model=model)


def test_a_hostile_pattern_in_a_file_is_answered(tmp_path: Path) -> None:
    path = tmp_path / "edit.json"
    with borrowed("bridge gpt2") as model:
        for pattern in ("*" * 900 + "z", "{*,*}" * 150 + "q", "{" * 3000):
            surgery.save({pattern: Zero()}, path)
            with pytest.raises(SiteError):
                surgery.load(path, model=model)


def test_a_missing_file_is_missing(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        surgery.load(tmp_path / "nowhere.json")


@settings(max_examples=60)
@given(
    st.recursive(
        st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=5)),
        lambda inner: st.one_of(
            st.lists(inner, max_size=3),
            st.dictionaries(
                st.one_of(
                    st.sampled_from(["type", "rank", "gain", "basis", "edit", "components", "seed"]),
                    st.text(max_size=3),
                ),
                inner,
                max_size=4,
            ),
        ),
    )
)
def test_any_json_is_read_or_refused_never_more(entry: object) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edit.json"
        for text in (
            json.dumps(entry),
            edit(entry),
            edit({"type": "Scale", "gain": entry}),
            edit({"type": "Keep", "components": entry}),
        ):
            path.write_text(text)
            try:
                assert all(isinstance(value, Edit) for value in surgery.load(path).values())
            except SpecFileError as error:
                assert str(error)
