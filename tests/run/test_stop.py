"""When Ctrl-C and SIGTERM stop a run: at once, or when the step under way is whole."""

import io
import os
import signal
import threading

import pytest
from rich.console import Console

from mathrl.errors import Stopped
from mathrl.run import stop as module
from mathrl.run.stop import StopSignals


@pytest.fixture
def stop():
    out = io.StringIO()
    with StopSignals(Console(file=out, width=200)) as stop:
        yield stop


def send(signum: int) -> None:
    os.kill(os.getpid(), signum)


@pytest.mark.parametrize(("signum", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_stage_stops_at_once_with_the_shells_exit_status(stop, signum, status):
    with pytest.raises(Stopped) as stopped:
        send(signum)
    assert stopped.value.exit_status == status
    assert stopped.value.signum is signum
    assert not stopped.value.forced


def test_deferred_it_is_noted_and_raised_where_nothing_is_lost(stop):
    with stop.deferred():
        send(signal.SIGTERM)
        assert stop.asked is signal.SIGTERM
        assert "stopping after this step" in stop.console.file.getvalue()
        with pytest.raises(Stopped), stop.interruptible():
            pytest.fail("it was asked for before")
    with pytest.raises(Stopped):
        stop.raise_if_asked()


def test_an_interruptible_part_of_a_step_stops_at_once(stop):
    with stop.deferred():
        with pytest.raises(Stopped), stop.interruptible():
            send(signal.SIGTERM)
            pytest.fail("it goes on")
        send(signal.SIGTERM)  # at once again: the same request, told twice, as timeout(1) does
    with stop.interruptible() if stop.asked is None else pytest.raises(Stopped):
        stop.raise_if_asked()


def test_a_later_signal_forces(stop, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(module.time, "monotonic", lambda: now[0])
    with stop.deferred():
        send(signal.SIGINT)
        now[0] += 0.5
        send(signal.SIGINT)
        now[0] += 1.0
        with pytest.raises(Stopped) as stopped:
            send(signal.SIGINT)
    assert stopped.value.forced


def test_the_handlers_from_before_come_back():
    before = signal.getsignal(signal.SIGTERM)
    with StopSignals(Console(file=io.StringIO())):
        assert signal.getsignal(signal.SIGTERM) != before
    assert signal.getsignal(signal.SIGTERM) == before


def test_in_a_thread_it_changes_nothing():
    raised: list[BaseException] = []

    def work() -> None:
        try:
            with StopSignals(Console(file=io.StringIO())) as stop, stop.deferred():
                pass
        except BaseException as error:  # noqa: BLE001 - whatever it is
            raised.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert raised == []
