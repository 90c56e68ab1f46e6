"""Arguments of analyses as somebody without a type checker gives them, and what they are told.

The rest of the suite runs with every annotated signature checked, so these run in a Python of their own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parents[1]
OUT = "blocks.1.mlp.W_out"

CASES = {
    # Sizes, counts and seeds.
    "gradient(batch_size=1.5)": "batch_size=1.5: give a whole number, 1 or more.",
    "gradient(batch_size='2')": "batch_size='2': give a whole number, 1 or more.",
    "gradient(batch_size=0)": "batch_size=0: give a whole number, 1 or more.",
    "gradient(batch_size=True)": "batch_size=True: give a whole number, 1 or more.",
    "attribution.by_curvature(model, tokens, metric, OUT, draws='4', progress=False)": (
        "draws='4': give a whole number, 2 or more."
    ),
    "attribution.by_curvature(model, tokens, metric, OUT, draws=4.0, progress=False)": (
        "draws=4.0: give a whole number, 2 or more."
    ),
    "attribution.by_fisher(model, tokens, tokens, OUT, draws=1.5, progress=False)": (
        "draws=1.5: give a whole number, 1 or more."
    ),
    "ablation(replacement='resample', seed=1.5)": "seed=1.5: give a whole number, from 0 to 9223372036854775807.",
    "ablation(replacement='resample', seed=-1)": "seed=-1: give a whole number, from 0 to 9223372036854775807.",
    "attribution.by_shapley(model, tokens, metric, SPEC, draws='4', progress=False)": (
        "draws='4': give a whole number, 2 or more."
    ),
    "attribution.by_path(model, tokens, metric, SPEC, steps=1.5, progress=False)": (
        "steps=1.5: give a whole number, from 1 to 128."
    ),
    "attribution.by_path(model, tokens, metric, SPEC, tolerance='1%', progress=False)": (
        "tolerance='1%': give a number."
    ),
    "attribution.screen(model, tokens, metric, OUT, candidates=2.5, progress=False)": (
        "candidates=2.5: give a whole number, 1 or more."
    ),
    "effects.top(1.5)": "k=1.5: give a whole number, 0 or more.",
    "effects.top('3')": "k='3': give a whole number, 0 or more.",
    "effects.drop_most_harmful(1.5)": "k=1.5: give a whole number, 0 or more.",
    "effects.interval(OUT, resamples=0)": "resamples=0: give a whole number, 1 or more.",
    "effects.interval(OUT, level='95%')": "level='95%': give a number.",
    "effects.interval(OUT, level=95)": "level=95: a confidence level lies between 0 and 1, such as 0.95.",
    "effects.degenerate(rtol=1)": "rtol=1: a relative difference lies between 0 and 1, such as 1e-5.",
    "controls.random_selection(effects, {OUT: [0]}, match='norm')": (
        "match='norm': it is one of 'count', 'energy'. Choose one."
    ),
    "matched(Gains(torch.ones(3), 1.0), None, by='norm')": (
        "by='norm': it is one of 'count', 'energy', 'spectrum'. Choose one."
    ),
    "controls.by_strength(effects, 1.5)": "k=1.5: give a whole number, from 0 to 32.",
    "controls.compare(model, tokens, metric, effects, ks=5)": "ks=5: give one or more whole numbers in a list.",
    "controls.compare(model, tokens, metric, effects, ks=[1.5])": "ks[0]=1.5: give a whole number, 1 or more.",
    "controls.compare(model, tokens, metric, {OUT: [0]})": (
        f"effects={{'{OUT}': [0]}}: give what an attribution returned, or effects of patching."
    ),
    # Which components.
    "Selection({OUT: [1.5]})": (
        f"the selection of '{OUT}' is [1.5]: name each component once, counting from 0, the strongest, in a list such "
        "as [0, 3], or [(0, 1), 3] where some go together."
    ),
    "Selection({OUT: 3})": (
        f"the selection of '{OUT}' is 3: name each component once, counting from 0, the strongest, in a list such as "
        "[0, 3], or [(0, 1), 3] where some go together."
    ),
    "Selection({OUT: [True]})": (
        f"the selection of '{OUT}' is [True]: name each component once, counting from 0, the strongest, in a list such "
        "as [0, 3], or [(0, 1), 3] where some go together."
    ),
    "Selection([OUT])": f"a selection of ['{OUT}']: give the components of each matrix, {{site: [0, 3]}}.",
    "gradient(sites=3)": (
        "3 is not a pattern but of type int: give a string such as 'blocks.*.mlp.W_out', or a list of these."
    ),
    "gradient(sites={OUT: Drop([0])})": (
        f"the selection of '{OUT}' is Drop(components=[0]): name each component once, counting from 0, the strongest, "
        "in a list such as [0, 3], or [(0, 1), 3] where some go together."
    ),
    "attribution.interactions(model, tokens, metric, OUT)": (
        f"selection='{OUT}': give a Selection, such as effects.top(10), or {{site: [0, 3]}}."
    ),
    "gradient(svds={})": "svds={} is a dict: give what surgery.decompose(model, ...) returned, or Decompositions().",
    "patching.steering_hooks(model, OUT, 0, factor=1.0, svds={})": (
        "svds={} is a dict: give what surgery.decompose(model, ...) returned, or Decompositions()."
    ),
    "attribution.by_path(model, tokens, metric, SPEC, svds=[])": (
        "svds=[] is a list: give what surgery.decompose(model, ...) returned, or Decompositions()."
    ),
    # Positions.
    "patch(direction='forwards')": "direction='forwards': it is one of 'denoising', 'noising'. Choose one.",
    "patch(positions=2)": "positions=2: give one or more whole numbers in a list.",
    "patch(positions=[1.5])": "positions[0]=1.5: give a whole number, from -7 to 6.",
    "patch(positions=[True])": "positions[0]=True: give a whole number, from -7 to 6.",
    "patch(positions=torch.tensor([1, 2])).positions": "(1, 2)",
    **{
        f"patching.steering_hooks(model, OUT, 0, factor=1.0, positions={given})": (
            f"positions is {shown}: it is 'all', a column, a slice or list of columns, whole numbers [example], one "
            "column for each, or booleans [example pos]. Give one of these."
        )
        for given, shown in {
            "1.5": "1.5",
            "True": "True",
            "[True, False]": "[True, False]",
            "'each'": "'each'",
            "None": "None",
            "slice(0.5, 2)": "slice(0.5, 2, None)",
            "torch.tensor([True, False])": "a torch.bool tensor of shape (2,)",
            "torch.tensor(1)": "a torch.int64 tensor of shape ()",
            "torch.ones(2)": "a torch.float32 tensor of shape (2,)",
        }.items()
    },
    # Steering.
    "patching.steering_hooks(model, OUT, [0, 1], factor=1.0)": "component=[0, 1]: give a whole number, 0 or more.",
    "patching.steering_hooks(model, OUT, 0.0, factor=1.0)": "component=0.0: give a whole number, 0 or more.",
    "patching.steering_hooks(model, OUT, 0, amount='3')": "amount='3': give a number.",
    "patching.steering_hooks(model, OUT, 0, amount=float('nan'))": "amount=nan: give a finite number.",
    "patching.steering_hooks(model, OUT, 0, factor=float('inf'))": "factor=inf: give a finite number.",
    "patching.fwd_hooks(model, OUT, 3, torch.ones(2, 7, 1))": "components=3: give one or more whole numbers in a list.",
    "patching.scaling_hooks(model, OUT, [1.0])": (
        f"the gains of '{OUT}' are [1.0]: give a tensor [example component]."
    ),
    "patching.hook_point(model, '*.W_out')": (
        "'*.W_out' names 2 matrices, from blocks.0.mlp.W_out to blocks.1.mlp.W_out: hooks are made for one. Name it."
    ),
    # Metrics.
    "metrics.logit(1.5)": (
        "answers of dtype torch.float32 and shape (): they are token ids or words, one for all examples or "
        "[batch] one for each, or ids [batch answers], rows filled up with -100. Pass one of these."
    ),
    "metrics.logit(True)": (
        "answers of dtype torch.bool and shape (): they are token ids or words, one for all examples or "
        "[batch] one for each, or ids [batch answers], rows filled up with -100. Pass one of these."
    ),
    "metrics.logit(None)": (
        "answers None: they are token ids or words, one for all examples or [batch] one for each, or ids [batch "
        "answers], rows filled up with -100. Pass one of these."
    ),
    "metrics.logit([[1], [2, 3]])": (
        "answers [[1], [2, 3]]: they are token ids or words, one for all examples or [batch] one for each, or ids "
        "[batch answers], rows filled up with -100. Pass one of these."
    ),
    "metrics.logit(1, position=True)": (
        "positions of dtype torch.bool and shape (): they are a column, [batch] one column for each example, a slice, "
        "or None for the last real token. Pass one of these."
    ),
    "metrics.logit(1, position='last')": (
        "positions 'last': they are a column, [batch] one column for each example, a slice, or None for the last real "
        "token. Pass one of these."
    ),
    "metrics.logit(1, position=slice(0.5, None))": (
        "position=slice(0.5, None, None): slice indices must be integers or None or have an __index__ method. Give "
        "whole numbers, such as slice(1, None)."
    ),
    "gradient(metric=metrics.logit([1, 2, 3]))": (
        "the metric was made for 3 examples, the tokens are 2: give it one answer an example, or one for all (several "
        "for one example are a row, [[3, 5]])."
    ),
    "metrics.kl_from_run(model, tokens, batch_size=0)": "batch_size=0: give a whole number, 1 or more.",
    "gradient(attention_mask='11')": (
        "attention_mask='11': it is [batch pos], 1 on tokens and 0 on padding. Pass the one that goes with the tokens."
    ),
}

_RUNS = {
    "by_gradient": "attribution.by_gradient(model, t, metric, OUT, progress=False)",
    "by_path": "attribution.by_path(model, t, metric, SPEC, progress=False)",
    "screen": "attribution.screen(model, t, metric, OUT, candidates=2, choose=1, progress=False)",
    "patching": "patching.by_component(model, t, t, metric, {OUT: [0]}, progress=False)",
    "compare": "controls.compare(model, t, metric, effects, ks=[1], draws=1, progress=False)",
}
CASES |= {f"warned(lambda t: {run})": "[('<string>', 1)]" for run in _RUNS.values()}
"""A warning of padding comes once, and from the user's own line."""

