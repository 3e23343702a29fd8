"""The count of what a step runs: spans, code lines, processes and threads; what the README quotes of it."""

import json
import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from benchmarks.record import RESULTS, ROOT
from benchmarks.step_map import code_lines, count, functions, readme_lines
from benchmarks.step_trace import Call, Switch

SOURCE = '''"""Module."""
import os  # not code of a function

@decorated
@twice
def outer(x):
    """Says

    something."""

    # a comment
    def inner():
        return x

    return [y for y in (inner(),)]


class Kind:
    double = lambda self: 2 * self

    def method(self): ...
'''


def test_a_function_is_counted_from_its_decorators_to_its_end():
    found = sorted((span.start, span.stop - 1) for span in functions(SOURCE))
    assert found == [(4, 15), (12, 13), (19, 19), (21, 21)]


def test_code_is_what_is_no_docstring_comment_or_empty_line():
    assert code_lines(SOURCE) == {2, 4, 5, 6, 12, 13, 15, 18, 19, 21}


def test_no_line_counts_twice_and_processes_are_told_apart():
    file, own = ROOT / "mathrl" / "rollout" / "core" / "finished_only.py", os.getpid()
    spans = {name: span for span, name in _named_spans(file)}
    outer, inner = spans["_spare_blocks"], spans["allocate_slots"]
    assert inner.start in outer
    calls = [
        Call(own, file, outer.start, "_spare_blocks"),
        Call(own, file, inner.start, "allocate_slots"),
        Call(own, file, 1, "<module>"),
        Call(1, file, inner.start, "allocate_slots"),
        Call(2, ROOT / "verifiers" / "verify.py", 12, "verify"),
    ]
    found = count(calls)
    assert found["trainer"]["lines"] == len(outer)
    assert found["trainer"]["by room"]["mathrl/rollout/"]["files"] == found["trainer"]["files"] == 1
    assert found["trainer"]["code"] < found["trainer"]["lines"]
    assert found["core"]["lines"] == len(inner)
    assert list(found["workers"]["by room"]) == ["verifiers"]
    assert found["imported meanwhile"] == ["mathrl/rollout/core/finished_only.py"]


def _named_spans(file: Path):
    lines = file.read_text(encoding="utf-8").splitlines()
    for span in functions("\n".join(lines)):
        words = next(line for line in lines[span.start - 1 :] if "def " in line or "lambda" in line)
        yield span, words.split("def ")[-1].split("(")[0]


def test_calls_are_seen_in_threads_and_children_while_the_switch_is_on(tmp_path, monkeypatch):
    mine, trace = tmp_path / "mine", tmp_path / "trace"
    mine.mkdir(), trace.mkdir()
    (mine / "traced.py").write_text("".join(f"def f{i}(): return {i}\n" for i in range(5)), encoding="utf-8")
    monkeypatch.syspath_prepend(str(mine))
    monkeypatch.setenv("PYTHONPATH", os.environ.get("PYTHONPATH", ""))
    try:
        switch = Switch(trace, (mine,))
        import traced

        traced.f0()
        switch.set(True)
        traced.f1()
        json.dumps({})  # of another folder
        thread = threading.Thread(target=traced.f2)
        thread.start(), thread.join()
        code = f"import sys; sys.path.insert(0, {str(mine)!r}); import traced; traced.f3()"
        subprocess.run([sys.executable, "-c", code], check=True)
        switch.set(False)
        traced.f4()
    finally:
        sys.setprofile(None), threading.setprofile(None)
    called = {(call.process == os.getpid(), call.line) for call in switch.calls() if call.name != "<module>"}
    assert called == {(True, 2), (True, 3), (False, 4)}


def test_the_readme_quotes_the_stored_count():
    stored = RESULTS / "step_map.json"
    if not stored.exists():
        pytest.skip("no stored count: python -m benchmarks.step_map --store")
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    for line in readme_lines(json.loads(stored.read_text(encoding="utf-8"))):
        assert line in text
