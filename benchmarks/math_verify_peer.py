"""Math-Verify's verdicts on stdin's lines (answer, completion), for the interpreter that has it installed.

Uses only that package and the standard library. Used the way its documentation shows: both sides parsed with
the default configuration, the reference as a boxed formula, verified gold first. Output: one line a verdict,
`{"correct": bool, "seconds": float}`; its own time limit (signal.alarm, 5 s a call) stays on.
"""

import json
import logging
import sys
import time
from importlib.metadata import version

from math_verify import parse, verify


def main() -> None:
    """Judge stdin to stdout; the first line out names the version, so that a cold import is not timed."""
    logging.disable(logging.CRITICAL)
    parse("\\boxed{1}")
    print(json.dumps({"version": version("math-verify")}), flush=True)
    for line in sys.stdin:
        fields = json.loads(line)
        start = time.perf_counter()
        try:
            correct = bool(verify(parse(f"\\boxed{{{fields['answer']}}}"), parse(fields["completion"])))
        except Exception:  # noqa: BLE001  its parser may raise anything on text it was not made for
            correct = False
        seconds = time.perf_counter() - start
        print(json.dumps({"correct": correct, "seconds": seconds}), flush=True)


if __name__ == "__main__":
    main()
