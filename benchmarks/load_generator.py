"""Loads an HTTP server on loopback over connections that are kept: with wrk where it is on PATH, else with Python.

``python -m benchmarks.load_generator PORT SECONDS`` is the one in Python. It is slower than most servers, so that
throughput says less of them than their CPU time does.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass

from benchmarks.requests import HEADER_LINES, PATH
from benchmarks.subprocesses import output_of

CONNECTIONS = 32
_WRK_REPORT = re.compile(r"99%\s+([\d.]+)(us|ms|s).*?(\d+) requests in .*?Requests/sec:\s+([\d.]+)", re.DOTALL)
_MILLISECONDS = {"us": 0.001, "ms": 1, "s": 1000}


@dataclass(frozen=True, slots=True)
class Load:
    """What a server bore: requests, their rate, and how long all but a hundredth of them took at the most."""

    requests: int
    requests_per_second: float
    p99_milliseconds: float


def load(port: int, seconds: int) -> Load:
    """Sends requests to a server for so long, as fast as it answers.

    Raises:
        RuntimeError: it answered one of them with an error.
    """
    wrk = shutil.which("wrk")
    if wrk is None:
        return Load(**output_of("-m", "benchmarks.load_generator", str(port), str(seconds)))
    headers = [part for line in HEADER_LINES for part in ("-H", line)]
    command = [wrk, "-t1", f"-c{CONNECTIONS}", f"-d{seconds}s", "--latency", *headers]
    report = subprocess.run(
        [*command, f"http://127.0.0.1:{port}{PATH}"], check=True, stdout=subprocess.PIPE, text=True
    ).stdout
    found = _WRK_REPORT.search(report)
    if found is None or "Non-2xx" in report or "Socket errors" in report:
        raise RuntimeError(report)
    p99, unit, requests, rate = found.groups()
    return Load(int(requests), float(rate), float(p99) * _MILLISECONDS[unit])


async def _load(port: int, seconds: int) -> dict[str, float]:
    end = time.perf_counter() + seconds
    request = "\r\n".join([f"GET {PATH} HTTP/1.1", *HEADER_LINES, "", ""]).encode()
    milliseconds: list[float] = []

    async def connection() -> None:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < end:
            start = time.perf_counter()
            writer.write(request)
            head = await reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head, re.IGNORECASE)
            if not head.startswith(b"HTTP/1.1 200") or length is None:
                raise RuntimeError(head.decode())
            await reader.readexactly(int(length[1]))
            milliseconds.append((time.perf_counter() - start) * 1000)
        writer.close()

    await asyncio.gather(*(connection() for _ in range(CONNECTIONS)))
    milliseconds.sort()
    return {
        "requests": len(milliseconds),
        "requests_per_second": len(milliseconds) / seconds,
        "p99_milliseconds": milliseconds[len(milliseconds) * 99 // 100],
    }


if __name__ == "__main__":
    print(json.dumps(asyncio.run(_load(int(sys.argv[1]), int(sys.argv[2])))))
