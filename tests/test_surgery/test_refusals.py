"""Arguments of the wrong type, as somebody without a type checker gives them, and what they are told.

The rest of the suite runs with every annotated signature checked, so these run in a Python of their own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import numpy
import pytest

ROOT = Path(__file__).resolve().parents[2]

PATTERN = "give a string such as 'blocks.*.mlp.W_out', or a list of these."
SVDS = "give what surgery.decompose(model, ...) returned, or Decompositions()."
BASIS = "give a basis, one of SVD(), LeadingSVD(rank), RandomizedSVD(rank, seed), HaarBasis(seed) or RowBlocks(blocks)."
CASES = {
    "Keep([0.5])": "Keep was given 0.5 as a component: components are integers or slices such as '5:8'.",
    "Keep(None)": "Keep was given None as its components: give a list.",
    "Keep({0: 1})": "Keep was given {0: 1} as its components: give a list.",
    "Keep([[1]])": "Keep was given [1] as a component: components are integers or slices such as '5:8'.",
    "Drop(b'12')": "Drop was given b'12' as its components: give a list.",
    "Drop([None])": "Drop was given None as a component: components are integers or slices such as '5:8'.",
    "Scale('12')": "Scale was given '12' as its gains: give a list.",
    "Scale(numpy.array([True]))": f"Scale was given gain={numpy.array([True])[0]!r}: give a number.",
    "Scale(numpy.float32(2))": "Scale(gain=2.0)",
    "Scale(numpy.array(2.0))": "Scale(gain=2.0)",
    "Scale(True)": "Scale was given gain=True: give a number.",
    "Scale(None)": "Scale was given gain=None: give a number.",
    "Keep(5)": "Keep(5) could mean component 5 or 5 components: write Keep([5]) for the one, KeepTop(rank=5) for the "
    "strongest 5.",
    "Drop(numpy.int64(0))": "Drop(0) could mean component 0 or 0 components: write Drop([0]) for the one, "
    "DropTop(rank=0) for the strongest 0.",
    "Drop(torch.tensor(2))": "Drop(2) could mean component 2 or 2 components: write Drop([2]) for the one, "
    "DropTop(rank=2) for the strongest 2.",
    "Drop('3-6')": "Drop was given '3-6' as a component: components are integers or slices such as '5:8'.",
    "KeepTop(10)": "KeepTop(10) does not say what 10 is: give it by name, such as KeepTop(rank=10).",
    "DropBottom(.1)": "DropBottom(0.1) does not say what 0.1 is: give it by name, such as DropBottom(rank=10).",
    "RandomComponents(0, 5)": "RandomComponents(0, 5) does not say what 0 is: give it by name, such as "
    "RandomComponents(seed=0, count=10).",
    "KeepTop(energy=95)": "KeepTop was given energy=95: give a fraction, from 0 to 1.",
    "KeepTop(rank=0.5)": "KeepTop was given rank=0.5: give a whole number, 0 or more.",
    "KeepTop(rank=torch.tensor(True))": "KeepTop was given rank=tensor(True): give a whole number, 0 or more.",
    **{
        f"{edit}(basis='svd'{', ' + rest if rest else ''})": f"{edit} was given basis='svd': {BASIS}"
        for edit, rest in (
            ("Keep", "components=[0]"),
            ("Drop", "components=[0]"),
            ("Scale", "gain=[0]"),
            ("Zero", ""),
            ("KeepTop", "rank=1"),
            ("DropBottom", "rho=1"),
            ("RandomComponents", "seed=1, count=1"),
        )
    },
    "KeepTop(rank=1, basis=SVD)": f"KeepTop was given basis=<class 'surgery.bases.SVD'>: {BASIS}",
    "decompose(None, 'W_out', basis='svd')": f"basis='svd': {BASIS}",
    "Decompositions(basis=SVD)": f"Decompositions was given basis=<class 'surgery.bases.SVD'>: {BASIS}",
    "decompose(None, 'W_out', svds={})": f"svds={{}} is a dict: {SVDS}",
    "apply(model, {'blocks.0.mlp.W_out': Zero()}, svds={})": f"svds={{}} is a dict: {SVDS}",
    "apply(None, 'W_out', Zero())": "apply was given 'W_out', Zero() after the model: give one mapping, apply(model, "
    "{pattern: edit}).",
    "commit(None, 'W_out', Zero())": "commit was given 'W_out', Zero() after the model: give one mapping, "
    "commit(model, {pattern: edit}).",
    "fwd_hooks(None, 'W_out', Zero())": "fwd_hooks was given 'W_out', Zero() after the model: give one mapping, "
    "fwd_hooks(model, {pattern: edit}).",
    "apply(model, [('W_out', Zero())])": "[('W_out', Zero())] is a list: a spec is a mapping of patterns to edits, "
    "such as {'blocks.*.mlp.W_out': KeepTop(rho=0.05)}.",
    "Scale({1.5: 2.0})": "Scale was given a gain for 1.5: components are integers. Give {index: gain}.",
    "Scale({True: 2.0})": "Scale was given a gain for True: components are integers. Give {index: gain}.",
    "Scale({'0:3': 2.0})": "Scale was given a gain for '0:3': components are integers. Give {index: gain}.",
    "Scale({0: '2'})": "Scale was given gain='2': give a number.",
    "Scale([True])": "Scale was given gain=True: give a number.",
    "Scale([None])": "Scale was given gain=None: give a number.",
    "Scale([1.0], keep_nuclear_norm='no')": "Scale was given keep_nuclear_norm='no': give True or False.",
    "Compensated(5, [0.0])": "Compensated was given 5 as its edit: give a plain edit such as Drop([0]).",
    "Compensated(Zero(), '1')": "Compensated was given '1' as its constants: give a list.",
    "Compensated(Zero(), ['1'])": "Compensated was given constant='1': give a number.",
    "KeepTop(rank=2.5)": "KeepTop was given rank=2.5: give a whole number, 0 or more.",
    "KeepTop(rank=True)": "KeepTop was given rank=True: give a whole number, 0 or more.",
    "KeepBottom(rank='3')": "KeepBottom was given rank='3': give a whole number, 0 or more.",
    "DropTop(rho='0.5')": "DropTop was given rho='0.5': give a number.",
    "DropBottom(energy=[0.5])": "DropBottom was given energy=[0.5]: give a number.",
    "KeepTop(rule=['gavish-donoho'])": (
        "KeepTop was given rule=['gavish-donoho']: it is one of 'marchenko-pastur', 'gavish-donoho', "
        "'effective-rank'. Choose one."
    ),
    "RandomComponents(seed=1.5, count=1)": (
        "RandomComponents was given seed=1.5: give a whole number, from 0 to 9223372036854775807."
    ),
    "RandomComponents(seed=1, count=1.5)": "RandomComponents was given count=1.5: give a whole number, 0 or more.",
    "RandomComponents(seed=1, energy='all')": "RandomComponents was given energy='all': give a number.",
    "RandomBasis('x')": "RandomBasis was given seed='x': give a whole number, from 0 to 9223372036854775807.",
    "HaarBasis(None)": "HaarBasis was given seed=None: give a whole number, from 0 to 9223372036854775807.",
    "RandomizedSVD(2.0, 0)": "RandomizedSVD was given rank=2.0: give a whole number, 0 or more.",
    "RandomizedSVD(2, 0, n_iter=-1)": "RandomizedSVD was given n_iter=-1: give a whole number, 0 or more.",
    "RowBlocks(1.5)": "RowBlocks was given blocks=1.5: give a whole number, 1 or more.",
    "sites(None, 3)": f"3 is not a pattern but of type int: {PATTERN}",
    "sites(None, ['*', None])": f"None is not a pattern but of type NoneType: {PATTERN}",
    "decompose(None, 3)": f"3 is not a pattern but of type int: {PATTERN}",
    "decompose(None, {'W_out': Zero()})": f"{{'W_out': Zero()}} is not a pattern but of type dict: {PATTERN}",
    # Numbers of other makes are numbers.
    "Scale({numpy.int64(0): numpy.float32(0.5), 1: 2})": "Scale(gain={0: 0.5, 1: 2.0})",
    "Keep(numpy.arange(2))": "Keep(components=[0, 1])",
    "KeepTop(rank=numpy.int64(3))": "KeepTop(rank=3)",
    "KeepTop(rho=numpy.float32(0.5))": "KeepTop(rho=0.5)",
    "KeepTop(rho=1)": "KeepTop(rho=1.0)",
    "RandomBasis(numpy.int64(3))": "RandomBasis(seed=3)",
}

_FILES = {
    '{"type": "Drop", "components": 5}': "Drop(5) could mean component 5 or 5 components: write Drop([5]) for the one, "
    "DropTop(rank=5) for the strongest 5",
    '{"type": "KeepTop", "rank": "3"}': "KeepTop was given rank='3': give a whole number, 0 or more",
    '{"type": "KeepTop", "rank": 2.0}': "KeepTop was given rank=2.0: give a whole number, 0 or more",
    '{"type": "KeepTop", "rho": true}': "KeepTop was given rho=True: give a number",
    '{"type": "KeepTop", "rule": {}}': (
        "KeepTop was given rule={}: it is one of 'marchenko-pastur', 'gavish-donoho', 'effective-rank'. Choose one"
    ),
    '{"type": "Keep", "components": {"a": 1}}': "Keep was given {'a': 1} as its components: give a list",
    '{"type": "Keep", "components": null}': "Keep was given None as its components: give a list",
    '{"type": "Drop", "components": [[0]]}': (
        "Drop was given [0] as a component: components are integers or slices such as '5:8'"
    ),
    '{"type": "Scale", "gain": "12"}': "Scale was given '12' as its gains: give a list",
    '{"type": "Scale", "gain": {"0": []}}': "Scale was given gain=[]: give a number",
    '{"type": "Scale", "gain": [], "keep_nuclear_norm": "yes"}': (
        "Scale was given keep_nuclear_norm='yes': give True or False"
    ),
    '{"type": "RandomBasis", "seed": "7"}': (
        "RandomBasis was given seed='7': give a whole number, from 0 to 9223372036854775807"
    ),
    '{"type": "Zero", "basis": {"type": "RowBlocks", "blocks": []}}': (
        "RowBlocks was given blocks=[]: give a whole number, 1 or more"
    ),
}
CASES |= {
    f"from_file({text!r})": f"edit of 'blocks.0.mlp.W_out': {said}. Save the spec again."
    for text, said in _FILES.items()
}

CODE = """
import json, sys, tempfile, numpy, torch
sys.path.insert(0, "tests")
import models
from pathlib import Path
from surgery import *
from surgery import HaarBasis, RandomBasis, RandomComponents, RandomizedSVD
from surgery.errors import SpecFileError
model = models.bridge("gpt2")
def from_file(entry):
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edit.json"
        document = {"format": "model-surgery spec", "version": 1, "weight_state": "raw", "fingerprints": {}}
        path.write_text(json.dumps({**document, "edits": {"blocks.0.mlp.W_out": json.loads(entry)}}))
        try:
            return load(path)
        except SpecFileError as error:
            raise ValueError(str(error).removeprefix(f"{path}, ")) from None
def answer(text):
    try:
        return repr(eval(text))
    except (TypeError, ValueError) as error:
        return str(error)
json.dump([answer(text) for text in json.load(sys.stdin)], sys.stdout)
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", CODE]
    result = subprocess.run(
        command, input=json.dumps(list(CASES)), env=environment, cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr
    return dict(zip(CASES, json.loads(result.stdout), strict=True))


@pytest.mark.parametrize("text", CASES)
def test_an_argument_of_the_wrong_type_is_refused_in_words(text: str, answers: dict[str, str]) -> None:
    assert answers[text] == CASES[text]
