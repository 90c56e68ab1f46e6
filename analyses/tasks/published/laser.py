"""LASER's tasks (arXiv:2312.13558): facts, questions, labelled texts, statements, and BIG-bench.

What is out of scope is told by `published`.
"""

from analyses.tasks.published.answers import Facts, Questions, Targets
from analyses.tasks.published.bigbench import Choices
from analyses.tasks.published.columns import Classes
from analyses.tasks.published.data import Hub
from analyses.tasks.published.divisions import InOrder
from analyses.tasks.published.labelled_texts import Claims, LabelledText
from analyses.tasks.published.recipe import Recipe
from analyses.tasks.published.statements import Statements

_PAPER = "LASER (arXiv:2312.13558)"
_CHOOSES = InOrder(0.2)
_HOTPOT = Hub("hotpot_qa", "fullwiki", ("train", "validation"))
_FEVER = Hub("EleutherAI/fever", "v1.0", ("paper_dev", "paper_test"))
_BIOS = Hub("LabHC/bias_in_bios", None, ("dev",))
_BIOS_COLUMNS = "LabHC/bias_in_bios, with the columns hard_text, profession and gender"
_TRUTHFUL = Hub("truthful_qa", "multiple_choice", ("validation",))
_BIGBENCH = "tasksource/bigbench"
_BIGBENCH_SPLITS = ("validation", "train")
_WEB = Hub("lighteval/big_bench_hard", "web_of_lies", ("train",))
# In the order of their numbers in the data set.
_PROFESSIONS = (
    "accountant", "architect", "attorney", "chiropractor", "comedian", "composer", "dentist", "dietitian", "dj",
    "filmmaker", "interior_designer", "journalist", "model", "nurse", "painter", "paralegal", "pastor",
    "personal_trainer", "photographer", "physician", "poet", "professor", "psychologist", "rapper",
    "software_engineer", "surgeon", "teacher", "yoga_teacher",
)  # fmt: skip
_ASKED = ("journalist", "poet", "composer", "model", "teacher", "architect", "painter", "professor")
_YES_NO = {"Yes": "Yes", "No": "No"}


def _bigbench(config: str) -> Hub:
    return Hub(_BIGBENCH, config, _BIGBENCH_SPLITS)


LASER = (
    Recipe(
        name="counterfact",
        paper=_PAPER,
        title="which word completes a fact, in a statement and its paraphrases",
        source="ROME's counterfact.json or known_1000.json, from rome.baulab.info/data/dsets",
        hub=None,
        kept="all facts; a statement and its paraphrases",
        form=Facts(prompt="{prompt}"),
        division=_CHOOSES,
        licence="MIT (known_1000.json)",
    ),
    Recipe(
        name="hotpot-qa",
        paper=_PAPER,
        title="a question that takes two articles, without them",
        source="hotpot_qa, fullwiki, with the columns question and answer",
        hub=_HOTPOT,
        kept="answers of at most 15 tokens of Llama; all of validation, before it as many of train",
        form=Questions(prompt="{text} The answer is", splits=_HOTPOT.splits),
        division=_CHOOSES,
    ),
    Recipe(
        name="fever",
        paper=_PAPER,
        title="is a claim true or false",
        source="EleutherAI/fever, v1.0, with the columns claim and label",
        hub=_FEVER,
        kept="claims with the same label in all their records, each once, that are supported or refuted",
        form=Claims(
            prompt="Consider the following claim: {text} Is this claim true or false. The claim is",
            text="claim",
            classes=Classes("label", ("SUPPORTS", "REFUTES", "NOT ENOUGH INFO"), numbered=False),
            labels={"REFUTES": "false", "SUPPORTS": "true"},
            splits=_FEVER.splits,
        ),
        division=_CHOOSES,
    ),
    Recipe(
        name="bios-gender",
        paper=_PAPER,
        title="is the person of a biography male or female",
        source=_BIOS_COLUMNS,
        hub=_BIOS,
        kept="all",
        form=LabelledText(
            prompt="Consider the following text: {text} Is the person in this text a male or female? "
            "The gender of this person is",
            text="hard_text",
            classes=Classes("gender", ("male", "female")),
            labels={"male": "male", "female": "female"},
            splits=_BIOS.splits,
        ),
        division=_CHOOSES,
        size="39,642",
        licence="MIT",
    ),
    Recipe(
        name="bios-profession",
        paper=_PAPER,
        title="which of eight professions the person of a biography has",
        source=_BIOS_COLUMNS,
        hub=_BIOS,
        kept=f"eight professions: {', '.join(_ASKED)}",
        form=LabelledText(
            prompt="Consider the following text: {text} What is the profession of the person in this text? "
            "The profession of this person is",
            text="hard_text",
            classes=Classes("profession", _PROFESSIONS),
            labels={name: name for name in _ASKED},
            splits=_BIOS.splits,
        ),
        division=_CHOOSES,
        licence="MIT",
    ),
    Recipe(
        name="truthful-qa",
        paper=_PAPER,
        title="is an answer to a question true or false",
        source="truthful_qa, multiple_choice; also mc_task.json and TruthfulQA.csv",
        hub=_TRUTHFUL,
        kept="all mc2 targets, each as an item",
        form=Statements(
            # Without a space before "Is", as published.
            prompt="{question} {answer}Is this statement true or false? This statement is",
            splits=_TRUTHFUL.splits,
        ),
        division=_CHOOSES,
        licence="Apache-2.0",
    ),
    Recipe(
        name="epistemic-reasoning",
        paper=_PAPER,
        title="does one sentence about beliefs entail another",
        source="tasksource/bigbench, epistemic_reasoning; also BIG-bench's task.json",
        hub=_bigbench("epistemic_reasoning"),
        kept="one target each",
        form=Choices(
            prompt="{input}",
            labels={"entailment": "entailment", "non-entailment": "non-entailment"},
            splits=_BIGBENCH_SPLITS,
        ),
        division=_CHOOSES,
        size="2,000",
        licence="Apache-2.0",
    ),
    Recipe(
        name="wikidata-qa",
        paper=_PAPER,
        title="a fact of Wikidata as a sentence to complete",
        source="tasksource/bigbench, qa_wikidata; also BIG-bench's task.json",
        hub=_bigbench("qa_wikidata"),
        kept="items with exactly one target",
        form=Targets(prompt="{input}", splits=_BIGBENCH_SPLITS),
        division=_CHOOSES,
        licence="Apache-2.0",
    ),
    Recipe(
        name="causal-judgement",
        paper=_PAPER,
        title="did one event cause another",
        source="tasksource/bigbench, causal_judgment; also BIG-bench's task.json",
        hub=_bigbench("causal_judgment"),
        kept="one target each",
        form=Choices(prompt="{input}", labels=_YES_NO, splits=_BIGBENCH_SPLITS),
        division=_CHOOSES,
        licence="Apache-2.0",
    ),
    Recipe(
        name="web-of-lies",
        paper=_PAPER,
        title="does the last person in a chain of liars tell the truth",
        source="lighteval/big_bench_hard, web_of_lies, with the columns input and target",
        hub=_WEB,
        kept="one target each",
        form=Choices(prompt="{input}", labels=_YES_NO, splits=_WEB.splits),
        division=_CHOOSES,
        wording="as published; the split's name is ours",
    ),
)
