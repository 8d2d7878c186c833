"""Throughput over HTTP, of uvicorn with one worker, beside that of the bare application."""

from __future__ import annotations

from contextlib import ExitStack
from statistics import median

import pytest

from benchmarks.asgi_apps import APPS
from benchmarks.load_generator import CONNECTIONS, load
from benchmarks.uvicorn_server import UvicornServer

_SECONDS = 1
_ROUNDS = 15
# How often the others have a turn. Their distance needs no more.
_EVERY_ROUND = ("limits.aio", "bare", "abuseguard")
_OTHERS_EVERY = 5
_TARGET_OF_BARE = 0.9


@pytest.mark.benchmark(group="HTTP")
def test_throughput_over_http(benchmark, speed_table):
    names = [name for name in APPS if name != "no-op middleware"]
    rounds = []

    with ExitStack() as stack:
        servers = {name: stack.enter_context(UvicornServer(name)) for name in names}

        def measure(name):
            server = servers[name]
            before = server.cpu_seconds()
            borne = load(server.port, _SECONDS)
            cpu = None if before is None else (server.cpu_seconds() - before) / borne.requests
            rounds[-1][name] = {"rate": borne.requests_per_second, "p99": borne.p99_milliseconds, "cpu": cpu}

        def measure_others():
            seldom = len(rounds) % _OTHERS_EVERY != 0
            rounds.append({})
            for name in names[:-1]:
                if name in _EVERY_ROUND or not seldom:
                    measure(name)

        measure_others()
        measure(names[-1])
        rounds.clear()  # that was for caches to warm up
        benchmark.pedantic(measure, args=(names[-1],), setup=measure_others, rounds=_ROUNDS)

    def all_of(figure, name):
        return [measured[name][figure] for measured in rounds if name in measured]

    def of_bare(figure, name):
        return median(measured[name][figure] / measured["bare"][figure] for measured in rounds if name in measured)

    peers = [name for name in reversed(names) if name not in ("bare", "abuseguard")]
    benchmark.extra_info["rounds"] = rounds
    speed_table.add("HTTP, bare: thousands of requests a second", max(all_of("rate", "bare")) / 1000)
    speed_table.add(
        f"HTTP, {CONNECTIONS} connections: throughput, of bare",
        of_bare("rate", "abuseguard"),
        peers={name: of_bare("rate", name) for name in peers},
        target=_TARGET_OF_BARE,
        at_least=True,
    )
    if rounds[0]["bare"]["cpu"] is not None:
        speed_table.add(
            "HTTP: requests a second of the server's CPU, of bare",
            1 / of_bare("cpu", "abuseguard"),
            peers={name: 1 / of_bare("cpu", name) for name in peers},
            target=_TARGET_OF_BARE,
            at_least=True,
        )
    speed_table.add(
        "HTTP: 99 of 100 requests are answered within",
        median(all_of("p99", "abuseguard")),
        peers={name: median(all_of("p99", name)) for name in ("bare", *peers)},
        unit="ms",
    )
