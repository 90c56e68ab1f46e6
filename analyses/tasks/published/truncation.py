"""The truncation study's tasks on pretrained models (arXiv:2406.03068): indirect objects, facts, and GSM8K."""

from analyses.tasks.published.answers import Facts
from analyses.tasks.published.data import Hub
from analyses.tasks.published.divisions import Undivided
from analyses.tasks.published.recipe import Recipe
from analyses.tasks.published.truncated import IndirectObjects, WorkedExamples

_PAPER = "Chen, Bruna, Bietti (arXiv:2406.03068)"
_OURS = "ours, after the description"
_GSM8K = Hub("gsm8k", "main", ("test",))

TRUNCATION = (
    Recipe(
        name="pythia-ioi",
        paper=_PAPER,
        title='who receives something: the name, against the other one and " the"',
        source="made here",
        hub=None,
        kept="all",
        form=IndirectObjects(prompt="{scene}"),
        division=Undivided(),
        wording=_OURS,
        size="1,000 of ours",
        licence="none needed",
    ),
    Recipe(
        name="pythia-facts",
        paper=_PAPER,
        title='which word completes a fact, against " the"',
        source="known_1000.json or counterfact.json of ROME, from rome.baulab.info/data/dsets; the choice is ours",
        hub=None,
        kept="all facts, by their statement",
        form=Facts(prompt="{prompt}", prompts=("rewrite",), says="StartsWith", generic=" the"),
        division=Undivided(),
        wording=_OURS,
        size="1,209 in known_1000.json",
        licence="MIT (known_1000.json)",
    ),
    Recipe(
        name="gsm8k",
        paper=_PAPER,
        title="a word problem, after eight worked ones",
        source="gsm8k, main, with the columns question and answer",
        hub=_GSM8K,
        kept='answers with a number after "####"',
        form=WorkedExamples(prompt="Question: {question}\nAnswer:", splits=_GSM8K.splits),
        division=Undivided(),
        wording=_OURS + "; the worked examples are the first eight of train",
        size="1,319",
        licence="MIT",
    ),
)
