"""How much memory a limiter's table takes, in a process of its own.

``python -m benchmarks.memory_growth NAME KEYS FURTHER_KEYS``
"""

from __future__ import annotations

import json
import resource
import sys
from collections.abc import Callable
from pathlib import Path

# One limit, of a kind that is not full again before the end.
_RATE = "100/day"

Take = Callable[[str], object]


def abuseguard(max_keys: int) -> Take:
    from abuseguard.buckets.memory import MemoryStore
    from abuseguard.buckets.store import Demand

    store = MemoryStore(max_keys=max_keys)
    demands = [Demand("100-per-day", cost_ns=864 * 10**9, capacity_ns=86_400 * 10**9)]
    return lambda account: store.take(account, demands)


def limits(max_keys: int) -> Take:
    """Knows no bound."""
    from limits import parse
    from limits.storage import MemoryStorage
    from limits.strategies import FixedWindowRateLimiter

    item = parse(_RATE)
    limiter = FixedWindowRateLimiter(MemoryStorage())
    return lambda account: limiter.hit(item, account)


def throttled(max_keys: int) -> Take:
    from throttled import MemoryStore, Throttled

    limiter = Throttled(quota=_RATE, using="gcra", store=MemoryStore(options={"MAX_SIZE": max_keys}))
    return limiter.limit


def pyrate(max_keys: int) -> Take:
    """Knows no bound."""
    from pyrate_limiter import Duration, Rate

    from benchmarks.pyrate_buckets import client_limiter

    limiter = client_limiter(Rate(100, Duration.DAY))
    return lambda account: limiter.try_acquire(account, blocking=False)


LIMITERS: dict[str, Callable[[int], Take]] = {
    "abuseguard": abuseguard,
    "limits": limits,
    "throttled-py": throttled,
    "pyrate-limiter": pyrate,
}


def resident_bytes() -> int:
    """What this process has in memory."""
    pages = Path("/proc/self/statm")
    if pages.exists():
        return int(pages.read_text().split()[1]) * resource.getpagesize()
    # Elsewhere what it had at the most, which is more where a table was copied to a larger one.
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most if sys.platform == "darwin" else most * 1024


def main(name: str, keys: int, further_keys: int) -> None:
    """Prints the bytes a key with as many as are kept at the most, and after so many further ones have come."""
    take = LIMITERS[name](keys)
    take("ip:first")
    before = resident_bytes()

    def bytes_a_key_after(numbers: range) -> float:
        for number in numbers:
            take(f"ip:10.{number >> 16}.{number >> 8 & 255}.{number & 255}")
        return (resident_bytes() - before) / keys

    at_bound = bytes_a_key_after(range(keys))
    further = bytes_a_key_after(range(keys, keys + further_keys))
    print(json.dumps({"at_bound": at_bound, "after_further": further}))


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
