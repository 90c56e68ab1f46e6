"""That the table of the benchmarks is whole and true: every script in it, every aim judged, every page quoting it."""

import argparse
import importlib
import json
import re
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"


@pytest.fixture(autouse=True)
def _as_a_script(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


@pytest.fixture
def table() -> ModuleType:
    return importlib.import_module("table")


@pytest.fixture
def pages() -> ModuleType:
    return importlib.import_module("pages")


@pytest.fixture
def driver() -> ModuleType:
    return importlib.import_module("run")


@pytest.fixture
def recorded(table: ModuleType, tmp_path: Path) -> Callable:
    """What a block of a script records."""

    def record(block: Callable[[], object], script: str = "some"):
        file = tmp_path / f"{script}.json"
        try:
            with table.recorded(f"benchmarks/{script}.py", argparse.Namespace(device="cpu", json=file)):
                block()
        finally:
            (run,) = table.read(file)
            found.append(run)
        return run

    found: list = []
    record.found = found  # type: ignore[attr-defined]
    return record


def some_figures(table: ModuleType) -> None:
    table.section("Speed", "a detail")
    table.figure(
        "ours", 2.0, "s", against=table.Against("theirs", 3.0), ratio=table.Ratio(1.5, "x as fast", 1.25, 1.75),
        aim=table.Aim(2),
    )  # fmt: skip
    table.figure("overhead", 1.01, "s", aim=table.Aim(1.02, at_most=True), remark="x | y")
    table.section("Accuracy")
    table.figure("ours", 0.98, "Spearman", lowest=0.95, highest=0.99)


def test_what_is_printed_is_what_is_written(table, recorded, capsys: pytest.CaptureFixture[str]) -> None:
    run = recorded(lambda: some_figures(table))
    printed = capsys.readouterr().out
    assert [str(figure) in printed for figure in run.figures] == [True] * 3
    assert "MISSED (aim >= 2)" in printed and "; met (aim <= 1.02)" in printed
    assert (run.script, run.failed, [figure.met for figure in run.figures]) == ("some", "", [False, True, None])
    assert [figure.section for figure in run.figures] == ["Speed", "Speed", "Accuracy"]


def test_figures_come_back_from_the_file_as_they_were(table, recorded, tmp_path: Path) -> None:
    run = recorded(lambda: some_figures(table))
    table.write(tmp_path / "again.json", [run, run])
    assert table.read(tmp_path / "again.json") == [run, run]
    assert run.figures[0].ratio == table.Ratio(1.5, "x as fast", 1.25, 1.75)
    assert table.read(tmp_path / "nothing.json") == []


def test_a_script_that_fails_keeps_the_figures_that_it_had_found(table, recorded) -> None:
    def block() -> None:
        some_figures(table)
        raise ValueError("no more")

    with pytest.raises(ValueError, match="no more"):
        recorded(block)
    (run,) = recorded.found
    assert (len(run.figures), run.failed) == (3, "ValueError: no more")


def test_the_report_names_every_aim_that_was_missed_and_every_script_that_failed(table, pages, recorded) -> None:
    run = recorded(lambda: some_figures(table))
    failed = recorded(lambda: table.section("none"), "broken")
    failed = type(failed)("broken", "python benchmarks/broken.py", failed.machine, (), 1.0, "ValueError: no more")
    text = pages.report([run, failed], [("python benchmarks/soak.py --minutes 60", "much more")])
    assert "**Of 2 aims 1 were met and 1 missed.**" in text
    assert "- MISSED: some, Speed, ours: 1.5, ≥ 2: **MISSED**" in text
    assert "- FAILED: broken: ValueError: no more" in text
    assert "| some | Speed | ours | 2 s | theirs, 3 s | 1.5 (1.25–1.75) x as fast |  | ≥ 2: **MISSED** |" in text
    assert r"| some | Speed | overhead | 1.01 s |  |  | x \| y | ≤ 1.02: met |" in text
    assert "`python benchmarks/soak.py --minutes 60`" in text


def test_a_page_quotes_tables_columns_and_single_figures(table, pages, recorded) -> None:
    run = recorded(lambda: some_figures(table))
    end = "<!-- /bench -->"
    page = f"It is <!-- bench: some / Speed / ours -->?{end}, <!-- bench: some / Accuracy / ours -->{end}."
    assert (
        re.sub("<!--.*?-->", "", pages.quoted(page, [run])) == "It is 1.5 (1.25–1.75) x as fast, 0.980 (0.950–0.990)."
    )
    assert pages.quoted(pages.quoted(page, [run]), [run]) == pages.quoted(page, [run])
    assert (
        pages.shown("some / Accuracy", [run])
        == "\n\n|  | measured |\n| --- | --- |\n| ours | 0.980 (0.950–0.990) |\n\n"
    )
    assert pages.shown("some / Speed = fast | Accuracy", [run]).split("\n")[2:] == [
        "|  | fast | Accuracy |",
        "| --- | --- | --- |",
        "| ours | 2 s | 0.980 (0.950–0.990) |",
        "| overhead | 1.01 s |  |",
        "",
        "",
    ]
    assert pages.shown("some", [run]).count("\n| ---") == 2 and "**Speed**" in pages.shown("some", [run])
    for wrong in ("some / Sped", "some / Speed / theirs", "some / Speed | Sped"):
        with pytest.raises(KeyError, match="bench: some"):
            pages.shown(wrong, [run])
        assert "not measured yet" in pages.quoted(f"<!-- bench: {wrong} --><!-- /bench -->", [run])
    assert "not measured yet" in pages.shown("another", [run])


def test_a_first_look_is_not_quoted(table, pages, recorded) -> None:
    run = recorded(lambda: some_figures(table))
    quick = type(run)(run.script, f"{run.command} --quick", run.machine, run.figures, run.seconds)
    assert pages.shown("some / Speed / ours", [quick]) == "not measured yet"
    assert "not to be quoted" in pages.report([quick], [])


def test_a_script_that_fails_is_a_row_and_the_others_run(table, driver, tmp_path: Path, monkeypatch, capsys) -> None:
    good = json.dumps([{"script": "good", "command": "python benchmarks/good.py", "machine": {
        "device": "d", "threads": 1, "torch": "2", "transformer_lens": "3", "commit": "c", "date": "today",
    }, "figures": [{"section": "S", "what": "w", "value": 1.0, "unit": "s"}], "seconds": 1.0}])  # fmt: skip
    scripts = {
        "good": f"import sys; open(sys.argv[-1], 'w').write({good!r}); print('fine')",
        "bad": "raise SystemExit('out of memory')",
        "slow": "import time; time.sleep(60)",
        "silent": "pass",
    }
    for name, source in scripts.items():
        (tmp_path / f"{name}.py").write_text(textwrap.dedent(source))
    monkeypatch.setattr(driver, "HERE", tmp_path)
    monkeypatch.setattr(driver, "SCRIPTS", tuple(
        driver.Script(name, timed=name in ("good", "bad"), limit=0.01 if name == "slow" else 1) for name in scripts
    ))  # fmt: skip
    assert driver.main(["--out", str(tmp_path / "out")]) == 1
    runs = {run.script: run for run in table.read(tmp_path / "out" / "results.json")}
    assert list(runs) == ["good", "bad", "slow", "silent"]
    assert {name: run.failed for name, run in runs.items()} == {
        "good": "", "bad": "exit status 1: out of memory", "slow": "given up after 0.01 minutes",
        "silent": "it wrote no figures",
    }  # fmt: skip
    assert [figure.what for figure in runs["good"].figures] == ["w"]
    assert "FAILED, exit status 1: out of memory" in capsys.readouterr().out
    before = (tmp_path / "out" / "results.json").read_text()
    assert driver.main(["--out", str(tmp_path / "out"), "--only", "good"]) == 0
    assert [run.script for run in table.read(tmp_path / "out" / "results.json")] == list(runs), before


def scripts() -> list[str]:
    """Every file that is run, by whether it has a main program."""
    return sorted(
        path.stem for path in BENCHMARKS.glob("*.py") if "__name__ ==" in path.read_text() and path.stem != "run"
    )


def test_every_benchmark_is_in_the_list_or_has_a_command_of_its_own(driver) -> None:
    listed = {script.name for script in driver.SCRIPTS}
    own = {Path(command.split()[1]).stem for command, _ in driver.OWN}
    assert set(scripts()) == listed | own
    readme = (BENCHMARKS / "README.md").read_text(encoding="utf-8")
    assert [name for name in scripts() if f"| `{name}.py" not in readme] == []


def test_every_benchmark_of_the_list_takes_a_device_a_first_look_and_a_file(capsys, driver) -> None:
    for script in driver.SCRIPTS:
        with pytest.raises(SystemExit):
            importlib.import_module(script.name).main(["--help"])
        flags = set(re.findall(r"--[a-z-]+", capsys.readouterr().out))
        assert {"--device", "--quick", "--json"} <= flags, script.name
        assert {flag for flag in script.flags if flag.startswith("--")} <= flags, script.name


def test_every_page_quotes_what_was_measured(table, pages) -> None:
    runs = table.read(BENCHMARKS / "results.json")
    assert not any(run.quick for run in runs)
    for page in pages.pages():
        text = page.read_text(encoding="utf-8")
        assert pages.quoted(text, runs) == text, f"{page.name}: python benchmarks/run.py --write-docs"
    if runs:
        driver = importlib.import_module("run")
        assert (BENCHMARKS / "results.md").read_text(encoding="utf-8") == pages.report(runs, driver.OWN)


def test_every_quote_is_of_a_script_in_the_list_and_can_be_shown(table, pages, driver) -> None:
    runs = table.read(BENCHMARKS / "results.json")
    names = {script.name for script in driver.SCRIPTS}
    for page in pages.pages():
        text = page.read_text(encoding="utf-8")
        quotes = pages.QUOTE.findall(text)
        assert len(quotes) == text.count("<!-- bench:") == text.count("<!-- /bench -->"), page.name
        assert {of.split(" / ")[0] for of, _ in quotes} <= names, page.name
        for of, _ in quotes:
            pages.shown(of, runs)  # a KeyError names what is wrong with a quote
        # A comment that begins a line begins a block of HTML, in which Markdown is not read.
        inline = [of for of, _ in quotes if of.count(" / ") == 2]
        assert [of for of in inline if f"\n<!-- bench: {of} -->" in text] == [], page.name


def test_no_page_states_a_speed_that_it_does_not_quote(pages) -> None:
    for page in pages.pages():
        prose = pages.QUOTE.sub("", page.read_text(encoding="utf-8"))
        assert re.findall(r"\d (?:x|times) (?:as )?(?:fast|faster|as long|less)\b.*", prose) == [], page.name
