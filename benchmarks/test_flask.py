"""What is added to a Flask application, in memory, with two limits and their fields."""

from __future__ import annotations

from functools import partial

import pytest

from benchmarks.flask_apps import APPS
from benchmarks.rounds import CPU_TIMER, play
from benchmarks.wsgi_server import first_response, serve

# As in test_fastapi.py.
_REFERENCE_BARE_MICROSECONDS = 45
_TARGET_MICROSECONDS = 10


@pytest.mark.benchmark(group="Flask", timer=CPU_TIMER)
def test_added_to_flask(benchmark, speed_table):
    apps = {name: make() for name, make in APPS.items()}
    for name, app in apps.items():
        status, fields = first_response(app)
        assert status == 200, name
        assert ("ratelimit" in fields) == (name == "abuseguard")

    played = play(
        benchmark,
        {name: partial(serve, app) for name, app in apps.items()},
        timer=CPU_TIMER,
    )

    speed_table.add_added(
        "Flask",
        played,
        peers=("Flask-Limiter", "throttled-py"),
        target_us=_TARGET_MICROSECONDS,
        reference_bare_us=_REFERENCE_BARE_MICROSECONDS,
    )