CODE = """
import json, sys, warnings
warnings.simplefilter("ignore")
import torch
from types import SimpleNamespace
sys.path.insert(0, {tests!r})
import models
from analyses import attribution, controls, metrics, patching
from analyses.attribution import Selection
from surgery import Drop, Gains
from surgery.controls import matched
OUT = {out!r}
model, tokens, SPEC = models.build("bridge gpt2"), models.tokens(2), {{OUT: Drop([0])}}
metric = metrics.logit(3, higher_is_better=True)
def gradient(sites=OUT, metric=metric, **more):
    return attribution.by_gradient(model, tokens, metric, sites, progress=False, **more)
def ablation(**more):
    return attribution.by_ablation(model, tokens, metric, Selection({{OUT: [0]}}), progress=False, **more)
def patch(**more):
    return patching.by_component(model, tokens, tokens, metric, Selection({{OUT: [0]}}), progress=False, **more)
def warned(run):
    "Where warnings of padding came from."
    model.tokenizer = SimpleNamespace(
        pad_token="<pad>", pad_token_id=0, unk_token_id=None, bos_token_id=1, eos_token_id=1
    )
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("default")
        run(torch.tensor([[1, 5, 6, 7], [1, 5, 0, 0]]))
    model.tokenizer = None
    return [(one.filename, str(one.message).count("padding token")) for one in caught]
effects = gradient()
def answer(text):
    try:
        return repr(eval(text))
    except (TypeError, ValueError) as error:
        return str(error)
    except Exception as error:
        return repr(error)
json.dump([answer(text) for text in json.load(sys.stdin)], sys.stdout)
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": str(HERE.parent)}
    command = [sys.executable, "-c", CODE.format(tests=str(HERE), out=OUT)]
    result = subprocess.run(
        command, input=json.dumps(list(CASES)), env=environment, capture_output=True, text=True, timeout=240
    )
    assert result.returncode == 0, result.stderr
    return dict(zip(CASES, json.loads(result.stdout), strict=True))


@pytest.mark.parametrize("text", CASES)
def test_an_argument_that_means_nothing_is_refused_in_words(text: str, answers: dict[str, str]) -> None:
    assert answers[text] == CASES[text]
