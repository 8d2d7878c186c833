"""What is added to a FastAPI application, in memory, with two limits and their fields."""

from __future__ import annotations

import pytest

from benchmarks.asgi_apps import APPS, first_response, served_by
from benchmarks.rounds import CPU_TIMER, play

# Targets in microseconds were set where bare FastAPI took so many; what they are elsewhere follows from the two.
_REFERENCE_BARE_MICROSECONDS = 33
_TARGET_MICROSECONDS = 4.5
_TARGET_SHARE_OF_LIMITS = 0.4


@pytest.mark.benchmark(group="FastAPI", timer=CPU_TIMER)
def test_added_to_fastapi(benchmark, speed_table, run):
    apps = {name: make() for name, make in APPS.items()}
    for name, app in apps.items():
        status, fields = run(first_response(app))
        assert status == 200, name
        assert ("ratelimit" in fields) == (name == "abuseguard")

    played = play(
        benchmark,
        {name: served_by(run, app) for name, app in apps.items()},
        timer=CPU_TIMER,
        rounds=120,
    )

    speed_table.add_added(
        "FastAPI",
        played,
        peers=[name for name in reversed(APPS) if name not in ("bare", "abuseguard")],
        target_us=_TARGET_MICROSECONDS,
        reference_bare_us=_REFERENCE_BARE_MICROSECONDS,
    )
    speed_table.add(
        "FastAPI: added, of what limits.aio adds",
        played.share("abuseguard") / played.share("limits.aio"),
        target=_TARGET_SHARE_OF_LIMITS,
    )


@pytest.mark.benchmark(group="FastAPI", timer=CPU_TIMER)
def test_added_to_fastapi_without_what_is_left_to_the_event_loop(benchmark, speed_table, run):
    apps = {name: APPS[name]() for name in ("limits.aio", "bare", "abuseguard")}

    played = play(
        benchmark,
        {name: served_by(run, app, turns=False) for name, app in apps.items()},
        timer=CPU_TIMER,
    )

    speed_table.add(
        "FastAPI: the same, but its sweeps left out",
        played.share("abuseguard") / played.share("limits.aio"),
        target=_TARGET_SHARE_OF_LIMITS,
    )
