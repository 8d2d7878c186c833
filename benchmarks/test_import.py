"""What an import takes of a CPU, in a new process that has loaded nothing else."""

from __future__ import annotations

import pytest

from benchmarks.subprocesses import output_of

_TARGET_MILLISECONDS = 60
_ROUNDS = 10
_PEERS = ("limits", "slowapi", "flask_limiter", "throttled", "pyrate_limiter")
_PROGRAM = """
import sys, time
start = time.process_time()
import {module}
milliseconds = (time.process_time() - start) * 1000
print(f'[{{milliseconds}}, {{str(bool({{"numba", "redis"}} & sys.modules.keys())).lower()}}]')
"""


def _import(module):
    return output_of("-c", _PROGRAM.format(module=module))


@pytest.mark.benchmark(group="import")
def test_import(benchmark, speed_table):
    milliseconds = {module: [] for module in (*_PEERS, "abuseguard")}

    def import_peers():
        for module in _PEERS:
            milliseconds[module].append(_import(module)[0])

    def import_ours():
        taken, loads_optional_libraries = _import("abuseguard")
        assert not loads_optional_libraries
        milliseconds["abuseguard"].append(taken)

    benchmark.pedantic(import_ours, setup=import_peers, rounds=_ROUNDS)

    least = {module: min(taken) for module, taken in milliseconds.items()}
    benchmark.extra_info.update(least)
    speed_table.add(
        "import, without numba and redis",
        least.pop("abuseguard"),
        peers=least,
        unit="ms",
        target=_TARGET_MILLISECONDS,
    )
