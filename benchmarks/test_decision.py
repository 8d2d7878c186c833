"""What a decision in memory takes, with two limits and no framework around it."""

from __future__ import annotations

import pytest

from abuseguard import RequestFacts, Settings
from abuseguard.guard import Guard
from benchmarks import decisions
from benchmarks.asgi_apps import LIMITS
from benchmarks.requests import CLIENT, PATH
from benchmarks.rounds import CPU_TIMER, play


@pytest.mark.benchmark(group="decision", timer=CPU_TIMER)
def test_decision_in_memory(benchmark, speed_table):
    guard = Guard(Settings(limits=LIMITS))
    contenders = {
        "limits": decisions.limits("memory://"),
        "throttled-py": decisions.throttled(),
        "pyrate-limiter": decisions.pyrate(),
        "abuseguard": lambda: guard.decide(RequestFacts("GET", PATH, peer=CLIENT)),
    }

    played = play(
        benchmark, {name: decisions.repeatedly(decide) for name, decide in contenders.items()}, timer=CPU_TIMER
    )

    speed_table.add(
        "no framework: a decision in memory",
        played.took("abuseguard"),
        peers={name: played.took(name) for name in contenders if name != "abuseguard"},
        unit="µs",
    )
