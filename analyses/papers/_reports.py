"""What a run says of itself: a Markdown page with tables, and figures as web pages beside it."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.util import find_spec
from math import isnan
from pathlib import Path
from typing import final

import pandas as pd
import plotly.graph_objects as go
import plotly.io as pio

from surgery.files import whole_file

NOT_AT_HAND = "not at hand"
"""What a table says where a paper's own number is not known from its text."""


@final
@dataclass(frozen=True, slots=True)
class Section:
    """A heading, paragraphs, tables, and the names of figures that belong here."""

    title: str
    paragraphs: Sequence[str] = ()
    tables: Sequence[pd.DataFrame] = ()
    figures: Sequence[str] = ()


@final
@dataclass(frozen=True, slots=True)
class Report:
    """A page: a title, what came out in a few sentences, and sections."""

    title: str
    summary: Sequence[str]
    sections: Sequence[Section]

    def markdown(self) -> str:
        """The page as Markdown."""
        lines = [f"# {self.title}", "", *_spaced(self.summary)]
        for section in self.sections:
            lines += [f"## {section.title}", "", *_spaced(section.paragraphs)]
            for table in section.tables:
                lines += [markdown_table(table), ""]
            lines += _spaced([_link(figure) for figure in section.figures])
        return "\n".join(lines).rstrip() + "\n"


def markdown_table(frame: pd.DataFrame) -> str:
    """A table as Markdown, numbers to three decimals, nothing where there is none."""
    rows = [[_cell(value) for value in row] for row in frame.itertuples(index=False, name=None)]
    numeric = [pd.api.types.is_numeric_dtype(dtype) for dtype in frame.dtypes]
    lines = [
        [_cell(str(column)) for column in frame.columns],
        ["--:" if is_one else "---" for is_one in numeric],
        *rows,
    ]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def write_figures(folder: Path, figures: Mapping[str, go.Figure]) -> list[str]:
    """Write figures as `figures/NAME.html`, which open offline, and as PNG if kaleido can; the names of the files.

    All pages share one copy of plotly's program, `figures/plotly.min.js`.
    """
    (folder / "figures").mkdir(exist_ok=True)
    pages = {name: folder / "figures" / f"{name}.html" for name in figures}
    for name, path in pages.items():
        with whole_file(path) as file:
            figures[name].write_html(file, include_plotlyjs="directory")
    pictures: list[str | Path] = [path.with_suffix(".png") for path in pages.values()]
    drawn = find_spec("kaleido") is not None and _have_png(list(figures.values()), pictures)
    endings = ("html", "png") if drawn else ("html",)
    return [f"figures/{name}.{ending}" for name in figures for ending in endings]


def percent(value: float) -> str:
    """A fraction as a percentage with one decimal."""
    return "" if isnan(value) else f"{100 * value:.1f} %"


def _have_png(figures: list[go.Figure], paths: list[str | Path]) -> bool:
    """Write figures as PNG, if kaleido and its browser, which is started once for all, work here."""
    try:
        pio.write_images(figures, paths, scale=2)
    except Exception:  # kaleido without a browser raises errors of several libraries
        for path in paths:
            Path(path).unlink(missing_ok=True)
        return False
    return True


def _spaced(paragraphs: Sequence[str]) -> list[str]:
    return [line for paragraph in paragraphs for line in (paragraph, "")]


def _link(figure: str) -> str:
    return (
        f"![{Path(figure).stem}]({figure})" if figure.endswith(".png") else f"Figure: [{Path(figure).stem}]({figure})"
    )


def _cell(value: object) -> str:
    if value is None or value is pd.NA or (isinstance(value, float) and isnan(value)):
        return ""
    text = f"{value:.3f}" if isinstance(value, float) else str(value)
    return text.replace("|", "\\|").replace("\n", " ")
