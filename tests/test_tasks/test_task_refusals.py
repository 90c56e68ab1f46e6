"""What tasks, scoring and the papers' methods say to arguments that could be read in another way.

The rest of the suite runs with every annotated signature checked, so these run in a Python of their own.
"""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

CASES = {
    # Items and tasks
    "AnswerItem('p', ' Rome')": "the answers are ' Rome': they are a tuple of texts, each a string or a tuple",
    "AnswerItem('p', (1, 2))": "the answers are (1, 2): they are a tuple of texts",
    "AnswerItem('p', ([1, 2],))": "the answers are ([1, 2],): they are a tuple of texts",
    "AnswerItem('p', ((1, True),))": "the answers are ((1, True),): they are a tuple of texts",
    "AnswerItem('p', (' a',), ' b')": "the distractors are ' b': they are a tuple of texts",
    "AnswerItem([1, 2], (' a',))": "the prompt is [1, 2]: it is a string, or a tuple of token ids.",
    "AnswerItem('p', (' a',), groups='fact 7')": "the groups are 'fact 7': they are a tuple of names. A single one is",
    "ChoiceItem('p', 'ab', (0,))": "the labels are 'ab': they are a tuple of texts",
    "ChoiceItem('p', ('a', 'b'), 1)": "correct=1 with 2 labels: it is a tuple of different positions from 0 to 1",
    "Task('t', list(items))": "task 't' is given items=[AnswerItem(",
    "Task('t', ('a', 'b'))": "task 't' is given items=('a', 'b'): they are a tuple of AnswerItem, ChoiceItem or",
    "task.take([True, False, True])": "a position to take=True: give a whole number, from 0 to 11.",
    "task.take(torch.tensor([True, False]))": "a position to take=True: give a whole number",
    "task.take([1.0])": "a position to take=1.0: give a whole number",
    "task.take([12])": "a position to take=12: give a whole number, from 0 to 11.",
    "task.split(seed=None)": "seed=None: give a whole number, from 0 to",
    "task.split(seed=True)": "seed=True: give a whole number",
    "task.split(seed=1.5)": "seed=1.5: give a whole number",
    "task.split(screen='0.5', seed=0)": "screen='0.5': give a number.",
    "task.split(screen=float('nan'), seed=0)": "the fractions screen=nan, validation=0.2, test=0.7 sum to nan: they",
    "Splits(list(items), task, task)": "screen=[AnswerItem(",
    "Splits(task[:0], texts, texts)": "12 items of validation are in test too, such as AnswerItem(",
    "Splits(task[:0], texts[:1], texts)": "1 item of validation are in test too",
    # Readers
    "tasks.from_records({'prompt': ['a'], 'answer': ['b']})": "records={'prompt': ['a'], 'answer': ['b']}: give a list",
    "tasks.from_records('facts.jsonl')": "records='facts.jsonl': give a list of dicts, one for each item, or a DataF",
    "tasks.from_records([['a', 'b']])": "record 0 of 'records' is ['a', 'b']: give a dict of named fields for each i",
    "tasks.from_records([{'prompt': 'a', 'correct': 0}], labels='yes')": "labels='yes' is one string: give a list of",
    "tasks.from_records([{'prompt': 'a', 'correct': 0}], labels=['a', 1])": "labels=['a', 1]: give a list of strings",
    "tasks.from_records([{'prompt': 'a', 'answer': 'b'}], correct_is='index')": "correct_is='index': it is one of None",
    "tasks.from_datasets([{'prompt': 'a', 'answer': 'b'}])": "dataset=[{'prompt': 'a', 'answer': 'b'}]: give a loaded",
    "tasks.from_datasets({'train': 1, 'test': 2})": "dataset is a dict with 'train', 'test': a task is made of one s",
    "tasks.from_counterfact('x.json', prompts='rewrite')": "prompts='rewrite': CounterFact has ('rewrite', 'paraphra",
    "tasks.from_truthfulqa('x.csv', form='mc1')": "form='mc1': it is one of 'best', 'binary', 'statements'.",
    "tasks.from_bigbench('x.json', shuffle_seed=True)": "shuffle_seed=True: give a whole number",
    "tasks.ioi(4, seed=0, names='Tom')": "names='Tom' is one string: give a list of strings, such as ['Tom'].",
    "tasks.ioi(4, seed=0, templates='{a} {b} {s}')": "templates='{a} {b} {s}' is one string",
    "tasks.ioi(4.0, seed=0)": "n=4.0: give a whole number, 1 or more.",
    "tasks.ioi(4, seed=None)": "seed=None: give a whole number",
    "tasks.greater_than(4, seed=0, nouns='war')": "nouns='war' is one string",
    "tasks.addition(2.5)": "limit=2.5: give a whole number, 1 or more.",
    "Task('t', items, rule='Contains')": "task 't' is given rule='Contains': a task names its rule, as in",
    "tasks.NamedRule('not a name')": "name='not a name': give the name of a rule of scoring, such as 'Contains'.",
    "tasks.recipe('bios-gender').task([], per='bytes')": "per='bytes': it is one of 'sequence', 'token', 'byte'",
    "tasks.recipe('counterfact').task([], prompts='rewrites')": "prompts=('rewrites',): CounterFact has rewrite, para",
    "tasks.recipe('counterfact').task([], says='Contains')": "says='Contains': it is one of 'SaysNext', 'StartsWith'",
    "tasks.recipe('hotpot-qa').task([], tokenizer=3)": "tokenizer=3: give a tokenizer, such as model.tokenizer, or a",
    "tasks.recipe('truthful-qa').task([], labels=('true', 'true'))": "labels=('true', 'true'): give two, for a true",
    "tasks.recipe('web-of-lies').task([], labels={'Yes': 'Yes'})": "labels={'Yes': 'Yes'}: give a dict with the label",
    "tasks.recipe('int-mult').task(operation='power')": "operation='power': it is one of 'sum', 'product'.",
    # Scoring
    "scoring.score(model, splits)": "task=Splits(screen=Task(",
    "scoring.score(model, ['a', 'b'])": "task=['a', 'b']: give a Task or a list of items. Read a file with",
    "scoring.score(model, [])": "task=[]: give a Task or a list of items.",
    "scoring.score(model, task, rule=scoring.Contains)": "rule=<class 'analyses.scoring._generating_rules.Contains'>",
    "scoring.score(model, task, rule='contains')": "rule='contains': give a rule, such as StartsWith() or Contains(10)",
    "scoring.score(model, task, batch_size=1.5)": "batch_size=1.5: give a whole number, 1 or more.",
    "scoring.score(model, task, batch_size='2')": "batch_size='2': give a whole number, 1 or more.",
    "scoring.score(model, task, padding='Left')": "padding='Left': it is one of 'right', 'left'. Choose one.",
    "scoring.score(model, task, prepend_bos='no')": "prepend_bos='no': give True, False, or None for the model's own",
    "scoring.Contains(2.5)": "Contains was given n_tokens=2.5: give a whole number, 1 or more.",
    "scoring.StartsWith('token')": "StartsWith was given per='token': it is one of 'sequence', 'first'. Choose one.",
    "scoring.Likeliest('tokens')": "Likeliest was given per='tokens': it is one of 'sequence', 'token'",
    "scores.top(1.5)": "k=1.5: give a whole number, 1 or more.",
    "scoring.compare(scores, scores, level='0.9')": "level='0.9': give a number.",
    "scoring.compare(scores, scores, resamples=10.5)": "resamples=10.5: give a whole number, 1 or more.",
    "scoring.compare(scores, scores, seed=None)": "seed=None: give a whole number",
    "scoring.text_loss(model, [1, 2, 3])": "text=[1, 2, 3]: give a string, a tensor of token ids [pos], or rows of t",
    "scoring.text_loss(model, torch.ones(5))": "text=tensor([1., 1., 1., 1., 1.]): give a string",
    "scoring.text_loss(model, ids, batch_size=0)": "batch_size=0: give a whole number, 1 or more.",
    "scoring.text_loss(model, ids, context=2)": "context=2 is given with rows of 4 token ids, which are windows alre",
    # LASER
    "laser.search(model, ['a'])": "task=['a']: give a Task, Splits, or a list of items.",
    "laser.search(model, task, rhos=0.5)": "rhos=0.5: give a list of fractions of the full rank, such as (0.5, 0.1).",
    "laser.search(model, task, rhos='0.5')": "rhos='0.5': give a list of fractions of the full rank",
    "laser.search(model, task, rhos=(0.5, True))": "rho=True: give a number.",
    "laser.search(model, task, edits=KeepTop)": "edits=<class 'surgery.cuts.KeepTop'>: give a list of what to try",
    "laser.search(model, task, edits=KeepTop(rank=1))": "edits=KeepTop(rank=1): give a list of what to try",
    "laser.search(model, task, edits={'a': KeepTop})": "edits={'a': <class 'surgery.cuts.KeepTop'>}: give a list",
    "laser.search(model, task, seed=1.5)": "seed=1.5: give a whole number",
    "laser.search(model, task, batch_size=1.5)": "batch_size=1.5: give a whole number, 1 or more.",
    "laser.search(model, task, memory='2GiB')": "memory='2GiB': give a whole number, 1 or more.",
    "laser.compose(model, splits, seed=None)": "seed=None: give a whole number",
    "laser.rank_curve(model, splits, W)": "task=Splits(screen=Task(",
    "laser.random_controls(model, task, {W: KeepTop(rank=1)}, draws=1.5)": "draws=1.5: give a whole number",
    "laser.Screened(items=2.5)": "Screened was given items=2.5: give a whole number, 1 or more.",
    "laser.Screened(keep=True)": "keep=True: give a number.",
    "laser.published_distance(model, W, rhos=0.5)": "rhos=0.5: give a list of fractions",
    "laser.by_frequency(change, lambda item: float('nan'))": "frequency=nan: every item needs a finite one.",
    "laser.by_frequency(change, lambda item: '3')": "frequency='3': give a number.",
    "laser.by_frequency(change, [1.0] * 12, bins=2.5)": "bins=2.5: give a whole number, 1 or more.",
    # Eigenpruning
    "eigenpruning.attribute(model, splits, W)": "task=Splits(screen=Task(",
    "eigenpruning.attribute(model, task, W, seed=None)": "seed=None: give a whole number",
    "eigenpruning.attribute(model, task, W, reduce=('quantile', True))": "reduce=('quantile', True): scores are redu",
    "eigenpruning.attribute(model, task, W, corrupt=['ab', 'cd'])": "corrupt holds 'ab': give pairs of a clean and a",
    "eigenpruning.attribute(model, task, W, corrupt=[((1,), (2,)), ((1,), (3,))])": "corrupt names two corrupted pro",
    "eigenpruning.prune(model, task, W, fraction=True)": "fraction=True: a fraction of the components to remove",
    "eigenpruning.Best(of=0.2)": "Best(of=0.2): give fractions to choose among, such as (0, 0.1, 0.2).",
    "eigenpruning.Best(of='0.2')": "Best(of='0.2'): give fractions to choose among, such as (0, 0.1, 0.2).",
    "eigenpruning.Best(())": "Best(of=()): give fractions to choose among, such as (0, 0.1, 0.2).",
    "eigenpruning.Best((0.1, 2))": "Best was given of=2: give a fraction, from 0 to 1.",
    "eigenpruning.Best([0, 1]).of": "(0.0, 1.0)",
    "eigenpruning.Report(draws=1.5)": "draws=1.5: give a whole number, 0 or more.",
    "eigenpruning.Report(3)": "Report(3) does not say what 3 is: give it by name, such as Report(draws=3).",
    "eigenpruning.Method('mean')": "Method('mean') does not say what 'mean' is: give it by name, such as Method(redu",
    "eigenpruning.Method(reduce='median')": "reduce='median': scores are reduced by 'max', 'mean', 'mean_abs' or",
    "eigenpruning.Method(budget='layer')": "budget='layer': it is one of 'global', 'type', 'matrix'",
    "eigenpruning.Method(compensation='zero')": "compensation='zero': it is one of 'mean', 'none'. Choose one",
    "eigenpruning.Method(per='byte')": "per='byte': it is one of 'token', 'sequence', 'first'",
    "eigenpruning.attribute(model, task, W, per='byte')": "per='byte': it is one of 'token', 'sequence', 'first'",
    "eigenpruning.attribute(model, task, W, score='ablation')": "score='ablation': give an attribution, such as attrib",
    "eigenpruning.Report(test=0)": "test=0: some items are scored and others reported on. Give 0.2, for instance.",
    "eigenpruning.Report(test=1.5)": "test=1.5: give a fraction, from 0 to 1.",
    "eigenpruning.prune(model, task, W, test=0.2)": "prune(..., test=0.2): write report=Report(test=0.2)",
    "eigenpruning.prune(model, task, W, per='first')": "prune(..., per='first'): write method=Method(per='first')",
    "eigenpruning.FineTuning('epochs')": "FineTuning was given steps='epochs': give a whole number, 1 or more.",
    "eigenpruning.FineTuning(optimizer='adam')": "FineTuning was given optimizer='adam': it is one of 'adamw', 'sgd'",
    "eigenpruning.prune(model, task, W, reduce='mean')": "prune(..., reduce='mean'): write method=Method(reduce=",
    "eigenpruning.prune(model, task, W, compensation='none')": "prune(..., compensation='none'): write method=Meth",
    "eigenpruning.prune(model, task, W, fractions=(0, 1))": "prune(..., fractions=(0, 1)): write fraction=Best(of=(0",
    "eigenpruning.prune(model, task, W, random_controls=5)": "prune(..., random_controls=5): write report=Report(draw",
    "eigenpruning.prune(model, task, W, finetune=None)": "prune(..., finetune=None): write report=Report(finetune=",
    "eigenpruning.prune(model, task, W, batch_size=0)": "batch_size=0",
    "eigenpruning.FineTuning(steps=1.5)": "FineTuning was given steps=1.5: give a whole number, 1 or more.",
    "eigenpruning.FineTuning(lr='1e-4')": "lr='1e-4': give a number.",
    "attributed.lowest(True)": "fraction=True: give a number.",
    "attributed.lowest(0.5, by='scores')": "by='scores': it is one of 'score', 'flipped', 'strength', 'random'.",
    "attributed.lowest(0.5, by='random', seed=None)": "seed=None: give a whole number",
    # Truncation
    "truncation.prompts(model, torch.ones(3), {'correct': 1})": "the prompts are a tensor of shape (3,) and torch.fl",
    "truncation.prompts(model, torch.ones(1, 3), {'correct': 1})": "the prompts are a tensor of shape (1, 3)",
    "truncation.prompts(model, 3, {'correct': 1})": "task=3: give a Task or a list of items.",
    "truncation.prompts(model, splits)": "task=Splits(screen=Task(",
    "truncation.prompts(model, ids, {'correct': True})": "track['correct'] holds True: a token is named by its id",
    "truncation.prompts(model, ids, {'correct': 1.0})": "track['correct'] holds 1.0: a token is named by its id",
    "truncation.prompts(model, ids, {'correct': torch.ones(2)})": "track['correct'] holds 1.0: a token is named",
    "truncation.curve(model, ids, W, track={'correct': 1}, rhos=0.5)": "rhos=0.5: give one or more fractions",
    "truncation.curve(model, ids, W, track={'correct': 1}, rhos=(True,))": "rhos=(True,): give one or more fractions",
    "truncation.curve(model, ids, W, track={'correct': 1}, batch_size=1.5)": "batch_size=1.5: give a whole number, 1",
    "truncation.sweep({0: model}, ids, {W: [0]}, track={'correct': 1})": "{'blocks.0.mlp.W_out': [0]} is not",
    "truncation.sweep({0: {}}, recall_task, track={'correct': 1})": "track, generic and prepend_bos are given with a",
    "truncation.study(recall_task, seeds=3)": "seeds=3: give one or more in a list, for instance (0, 1, 2).",
    "truncation.gradient_steps({0: {}}, recall_task, batch_size=1.5)": "batch_size=1.5: give a whole number",
    "truncation.facts(templates='{subject} is in')": "templates='{subject} is in' is one string: give a list of stri",
    "truncation.facts(templates=['It is in'])": "templates=['It is in']: give one or more, each with {subject} in it.",
    # Arithmetic
    "arithmetic.ArithmeticTask(limit=2.5)": "limit=2.5: give a whole number",
    "arithmetic.ArithmeticTask(alpha='half')": "alpha='half': give a number.",
    "arithmetic.train(model, arithmetic.ArithmeticTask(), steps=2.5)": "steps=2.5: give a whole number",
    "arithmetic.bridge(arithmetic.ArithmeticTask(), seed=None)": "seed=None: give a whole number",
    # Chosen components, where all of a matrix are meant
    "laser.search(model, task, {W: [0]})": "{'blocks.0.mlp.W_out': [0]} is not a pattern but of type dict",
    "laser.compose(model, task, Selection({W: [0]}))": "Selection of 1 component",
    "laser.effective_ranks(model, {W: [0]})": "{'blocks.0.mlp.W_out': [0]} is not a pattern but of type dict",
    "eigenpruning.attribute(model, task, {W: [0]})": "{'blocks.0.mlp.W_out': [0]} is not a pattern but of type dict",
    "eigenpruning.prune(model, task, Selection({W: [0]}))": "Selection of 1 component",
    "eigenpruning.prune(model, task, 3)": "3 is not a pattern but of type int",
    "eigenpruning.attribute(model, task, 3)": "3 is not a pattern but of type int",
    "truncation.curve(model, task, {W: [0]})": "{'blocks.0.mlp.W_out': [0]} is not a pattern but of type dict",
    "truncation.sweep({0: model}, task, 3)": "3 is not a pattern but of type int",
    # What can be read in one way only is read.
    "len(scoring.score(model, list(items)))": "12",
    "len(task.take(torch.tensor([2, 0])))": "2",
    "truncation.prompts(model, ids, {'correct': numpy.array([1, 2])}).track": "{'correct': tensor([1, 2])}",
}

