"""``mathrl doctor``: the findings of a run on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from cyclopts import Parameter
from rich.console import Console

from mathrl.report.doctor import diagnose, last_word, tell
from mathrl.report.run_record import read_run

EXIT_WRONG = 1


def command(run_dir: Annotated[Path, Parameter(name="RUN", help="a run's folder")], /) -> int:
    """Print the findings of a run; 1 where one is a warning or an error."""
    record = read_run(run_dir)
    console = Console(highlight=False)
    findings = diagnose(record.rows, record.config)
    for finding in findings:
        tell(console, finding)
    wrong = sum(f.severity != "note" for f in findings)
    console.print(last_word(wrong, len(record.rows), str(run_dir)), soft_wrap=True)
    return EXIT_WRONG if wrong else 0
