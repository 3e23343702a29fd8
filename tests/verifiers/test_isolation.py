"""The pool: exactly one verdict a request, in order, whatever the judged text does to its worker."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import Future, wait
from pathlib import Path

import pytest
from processes import lives

from verifiers import Outcome, Verdict
from verifiers.pool.pool import Request, VerifierPool

MISBEHAVING = "hostile_types:Misbehaving"
TIMEOUT_S = 1.0


def request(given: str, answer: str = "say yes") -> Request:
    return Request(given, answer, answer_type=MISBEHAVING, extract="bare")


def outcomes(verdicts: list[Verdict]) -> list[str]:
    return [str(verdict.outcome) for verdict in verdicts]


def eventually(condition, within_s: float = 10.0) -> bool:
    deadline = time.monotonic() + within_s
    while time.monotonic() < deadline:
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture(scope="module")
def pool() -> Iterator[VerifierPool]:
    with VerifierPool(num_workers=2, timeout_s=TIMEOUT_S, memory_mb=256) as shared:
        yield shared


def test_verdicts_come_in_request_order(pool: VerifierPool) -> None:
    texts = [f"say {'yes' if i % 3 else 'no'}" for i in range(500)]
    verdicts = pool.map([request(text) for text in texts])
    assert [v.extracted for v in verdicts] == texts
    assert [v.correct for v in verdicts] == [i % 3 != 0 for i in range(500)]


def test_a_hung_answer_times_out_and_its_neighbours_do_not(pool: VerifierPool) -> None:
    texts = ["say yes"] * 20 + ["sleep 30"] + ["say yes"] * 20 + ["spin"] + ["say no"] * 20
    verdicts = pool.map([request(text) for text in texts])
    assert outcomes(verdicts) == (
        ["correct"] * 20 + ["timeout"] + ["correct"] * 20 + ["timeout"] + ["wrong"] * 20
    )
    assert all(TIMEOUT_S <= verdicts[i].seconds < TIMEOUT_S + 5 for i in (20, 41))
    assert verdicts[20].correct is False
    assert f"within {TIMEOUT_S:g} s" in verdicts[20].detail


def test_a_hungry_answer_is_an_error_and_its_memory_is_given_back(pool: VerifierPool) -> None:
    verdicts = pool.map([request("say yes"), request("eat 4096"), request("eat 140"), request("say yes")])
    assert outcomes(verdicts) == ["correct", "error", "wrong", "correct"]
    assert "MemoryError" in verdicts[1].detail

    def small() -> bool:
        statuses = [Path(f"/proc/{pid}/status").read_text() for pid in pool.worker_pids()]
        return all(int(s.partition("VmRSS:")[2].split()[0]) < 100 * 1024 for s in statuses)

    assert eventually(small)


@pytest.mark.parametrize("death", ["crash", "exit 1", "exit 0", "leave 0"])
def test_an_answer_that_ends_its_worker_is_an_error_for_it_alone(pool: VerifierPool, death: str) -> None:
    verdicts = pool.map([request(text) for text in ["say yes", death, "say yes", "say no"]])
    assert outcomes(verdicts) == ["correct", "error", "correct", "wrong"]
    assert "2 worker processes ended" in verdicts[1].detail


def test_a_rule_of_the_users_own_misbehaves_in_a_worker_alone(pool: VerifierPool) -> None:
    """Even where plain numbers are judged, which otherwise happens in this process."""
    texts = ["say 7", "exit 1", "spin", "count", "what", "print 7", "say 8", "pid"]
    verdicts = pool.map(
        [Request(text, "7", "number", extract="hostile_types:misbehaving_rule") for text in texts]
    )
    assert outcomes(verdicts[:7]) == ["correct", "error", "timeout", "error", "error", "correct", "wrong"]
    assert "2 worker processes ended" in verdicts[1].detail
    assert verdicts[3].detail.startswith("TypeError while extracting: extraction rule")
    assert verdicts[4].detail == "ParseError while extracting: unknown verb 'what'"
    assert verdicts[7].extracted != str(os.getpid())


def test_a_worker_killed_from_outside_loses_nothing(pool: VerifierPool, tmp_path: Path) -> None:
    marker = f"die-once {tmp_path / 'marker'}"
    verdicts = pool.map([request("say yes"), request(marker, marker), request("say yes")])
    assert outcomes(verdicts) == ["correct"] * 3


def test_workers_killed_again_and_again_lose_nothing() -> None:
    with VerifierPool(num_workers=2, timeout_s=10.0) as pool:
        texts = [f"say {i}" for i in range(4_000)]
        futures = [pool.submit(request(text, "say 7")) for text in texts]
        for _ in range(4):
            assert eventually(lambda: len(pool.worker_pids()) > 0)
            time.sleep(0.15)
            for pid in pool.worker_pids():
                os.kill(pid, signal.SIGKILL)
        verdicts = [future.result(timeout=60) for future in futures]
    assert [v.extracted for v in verdicts] == texts
    assert [i for i, v in enumerate(verdicts) if v.correct] == [7]
    assert {v.outcome for v in verdicts} == {Outcome.CORRECT, Outcome.WRONG}


def test_hanging_and_hungry_answers_among_many_leave_exactly_one_verdict_each() -> None:
    texts = [f"say {i}" for i in range(600)]
    for i in (50, 51, 599):
        texts[i] = "spin"
    texts[52] = "eat 4096"
    with VerifierPool(num_workers=2, timeout_s=0.7, memory_mb=256) as pool:
        verdicts = pool.map([request(text, "say 7") for text in texts])
    assert len(verdicts) == 600
    assert [i for i, v in enumerate(verdicts) if v.outcome is Outcome.TIMEOUT] == [50, 51, 599]
    assert [i for i, v in enumerate(verdicts) if v.outcome is Outcome.ERROR] == [52]
    assert [i for i, v in enumerate(verdicts) if v.correct] == [7]
    assert all(v.extracted in (text, None) for text, v in zip(texts, verdicts, strict=True))


def test_a_stopped_worker_is_replaced(pool: VerifierPool) -> None:
    pool.map([request("sleep 0.5", "sleep 0.5")] * 4)  # both workers are up, and neither still starts
    for pid in pool.worker_pids():
        os.kill(pid, signal.SIGSTOP)
    first, *rest = pool.map([request("say yes")] * 40)
    assert first.outcome in (Outcome.TIMEOUT, Outcome.CORRECT)
    assert sum(v.outcome is not Outcome.CORRECT for v in [first, *rest]) <= 2


def test_printing_and_writing_answers_disturb_nobody(pool: VerifierPool, tmp_path: Path) -> None:
    big = tmp_path / "big"
    texts = ["print no", f"write {big} 3000000", "say yes"]
    verdicts = pool.map([request(text) for text in texts])
    assert outcomes(verdicts) == ["wrong", "error", "correct"]
    assert big.stat().st_size <= 1 << 20


def test_a_worker_is_cheap_to_start(pool: VerifierPool) -> None:
    verdicts = pool.map([request("modules torch", "say True"), request("modules verifiers", "say True")])
    assert [v.correct for v in verdicts] == [False, True]


def test_a_large_parent_does_not_make_workers_retire() -> None:
    """The kernel hands a process's peak memory on to the program it starts; that is no worker's own."""
    ballast = bytearray(os.urandom(1 << 16)) * (400 << 4)  # 400 MB, all of it touched
    with VerifierPool(1, memory_mb=700) as pool:
        first = pool.map([Request("#### 1/(1+x)", "x+1", "expression", "gsm8k")])
        (worker,) = pool.worker_pids()
        for _ in range(3):
            assert (
                pool.map([Request("#### 1/(1+x)", "x+1", "expression", "gsm8k")])[0].outcome
                == first[0].outcome
            )
        assert pool.worker_pids() == [worker]
    assert len(ballast) > 700 << 19


def test_a_text_larger_than_the_pipe_arrives(pool: VerifierPool) -> None:
    long = "say " + "é" * 1_500_000
    verdicts = pool.map([request(long, long), request("say yes"), request(long, "say é")])
    assert [v.correct for v in verdicts] == [True, True, False]


def test_strange_characters_survive_the_trip(pool: VerifierPool) -> None:
    text = 'say \ud800\x00\u2028\n\r"\\ ½'
    assert pool.map([request(text, text)])[0].extracted == text


def test_usable_from_many_threads(pool: VerifierPool) -> None:
    results: dict[int, list[Verdict]] = {}

    def judge(number: int) -> None:
        results[number] = pool.map([request(f"say {number}-{i}") for i in range(50)])

    threads = [threading.Thread(target=judge, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(8):
        assert [v.extracted for v in results[number]] == [f"say {number}-{i}" for i in range(50)]


def test_usable_under_asyncio_without_blocking_the_loop(pool: VerifierPool) -> None:
    async def judge() -> tuple[list[Verdict], int]:
        ticks = 0

        async def tick() -> None:
            nonlocal ticks
            while True:
                await asyncio.sleep(0.02)
                ticks += 1

        ticker = asyncio.create_task(tick())
        verdicts = await asyncio.gather(*(pool.verify_async(request(t)) for t in ["sleep 9", "say yes"]))
        ticker.cancel()
        return verdicts, ticks

    verdicts, ticks = asyncio.run(judge())
    assert outcomes(verdicts) == ["timeout", "correct"]
    assert ticks >= 5


def test_results_stream_while_another_answer_hangs(pool: VerifierPool) -> None:
    hung = pool.submit(request("sleep 30"))
    time.sleep(0.1)
    quick = pool.submit(request("say yes"))
    assert quick.result(timeout=10).correct
    assert hung.result(timeout=10).outcome is Outcome.TIMEOUT


def test_a_cancelled_request_is_not_judged(tmp_path: Path) -> None:
    with VerifierPool(num_workers=1, timeout_s=1.0) as pool:
        hung = pool.submit(request("sleep 30"))
        eventually(hung.running)
        cancelled = pool.submit(request(f"write {tmp_path / 'trace'} 1"))
        after = pool.submit(request("say yes"))
        assert cancelled.cancel()
        assert hung.result(timeout=20).outcome is Outcome.TIMEOUT
        assert after.result(timeout=20).correct
    assert not (tmp_path / "trace").exists()


def test_closing_settles_everything_and_leaves_no_process() -> None:
    pool = VerifierPool(num_workers=2, timeout_s=30.0)
    futures: list[Future[Verdict]] = [pool.submit(request("sleep 30")) for _ in range(50)]
    assert eventually(lambda: sum(f.running() for f in futures) >= 2)
    pids = pool.worker_pids()
    assert pids
    start = time.monotonic()
    pool.close()
    pool.close()
    done, open_ = wait(futures, timeout=5)
    assert time.monotonic() - start < 5
    assert not open_
    assert {f.result().outcome for f in done} == {Outcome.ERROR}
    assert not any(lives(pid) for pid in pids)
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(request("say yes"))


def test_a_dropped_pool_leaves_no_process() -> None:
    pool = VerifierPool(num_workers=1)
    assert pool.map([request("say yes")])[0].correct
    pids = pool.worker_pids()
    del pool
    assert eventually(lambda: not any(lives(pid) for pid in pids))


PARENT = """
import os, sys, time
from verifiers.pool.pool import Request, VerifierPool
def main():
    pool = VerifierPool(num_workers=2, timeout_s=30.0)
    warm = [pool.submit(Request("pid", "say x", %r, "bare")) for _ in range(20)]
    for future in warm: future.result()
    busy = [pool.submit(Request(text, "say x", %r, "bare")) for text in ["sleep 60", "spin"]]
    while not all(f.running() for f in busy): time.sleep(0.01)
    time.sleep(0.2)
    print(*pool.worker_pids(), flush=True)
    %s
