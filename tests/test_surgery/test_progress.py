"""Progress bars are shown, and are not where they are switched off: by an argument, or by the environment."""

import subprocess
import sys
import time

import pytest

from surgery.progress import progress_bar


@pytest.mark.parametrize("progress", [True, False])
def test_bars_are_shown_after_a_second_where_they_are_asked_for(
    progress: bool, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = time.time()
    monkeypatch.setattr("tqdm.std.time", lambda: now)
    for _ in progress_bar("waiting", range(3), progress=progress):
        now += 0.6
    with progress_bar("counting", progress=progress, total=2) as bar:
        now += 1.1
        bar.update(2)
    for _ in progress_bar("quick", range(3), progress=progress):
        now += 0.1
    said = capsys.readouterr().err
    assert [f"{name}: 100%" in said for name in ("waiting", "counting", "quick")] == [progress, progress, False]


def test_the_environment_switches_bars_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TQDM_DISABLE", "1")
    code = "from surgery.progress import progress_bar; print(progress_bar('waiting', range(3), progress=True).disable)"
    command = [sys.executable, "-c", code]
    assert subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout == "True\n"
