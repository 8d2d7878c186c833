"""What is added while many clients are known: nothing may depend on their number.

The application is the smallest there is, so that nothing hides what is added. Clients come in random order.
"""

from __future__ import annotations

import random
from itertools import count, cycle, repeat

import pytest

from abuseguard import Settings
from abuseguard.asgi import AbuseGuardMiddleware
from benchmarks.asgi_apps import LIMITS, LimitsMiddleware, serve, served_by
from benchmarks.rounds import CPU_TIMER, play

_MANY = 100_000
_CLIENTS = (1, 1_000, 10_000, _MANY)
# After every request it looks at every client, which takes it 25 ms for 100,000 of them.
_MOST_FOR_LIMITS = 10_000
_TARGET_OF_ONE = 1.5


async def _app(scope, receive, send):
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]})
    await send({"type": "http.response.body", "body": b"ok"})


def _address(number):
    return f"10.{number >> 16 & 255}.{number >> 8 & 255}.{number & 255}"


def _addresses(number):
    addresses = [_address(client) for client in range(number)]
    random.Random(number).shuffle(addresses)
    return addresses


def _known_to(run, app, clients):
    """The application once every one of the clients has come."""
    run(serve(app, len(clients), clients=iter(clients), turns=False))
    return app


def _guarded(app):
    return AbuseGuardMiddleware(app, settings=Settings(limits=LIMITS))


@pytest.mark.benchmark(group="clients", timer=CPU_TIMER)
def test_requests_of_many_clients(benchmark, speed_table, run):
    contenders = {}
    for kind, middleware in (("limits.aio", LimitsMiddleware), ("bare", None), ("abuseguard", _guarded)):
        for number in _CLIENTS:
            if kind == "limits.aio" and number > _MOST_FOR_LIMITS:
                continue
            clients = _addresses(number)
            app = _app if middleware is None else _known_to(run, middleware(_app), clients)
            contenders[kind, number] = served_by(run, app, clients=cycle(clients))

    played = play(benchmark, contenders, timer=CPU_TIMER, rounds=50)

    added = {kind: played.added(kind, ("bare", kind[1])) for kind in contenders}
    for number in _CLIENTS:
        speed_table.add(
            f"{number:,} client{'s at random' if number > 1 else ''}: added",
            added["abuseguard", number],
            peers={kind: figure for (kind, known), figure in added.items() if (kind, known) == ("limits.aio", number)},
            unit="µs",
        )
    speed_table.add(
        f"{_MANY:,} clients at random: added, of what is added with one",
        added["abuseguard", _MANY].least / added["abuseguard", 1].least,
        peers={
            f"limits.aio with {_MOST_FOR_LIMITS:,}": added["limits.aio", _MOST_FOR_LIMITS].least
            / added["limits.aio", 1].least
        },
        target=_TARGET_OF_ONE,
    )


@pytest.mark.benchmark(group="clients", timer=CPU_TIMER)
def test_requests_of_one_of_many_clients(benchmark, speed_table, run):
    contenders = {"bare": served_by(run, _app, turns=False)}
    for number in (1, _MANY):
        clients = _addresses(number)
        guard = _known_to(run, _guarded(_app), clients)
        contenders[number] = served_by(run, guard, clients=repeat(clients[0]), turns=False)

    played = play(benchmark, contenders, timer=CPU_TIMER)

    speed_table.add(
        f"one client while {_MANY:,} are known: of what is added while it is alone",
        played.added(_MANY).least / played.added(1).least,
        target=_TARGET_OF_ONE,
    )


@pytest.mark.benchmark(group="clients", timer=CPU_TIMER)
def test_a_flood_of_new_clients(benchmark, speed_table, run):
    """Every request has a new client, and the table has been full for long."""
    new = map(_address, count(1_000_000))
    contenders = {"bare": served_by(run, _app, clients=new, turns=False)}
    for most in (1_000, _MANY):
        settings = Settings(limits=["60/minute", "1000/hour"], max_keys=most)
        guard = _known_to(run, AbuseGuardMiddleware(_app, settings=settings), _addresses(most))
        contenders[most] = served_by(run, guard, clients=new, turns=False)

    played = play(benchmark, contenders, timer=CPU_TIMER)

    speed_table.add(
        f"a new client every time, {_MANY:,} known at the most: added",
        played.added(_MANY),
        peers={"1,000 at the most": played.added(1_000)},
        unit="µs",
    )
    speed_table.add(
        f"a new client every time, {_MANY:,} known: of what is added with 1,000",
        played.added(_MANY).least / played.added(1_000).least,
        target=_TARGET_OF_ONE,
    )
