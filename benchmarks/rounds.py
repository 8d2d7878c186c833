"""Rounds: contenders take turns, so that whatever else the machine does falls on all of them alike.

Only what was measured in one run is compared. On a machine that does other things as well there are two figures to
believe. Times are those of the fastest rounds, since others can only slow a round down; the median round is shown with
them. Ratios are medians of the ratios round by round, since what slows a round down slows its neighbours alike.
"""

from __future__ import annotations

import gc
import time
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from operator import sub, truediv
from statistics import median
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from pytest_benchmark.fixture import BenchmarkFixture

Name = Hashable
#: Serves so many requests, one after the other.
Contender = Callable[[int], object]

_WARM_UP_REQUESTS = 10


class Microseconds(NamedTuple):
    """A time, or a difference of two: from the fastest rounds, and as the median over all rounds."""

    least: float
    median: float


@dataclass(frozen=True, slots=True)
class Rounds:
    """What each contender took for a request, in microseconds, round by round."""

    microseconds: dict[Name, list[float]]

    def took(self, name: Name) -> Microseconds:
        """What a request took."""
        return Microseconds(min(self.microseconds[name]), median(self.microseconds[name]))

    def added(self, name: Name, base: Name = "bare") -> Microseconds:
        """What it took more than ``base``."""
        ours, theirs = self.microseconds[name], self.microseconds[base]
        return Microseconds(min(ours) - min(theirs), median(map(sub, ours, theirs)))

    def ratio(self, name: Name, base: Name) -> float:
        """How many times what ``base`` took."""
        return median(map(truediv, self.microseconds[name], self.microseconds[base]))

    def share(self, name: Name, base: Name = "bare") -> float:
        """What it took more than ``base``, as a share of what that took."""
        return self.ratio(name, base) - 1


@dataclass(frozen=True, slots=True)
class RequestTimer:
    """A timer for pytest-benchmark that makes of the time of a round that of a request.

    Args:
        clock: seconds.
        requests: how many a round has. Few, so that on a busy machine some rounds are left alone; enough for the
            clock to be exact.
    """

    clock: Callable[[], float]
    requests: int = 50

    def __call__(self) -> float:
        return self.clock() / self.requests


#: For rounds that wait for nothing: the time of all threads on a CPU, which leaves out other processes.
CPU_TIMER = RequestTimer(time.process_time)
#: For rounds that wait for another process.
WALL_TIMER = RequestTimer(time.perf_counter)


def play(
    benchmark: BenchmarkFixture,
    contenders: Mapping[Name, Contender],
    *,
    timer: RequestTimer,
    rounds: int = 200,
    before_each: Callable[[], object] = lambda: None,
) -> Rounds:
    """Lets contenders take turns; pytest-benchmark times and reports the last of them, which is ours.

    Args:
        benchmark: the fixture; its test is marked with the same ``timer``.
        contenders: by name, ours last, so that it runs right behind the one named before it.
        rounds: how many turns each has.
        before_each: is called before each turn, untimed.
    """
    *others, ours = contenders
    played = Rounds({name: [] for name in contenders})

    def take_turn(name: Name) -> None:
        start = timer()
        contenders[name](timer.requests)
        played.microseconds[name].append((timer() - start) * 1e6)

    def prepare(name: Name) -> None:
        before_each()
        contenders[name](_WARM_UP_REQUESTS)

    def let_others_play() -> None:
        for name in others:
            prepare(name)
            take_turn(name)
        prepare(ours)

    gc.collect()
    # What is there already is not looked at again by the collector: only the garbage of the requests counts.
    gc.freeze()
    try:
        benchmark.pedantic(take_turn, args=(ours,), setup=let_others_play, rounds=rounds)
    finally:
        gc.unfreeze()
    benchmark.extra_info.update({str(name): played.took(name)._asdict() for name in contenders})
    return played
