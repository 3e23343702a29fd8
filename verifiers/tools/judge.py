"""`python -m verifiers judge`: lines of (id, answer, completion) in, one verdict a line out, in order."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterable
from concurrent.futures import Future
from queue import Queue
from typing import Any, TextIO

from verifiers.base import Outcome, Verdict
from verifiers.pool.pool import VerifierPool
from verifiers.tools.records import Record, read_records

_MAX_OPEN = 4096
"""Records read ahead of the slowest one still open; bounds memory however long the input is."""


def submit_record(pool: VerifierPool, record: Record) -> Future[Verdict]:
    """Judge one record; what is wrong with the record itself becomes an ERROR verdict."""
    try:
        if record.request is None:
            raise ValueError(record.problem)
        return pool.submit(record.request)
    except ValueError as error:
        settled: Future[Verdict] = Future()
        settled.set_result(Verdict(Outcome.ERROR, detail=str(error)))
        return settled


def judge(lines: Iterable[bytes], out: TextIO, pool: VerifierPool, answer_type: str, extract: str) -> int:
    """Judge every line and write one verdict a line, in order, as soon as it is known; returns how many."""
    ahead: Queue[tuple[Any, Future[Verdict]] | None] = Queue(_MAX_OPEN)
    failed = threading.Event()

    def write() -> None:
        while (item := ahead.get()) is not None:
            if failed.is_set():
                continue
            try:
                print(verdict_line(item[0], item[1].result()), file=out, flush=ahead.empty())
            except OSError:
                # The reader has gone (`| head`): take no more, but let the feeding loop run out.
                failed.set()

    writer = threading.Thread(target=write)
    writer.start()
    count = 0
    try:
        for record in read_records(lines, answer_type, extract):
            if failed.is_set():
                break
            ahead.put((record.id, submit_record(pool, record)))
            count += 1
    finally:
        ahead.put(None)
        writer.join()
    return count


def verdict_line(record_id: Any, verdict: Verdict) -> str:
    """One output line; pure ASCII, so that any text that came in as JSON goes out as JSON."""
    fields: dict[str, Any] = {
        "id": record_id,
        "outcome": verdict.outcome,
        "correct": verdict.correct,
        "extracted": verdict.extracted,
        "seconds": round(verdict.seconds, 6),
    }
    if verdict.detail:
        fields["detail"] = verdict.detail
    return json.dumps(fields)
