"""uvicorn as fast as it gets, one worker, in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
import urllib.request
from pathlib import Path

from benchmarks.asgi_apps import NAME_VARIABLE
from benchmarks.requests import PATH
from benchmarks.subprocesses import ROOT, environment
from tests.redis_servers import free_ports

_START_SECONDS = 30
_TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


class UvicornServer:
    """Serves one of the applications of ``asgi_apps`` between ``with`` and its end.

    Args:
        name: which.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def __enter__(self) -> UvicornServer:
        (self.port,) = free_ports(1)
        options = {"--loop": "uvloop", "--http": "httptools", "--log-level": "warning", "--port": str(self.port)}
        self._process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "benchmarks.asgi_apps:named_app", "--factory", "--no-access-log"]
            + [part for option in options.items() for part in option],
            cwd=ROOT,
            env=environment(**{NAME_VARIABLE: self._name}),
            stdout=subprocess.DEVNULL,
        )
        try:
            self._wait_until_it_answers()
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self._process.terminate()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()

    def cpu_seconds(self) -> float | None:
        """What it has used of a CPU so far, where the system tells."""
        try:
            fields = Path(f"/proc/{self._process.pid}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            return None
        return (int(fields[11]) + int(fields[12])) / _TICKS_PER_SECOND

    def _wait_until_it_answers(self) -> None:
        deadline = time.monotonic() + _START_SECONDS
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{self.port}{PATH}", timeout=1) as response:
                    assert response.status == 200
                    return
            except OSError as error:
                if self._process.poll() is not None or time.monotonic() > deadline:
                    raise TimeoutError(f"{self._name} does not answer") from error
                time.sleep(0.05)
