"""Evidence about which singular components matter, each piece of which ends in a spec for `surgery.apply`."""

import runpy
from pathlib import Path

# By its place, since a stranger's `surgery` may be what an import would give.
runpy.run_path(str(Path(__file__).resolve().parent.parent / "surgery" / "_guard.py"))["check_package"]("surgery")

import surgery  # before any module of this package: it notices a stranger's `hooks`

if not hasattr(surgery, "undo_all"):
    raise ImportError(
        f"'{Path(__file__).resolve().parent.parent / 'surgery'}' is not the package 'surgery' of model-surgery: an "
        "unrelated one of that name was installed over it. Uninstall that and reinstall model-surgery, then restart "
        "Python."
    )
