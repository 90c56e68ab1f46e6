"""Eigenpruning's tasks (arXiv:2404.03147): arithmetic, and three of SuperGLUE's."""

from analyses.tasks.published.columns import Classes
from analyses.tasks.published.data import Hub
from analyses.tasks.published.divisions import AtRandom, BySplit
from analyses.tasks.published.recipe import Recipe
from analyses.tasks.published.sequences import Arithmetic, Premises

_PAPER = "Eigenpruning (arXiv:2404.03147)"
_MADE = "made here"
_SPLITS = ("train", "validation")
_OURS = "question ours, after the description; the rest as published"


def _superglue(config: str) -> Hub:
    return Hub("super_glue", config, _SPLITS)


EIGENPRUNING = (
    Recipe(
        name="int-mult",
        paper=_PAPER,
        title="products of two numbers below 20",
        source=_MADE,
        hub=None,
        kept="products of one token",
        form=Arithmetic(prompt="{i} x {j} =", operation="product", limit=20),
        division=AtRandom(test=0.2),
        size="400",
        licence="none needed",
    ),
    Recipe(
        name="int-sum",
        paper=_PAPER,
        title="sums of two numbers below 100",
        source=_MADE,
        hub=None,
        kept="sums of one token",
        form=Arithmetic(prompt="{i} + {j} =", operation="sum", limit=100),
        division=AtRandom(test=0.2),
        size="10,000",
        licence="none needed",
    ),
    Recipe(
        name="cb",
        paper=_PAPER,
        title="does a premise entail or contradict a hypothesis, or neither",
        source="super_glue, cb, with the columns premise, hypothesis and label",
        hub=_superglue("cb"),
        kept="records with a label",
        form=Premises(
            prompt="Premise: {premise}\n\nHypothesis: {hypothesis}\n\n"
            "Does the premise entail the hypothesis, contradict it, or is it neutral to it?\n\n"
            "Answer (entails, contradicts, is neutral): The premise",
            texts=("premise", "hypothesis"),
            classes=Classes("label", ("entailment", "contradiction", "neutral")),
            labels={"entailment": "entails", "contradiction": "contradicts", "neutral": "is neutral"},
            splits=_SPLITS,
        ),
        division=BySplit(),
        wording=_OURS,
        size="250 train, 56 validation",
    ),
    Recipe(
        name="rte",
        paper=_PAPER,
        title="does a premise entail a hypothesis",
        source="super_glue, rte, with the columns premise, hypothesis and label",
        hub=_superglue("rte"),
        kept="records with a label",
        form=Premises(
            prompt="Premise: {premise}\n\nHypothesis: {hypothesis}\n\n"
            "Does the premise entail the hypothesis or contradict it?\n\n"
            "Answer (entails or contradicts): The premise",
            texts=("premise", "hypothesis"),
            classes=Classes("label", ("entailment", "not_entailment")),
            labels={"entailment": "entails", "not_entailment": "contradicts"},
            splits=_SPLITS,
        ),
        division=BySplit(),
        wording=_OURS + "; the first token of a label is compared, where the paper's code takes the second",
        size="2,490 train, 277 validation",
    ),
    Recipe(
        name="copa",
        paper=_PAPER,
        title="which of two alternatives is the cause or the effect",
        source="super_glue, copa, with the columns premise, choice1, choice2, question and label",
        hub=_superglue("copa"),
        kept="records with a label",
        form=Premises(
            prompt="Premise: {premise}\n\n{question}\n\nAlternative 1: {choice1}\n\nAlternative 2: {choice2}\n\n"
            "The correct alternative is alternative",
            texts=("premise", "choice1", "choice2"),
            questions={"cause": "What was the cause of this?", "effect": "What was the effect of this?"},
            classes=Classes("label", ("choice1", "choice2")),
            labels={"choice1": "1", "choice2": "2"},
            splits=_SPLITS,
        ),
        division=BySplit(),
        wording="questions and line breaks ours, after the description; the rest as published",
        size="400 train, 100 validation",
    ),
)
