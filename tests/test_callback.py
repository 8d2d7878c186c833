"""The user's own functions: whatever they do, the request goes on."""

from __future__ import annotations

import asyncio
import logging

import pytest

from abuseguard import _fault_log
from abuseguard._callback import Callback
from abuseguard._fault_log import FaultLog


class Unshowable:
    def __repr__(self):
        raise RuntimeError("no")


@pytest.fixture
def time_seconds(monkeypatch):
    """The time of the log, which stands still until it is set."""
    now = [0.0]
    monkeypatch.setattr(_fault_log.time, "monotonic", lambda: now[0])
    return now


def raising(error):
    def function(*_):
        raise error

    return function


class TestCallback:
    def test_gives_what_the_function_gives(self):
        callback = Callback("exempt", lambda a, b: (b, a), None)
        assert callback(1, 2) == (2, 1)
        assert callback.failures == 0

    @pytest.mark.parametrize("error", [ValueError("no"), RecursionError(), MemoryError(), StopIteration(), TypeError()])
    def test_a_fault_is_replaced_by_the_default(self, error, caplog):
        callback = Callback("exempt", raising(error), False)
        assert callback("facts") is False
        assert callback.failures == 1
        (record,) = caplog.records
        assert record.name == "abuseguard"
        assert record.levelno == logging.ERROR
        assert record.getMessage() == "the function given as exempt raised; using False instead (number 1)"
        assert record.exc_info[1] is error

    def test_a_wrong_number_of_arguments_is_a_fault(self, caplog):
        assert Callback("exempt", lambda: True, False)("facts") is False
        assert "exempt raised" in caplog.text

    @pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, GeneratorExit, asyncio.CancelledError])
    def test_what_ends_a_program_or_a_task_passes(self, error):
        with pytest.raises(error):
            Callback("exempt", raising(error()), False)("facts")

    def test_a_result_that_is_refused_is_a_fault(self, caplog):
        callback = Callback("limits: a: cost", lambda facts: -5, 1)
        callback.refuse(-5, "a whole number")
        assert callback.failures == 1
        (record,) = caplog.records
        assert record.getMessage() == (
            "the function given as limits: a: cost returned -5, expected a whole number; using 1 instead (number 1)"
        )
        assert not record.exc_info

    @pytest.mark.parametrize("result", [Unshowable(), 10**5000, "x" * 1_000_000], ids=["object", "huge", "long"])
    def test_any_result_can_be_refused(self, result, caplog):
        Callback("cost", len, 1).refuse(result, "a whole number")
        assert len(caplog.records[0].getMessage()) < 400

    def test_faults_do_not_fill_the_log(self, caplog, time_seconds):
        callback = Callback("exempt", raising(ValueError("no")), False)
        for _ in range(1000):
            callback("facts")
        assert len(caplog.records) == 1
        assert callback.failures == 1000
        time_seconds[0] += 59.9
        callback("facts")
        assert len(caplog.records) == 1
        time_seconds[0] += 0.1
        callback("facts")
        assert len(caplog.records) == 2
        assert "(number 1002)" in caplog.records[1].getMessage()

    def test_each_function_has_a_log_of_its_own(self, caplog):
        Callback("exempt", raising(ValueError()), False)("facts")
        Callback("plan", raising(ValueError()), None)("facts")
        assert len(caplog.records) == 2


class TestFaultLog:
    def test_counts_and_says(self, caplog, time_seconds):
        faults = FaultLog(logging.WARNING)
        faults.report("%s of %d", "one", 2)
        faults.report("another")
        assert faults.count == 2
        (record,) = caplog.records
        assert (record.levelname, record.getMessage()) == ("WARNING", "one of 2 (number 1)")

    def test_tells_the_traceback_only_if_it_is_asked_to(self, caplog, time_seconds):
        faults = FaultLog()
        try:
            raise ValueError("inner")
        except ValueError:
            faults.report("without")
            time_seconds[0] += 60
            faults.report("with", with_traceback=True)
        assert [bool(record.exc_info) for record in caplog.records] == [False, True]
