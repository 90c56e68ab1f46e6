"""LASER's tasks (arXiv:2312.13558): facts, questions, labelled texts, statements, and BIG-bench."""

from analyses.tasks.published.columns import Classes
from analyses.tasks.published.data import Hub
from analyses.tasks.published.divisions import InOrder
from analyses.tasks.published.labelled_texts import LabelledText
from analyses.tasks.published.recipe import Recipe

_PAPER = "LASER (arXiv:2312.13558)"
_BIOS = Hub("LabHC/bias_in_bios", None, ("dev",))
# By their numbers in the data set.
_PROFESSIONS = (
    "accountant", "architect", "attorney", "chiropractor", "comedian", "composer", "dentist", "dietitian", "dj",
    "filmmaker", "interior_designer", "journalist", "model", "nurse", "painter", "paralegal", "pastor",
    "personal_trainer", "photographer", "physician", "poet", "professor", "psychologist", "rapper",
    "software_engineer", "surgeon", "teacher", "yoga_teacher",
)  # fmt: skip

LASER = (
    Recipe(
        name="bios-gender",
        paper=_PAPER,
        title="is the person of a biography male or female",
        source="LabHC/bias_in_bios, split dev (columns hard_text, profession, gender)",
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
        division=InOrder(0.2),
        size="39,642 biographies in dev",
        licence="MIT",
    ),
)