main()
"""


@pytest.mark.parametrize(
    "ending",
    ["return", "os.kill(os.getpid(), 9)", "os._exit(3)", "raise KeyboardInterrupt"],
    ids=["exit", "sigkill", "hard-exit", "interrupt"],
)
def test_no_worker_outlives_its_parent(ending: str) -> None:
    script = PARENT % (MISBEHAVING, MISBEHAVING, ending)
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", script], capture_output=True, text=True, env=environment, timeout=60
    )
    pids = [int(word) for word in done.stdout.split()]
    assert len(pids) == 2, done.stderr
    # The spinning one holds the interpreter's lock: only a signal from the kernel ends it.
    assert eventually(lambda: not any(lives(pid) for pid in pids), within_s=30)


def test_a_worker_that_cannot_start_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with VerifierPool(num_workers=1) as pool:
        verdict = pool.map([request("say yes")])[0]
    assert verdict.outcome is Outcome.ERROR
    assert "do not start" in verdict.detail


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_workers": 0}, "num_workers must be at least 1, got 0"),
        ({"timeout_s": 0.0}, "timeout_s must be a positive number of seconds, got 0.0"),
        ({"timeout_s": float("nan")}, "timeout_s must be a positive number of seconds, got nan"),
        ({"memory_mb": 16}, "memory_mb must be at least 256"),
    ],
)
def test_limits_out_of_range_are_refused(arguments: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        VerifierPool(**arguments)  # type: ignore[arg-type]


def test_unknown_names_are_refused_on_submit(pool: VerifierPool) -> None:
    with pytest.raises(ValueError, match="nomber"):
        pool.submit(Request("1", "1", answer_type="nomber"))
    with pytest.raises(ValueError, match="boxd"):
        pool.submit(Request("1", "1", extract="boxd"))
    with pytest.raises(ValueError, match="boxd"):  # of a type that a worker judges
        pool.submit(Request("yes", "yes", "text", extract="boxd"))


def test_easy_answers_never_wake_a_worker() -> None:
    with VerifierPool(num_workers=1) as pool:
        verdicts = pool.map([Request(f"so\n#### {i}", "7", "number", "gsm8k") for i in range(100)])
        assert [i for i, v in enumerate(verdicts) if v.correct] == [7]
        assert pool.worker_pids() == []


def test_a_worker_that_is_up_is_asked_before_another_starts() -> None:
    with VerifierPool(num_workers=4, timeout_s=TIMEOUT_S, memory_mb=256) as pool:
        pool.map([request("say yes")])
        (worker,) = pool.worker_pids()
        for _ in range(20):
            assert outcomes(pool.map([request("say yes")])) == ["correct"]
            assert pool.worker_pids() == [worker]
            time.sleep(0.01)


def test_more_work_than_idle_workers_starts_others() -> None:
    with VerifierPool(num_workers=3, timeout_s=30, memory_mb=256) as pool:
        pool.map([request("say yes")])
        held = [pool.submit(request("sleep 20")) for _ in range(2)]
        assert pool.submit(request("say yes")).result(timeout=15).correct
        assert len(pool.worker_pids()) == 3
        assert not any(future.done() for future in held)


def test_a_worker_can_be_started_ahead_of_work() -> None:
    with VerifierPool(num_workers=3, timeout_s=TIMEOUT_S, memory_mb=256) as pool:
        pool.start()
        pool.start()
        assert eventually(lambda: len(pool.worker_pids()) == 1)
        pids = pool.worker_pids()
        assert outcomes(pool.map([request("say yes")])) == ["correct"]
        assert pool.worker_pids() == pids
    with pytest.raises(RuntimeError, match="closed"):
        pool.start()


def test_work_does_not_wait_for_a_worker_that_is_stopped_while_it_starts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("verifiers.pool.supervisor._LATE_START_S", 0.3)
    with VerifierPool(num_workers=2, timeout_s=TIMEOUT_S, memory_mb=256) as pool:
        pool.start()
        assert eventually(lambda: len(pool.worker_pids()) == 1)
        (stopped,) = pool.worker_pids()
        os.kill(stopped, signal.SIGSTOP)
        assert pool.submit(request("say yes")).result(timeout=30).correct
        assert len(pool.worker_pids()) == 2
    assert not lives(stopped)


def test_a_forked_copy_is_refused(pool: VerifierPool) -> None:
    pid = os.fork()
    if pid == 0:
        try:
            pool.submit(request("say yes"))
        except RuntimeError as error:
            os._exit(0 if "process that made it" in str(error) else 1)
        os._exit(2)
    assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 0
    assert pool.map([request("say yes")])[0].correct
