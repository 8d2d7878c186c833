"""What is added to a Django project, in memory, with two limits and their fields."""

from __future__ import annotations

from functools import partial

import pytest

from benchmarks.django_apps import APPS, forget_everything
from benchmarks.rounds import CPU_TIMER, play
from benchmarks.wsgi_server import first_response, serve

# As in test_fastapi.py.
_REFERENCE_BARE_MICROSECONDS = 49
_TARGET_MICROSECONDS = 10


@pytest.mark.benchmark(group="Django", timer=CPU_TIMER)
def test_added_to_django(benchmark, speed_table):
    apps = {name: make() for name, make in APPS.items()}
    for name, app in apps.items():
        status, fields = first_response(app)
        assert status == 200, name
        assert ("ratelimit" in fields) == (name == "abuseguard")

    played = play(
        benchmark,
        {name: partial(serve, app) for name, app in apps.items()},
        timer=CPU_TIMER,
        before_each=forget_everything,
    )

    speed_table.add_added(
        "Django",
        played,
        # What REST framework itself adds is not its throttling's.
        peers={"django-ratelimit": "bare", "DRF throttling": "DRF"},
        target_us=_TARGET_MICROSECONDS,
        reference_bare_us=_REFERENCE_BARE_MICROSECONDS,
    )
