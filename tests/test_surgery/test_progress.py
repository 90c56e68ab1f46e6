"""Progress bars are shown, and are not where they are switched off: by an argument, or by the environment."""

import subprocess
import sys

import pytest

SHOW = """
import time
from surgery.progress import progress_bar
for _ in progress_bar("waiting", range(3), progress={progress}):
    time.sleep(0.6)
with progress_bar("counting", progress={progress}, total=2) as bar:
    time.sleep(1.1)
    bar.update(2)
"""


@pytest.mark.parametrize(
    ("progress", "environment", "shown"), [(True, {}, True), (False, {}, False), (True, {"TQDM_DISABLE": "1"}, False)]
)
def test_a_bar_is_shown_after_a_second_unless_it_is_switched_off(
    progress: bool, environment: dict[str, str], shown: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("TQDM_DISABLE", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    command = [sys.executable, "-c", SHOW.format(progress=progress)]
    said = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stderr
    assert all((f"{name}: 100%" in said) == shown for name in ("waiting", "counting"))
