"""The papers' experiments as commands: `python -m analyses.papers laser --model ... --task ...`, from data to report.

```console
python -m analyses.papers tasks
python -m analyses.papers laser --model EleutherAI/gpt-j-6b --task bios-gender --data dev.jsonl --dry-run
```

Every command estimates time and memory first, goes on after it was stopped, and writes a folder with a report, tables,
figures, the edit that was found, and everything that is needed to repeat it. `docs/papers.md` lists the claims.
"""

from analyses.papers._running import main

__all__ = ["main"]
