"""Throughput over HTTP, of uvicorn with one worker, beside that of the bare application."""

from __future__ import annotations

from contextlib import ExitStack
from statistics import median

import pytest

from benchmarks.asgi_apps import APPS
from benchmarks.load_generator import CONNECTIONS, load
from benchmarks.uvicorn_server import UvicornServer

_SECONDS = 1
_ROUNDS = 6
_TARGET_OF_BARE = 0.9


@pytest.mark.benchmark(group="HTTP")
def test_throughput_over_http(benchmark, speed_table):
    names = [name for name in APPS if name != "no-op middleware"]
    rates = {name: [] for name in names}
    cpu = {name: [] for name in names}
    p99 = {name: [] for name in names}

    with ExitStack() as stack:
        servers = {name: stack.enter_context(UvicornServer(name)) for name in names}

        def measure(name):
            server = servers[name]
            before = server.cpu_seconds()
            borne = load(server.port, _SECONDS)
            rates[name].append(borne.requests_per_second)
            p99[name].append(borne.p99_milliseconds)
            if before is not None:
                cpu[name].append((server.cpu_seconds() - before) / borne.requests)

        def measure_peers():
            for name in names[:-1]:
                measure(name)

        measure_peers()  # the first is for caches to warm up, and does not count
        measure(names[-1])
        for measured in (rates, cpu, p99):
            for values in measured.values():
                values.clear()
        benchmark.pedantic(measure, args=(names[-1],), setup=measure_peers, rounds=_ROUNDS)

    peers = [name for name in reversed(names) if name not in ("bare", "abuseguard")]
    benchmark.extra_info.update({"requests per second": rates, "p99 milliseconds": p99, "CPU seconds a request": cpu})
    speed_table.add("HTTP, bare: thousands of requests a second", max(rates["bare"]) / 1000)
    speed_table.add(
        f"HTTP, {CONNECTIONS} connections: throughput, of bare",
        _median_ratio(rates["abuseguard"], rates["bare"]),
        peers={name: _median_ratio(rates[name], rates["bare"]) for name in peers},
        target=_TARGET_OF_BARE,
        at_least=True,
    )
    if cpu["bare"]:
        speed_table.add(
            "HTTP: requests a second of the server's CPU, of bare",
            min(cpu["bare"]) / min(cpu["abuseguard"]),
            peers={name: min(cpu["bare"]) / min(cpu[name]) for name in peers},
            target=_TARGET_OF_BARE,
            at_least=True,
        )
    speed_table.add(
        "HTTP: 99 of 100 requests are answered within",
        median(p99["abuseguard"]),
        peers={name: median(p99[name]) for name in ("bare", *peers)},
        unit="ms",
    )


def _median_ratio(ours, theirs):
    return median(mine / yours for mine, yours in zip(ours, theirs, strict=True))
