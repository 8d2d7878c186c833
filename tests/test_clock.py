"""Time, real and set by hand."""

from __future__ import annotations

import time

import pytest

from abuseguard.clock import ManualClock, SystemClock


class TestSystemClock:
    def test_is_that_of_the_machine(self):
        clock = SystemClock()
        before = time.monotonic_ns()
        now = clock.now_ns()
        assert before <= now <= time.monotonic_ns()
        before = time.time_ns()
        now = clock.epoch_ns()
        assert before <= now <= time.time_ns()

    def test_is_in_whole_nanoseconds(self):
        assert type(SystemClock().now_ns()) is int
        assert type(SystemClock().epoch_ns()) is int


class TestManualClock:
    def test_stands_still(self):
        clock = ManualClock(now_ns=7)
        assert [clock.now_ns(), clock.now_ns(), clock.epoch_ns()] == [7, 7, 7]

    @pytest.mark.parametrize(
        ("seconds", "ns", "expected"),
        [(1, 0, 10**9), (0.5, 3, 500_000_003), (0, 1, 1), (-2, 0, -2 * 10**9), (0.1, 0, 10**8), (1e-9, 0, 1)],
    )
    def test_moves_as_told(self, seconds, ns, expected):
        clock = ManualClock()
        clock.advance(seconds=seconds, ns=ns)
        assert clock.now_ns() == clock.epoch_ns() == expected

    def test_steps_add_up(self):
        clock = ManualClock()
        for _ in range(10):
            clock.advance(seconds=0.1)
        assert clock.now_ns() == 10**9

    def test_can_be_set(self):
        clock = ManualClock()
        clock.advance(seconds=5)
        clock.set_ns(1)
        assert clock.now_ns() == 1
