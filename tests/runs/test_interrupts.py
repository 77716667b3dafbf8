"""A request to stop, its echo from a launcher, and a second request."""

from __future__ import annotations

import signal
import threading

import pytest

from refine.runs import interrupts as signals
from refine.runs.interrupts import StopRequest


@pytest.fixture(autouse=True)
def handlers_of_a_user():
    """Python's own for SIGINT; one that can be seen for SIGTERM."""

    class Terminated(Exception):
        pass

    def terminate(number, frame):
        raise Terminated

    previous = signal.signal(signal.SIGINT, signal.default_int_handler), signal.signal(signal.SIGTERM, terminate)
    yield Terminated
    for which, handler in zip((signal.SIGINT, signal.SIGTERM), previous, strict=True):
        signal.signal(which, handler)


def test_the_first_is_noted_and_its_echo_ignored():
    stop = StopRequest()
    with stop.listening():
        assert stop.number is None and stop.name == "another process"
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert stop.number == signal.SIGINT and stop.name == "SIGINT"
    with pytest.raises(KeyboardInterrupt):
        signal.raise_signal(signal.SIGINT)


def test_a_second_one_ends_the_process(monkeypatch, handlers_of_a_user):
    monkeypatch.setattr(signals, "ECHO_SECONDS", -1.0)
    stop = StopRequest()
    with stop.listening():
        signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)
        with pytest.raises(handlers_of_a_user):
            signal.raise_signal(signal.SIGTERM)


def test_urgent():
    stop = StopRequest()
    with stop.listening():
        stop.urgent = True
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
    assert stop.number == signal.SIGTERM


def test_in_another_thread_nothing_is_noted():
    failures = []

    def listen():
        try:
            with StopRequest().listening():
                pass
        except ValueError as error:
            failures.append(error)

    thread = threading.Thread(target=listen)
    thread.start()
    thread.join()
    assert not failures
