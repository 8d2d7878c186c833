"""How much memory a key takes, among a million, and that it is no more after the bound."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor

import pytest

from benchmarks.memory_growth import LIMITERS
from benchmarks.subprocesses import output_of

_KEYS = 1_000_000
# A quarter is enough for the peers: it fills a dictionary as much as the whole does, and is done sooner.
_KEYS_OF_PEERS = 250_000
_FURTHER_KEYS = 2_000_000
_TARGET_BYTES = 200


def _bytes_a_key(name, keys=_KEYS_OF_PEERS, further_keys=0):
    return output_of("-m", "benchmarks.memory_growth", name, str(keys), str(further_keys))


@pytest.mark.benchmark(group="memory")
def test_memory_a_key(benchmark, speed_table):
    peers = [name for name in LIMITERS if name != "abuseguard"]
    with ThreadPoolExecutor(2) as pool:
        grown = {name: grown["at_bound"] for name, grown in zip(peers, pool.map(_bytes_a_key, peers), strict=True)}

    ours = benchmark.pedantic(_bytes_a_key, args=("abuseguard", _KEYS, _FURTHER_KEYS))

    benchmark.extra_info.update({**grown, "abuseguard": ours})
    speed_table.add(f"memory: a key, of {_KEYS:,}", ours["at_bound"], peers=grown, unit="bytes", target=_TARGET_BYTES)
    speed_table.add(
        f"memory: a key, after {_FURTHER_KEYS:,} more have come",
        ours["after_further"],
        unit="bytes",
        target=_TARGET_BYTES,
    )