CODE = """
import json, sys, warnings
import numpy, torch
sys.path.insert(0, "tests")
from tiny_tokenizers import bridge_with
from analyses import arithmetic, eigenpruning, laser, recall, scoring, tasks, truncation
from analyses.attribution.effects import Selection
from analyses.tasks import AnswerItem, ChoiceItem, MinimalPair, Splits, Task
from surgery import KeepTop

warnings.simplefilter("ignore")
W = "blocks.0.mlp.W_out"
model = bridge_with(None)
items = tuple(AnswerItem((n, n + 1), ((n + 2,),)) for n in range(1, 13))
task = Task("t", items)
texts = Task("texts", tuple(AnswerItem(f"{n}", (" a",)) for n in range(12)))
splits = task.split(seed=0)
ids = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
scores = scoring.score(model, task)
change = scoring.compare(scores, scores, resamples=10)
attributed = eigenpruning.attribute(model, task, W, progress=False)
recall_task = recall.RecallTask.synthetic(d_vocab=12, n_ctx=16)

def answer(text):
    try:
        return repr(eval(text))
    except (ValueError, TypeError) as error:
        return str(error)

json.dump([answer(text) for text in json.load(sys.stdin)], sys.stdout)
"""


@pytest.fixture(scope="module")
def answers() -> dict[str, str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", CODE],
        input=json.dumps(list(CASES)),
        env=environment,
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert result.returncode == 0, result.stderr
    return dict(zip(CASES, json.loads(result.stdout), strict=True))


@pytest.mark.parametrize("text", CASES)
def test_an_argument_that_could_be_read_in_another_way_is_refused(text: str, answers: dict[str, str]) -> None:
    assert answers[text].startswith(CASES[text])
