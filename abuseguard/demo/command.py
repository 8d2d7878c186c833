"""`abuseguard demo`: its options, and what it says when something is wrong."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.util
import json
import math
import time
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

import click

from abuseguard.errors import AbuseGuardError, MissingExtraError, SettingsError

if TYPE_CHECKING:
    from abuseguard.demo.driver import Pace
    from abuseguard.demo.server import ServerOptions
    from abuseguard.demo.source import Source
    from abuseguard.demo.summary import Summary

DEFAULT_LIMITS = ("60/minute burst=20", "100000/hour unit=tokens")
EXTRA = "demo"
PACKAGES = ("fastapi", "h11", "rich", "uvicorn")
INTERRUPTED = 130


class InputError(click.ClickException):
    """What was asked for cannot be done."""

    exit_code = 2


class FailureError(click.ClickException):
    """The demo's server failed."""

    exit_code = 1


@click.command()
@click.option("--trace", metavar="FILE", help="A request log, plain or gzip, - for standard input. Default: its own.")
@click.option(
    "--limit",
    "limits",
    multiple=True,
    metavar="LIMIT",
    help="For each account, such as '600/minute burst=50' or '200000/hour unit=tokens'; may be repeated. "
    f"Default: {' and '.join(map(repr, DEFAULT_LIMITS))}.",
)
@click.option("--port", type=click.IntRange(0, 65535), default=0, help="Where the server listens. Default: any free.")
@click.option(
    "--concurrency", type=click.IntRange(1, 512), default=32, show_default=True, help="Requests under way at a time."
)
@click.option("--real-time", is_flag=True, help="Keep the log's pace, and run the guard on the system's clock.")
@click.option("--speed", type=click.FloatRange(0, 1e6, min_open=True), help="With --real-time: so many times as fast.")
@click.option("--max-requests", type=click.IntRange(1), help="Stop after so many.")
@click.option("--json", "json_path", metavar="FILE", help="Write the summary there as well, as JSON.")
def demo(
    trace: str | None,
    limits: tuple[str, ...],
    port: int,
    concurrency: int,
    real_time: bool,
    speed: float | None,
    max_requests: int | None,
    json_path: str | None,
) -> None:
    """Send the requests of a log at a protected server, and show what became of them.

    The server is a FastAPI application in the shape of a chat API, on loopback, and the requests are real HTTP. The
    guard runs on the log's own time: days pass in seconds, and the limits mean what they say.
    """
    _require_packages()
    from abuseguard.demo.driver import Pace
    from abuseguard.demo.server import ServerOptions
    from abuseguard.demo.server_process import PortError
    from abuseguard.demo.source import Source
    from abuseguard.replay.log import LogError

    if speed is not None and not real_time:
        raise InputError("--speed goes with --real-time")
    if speed is not None and math.isnan(speed):  # which is in every range, as far as click can see
        raise InputError("--speed: got nan, expected a number")
    options = ServerOptions(limits=limits or DEFAULT_LIMITS, log_time=not real_time)
    _check_limits(options.limits)
    pace = Pace(concurrency=concurrency, speed=(speed or 1.0) if real_time else None)
    try:
        with contextlib.ExitStack() as stack:
            source = stack.enter_context(Source(trace, max_requests=max_requests))
            json_file = None if json_path is None else stack.enter_context(_created(json_path))
            summary = _run(source, options, port, pace)
            if json_file is not None:
                json.dump(summary.as_dict(), json_file, indent=1)
                json_file.write("\n")
    except (LogError, PortError) as error:
        raise InputError(str(error)) from error
    except AbuseGuardError as error:
        raise FailureError(str(error)) from error
    if summary.interrupted:
        raise click.exceptions.Exit(INTERRUPTED)
    if summary.tally.total.failed:
        raise FailureError("the demo's server answered with server errors (5xx)")


def _require_packages() -> None:
    missing = next((package for package in PACKAGES if importlib.util.find_spec(package) is None), None)
    if missing is not None:
        raise MissingExtraError(missing, EXTRA)


def _check_limits(texts: tuple[str, ...]) -> None:
    from abuseguard.settings import Settings

    try:
        Settings(limits=texts)
    except SettingsError as error:
        raise InputError(f"--limit: {error}") from error


def _created(path: str) -> TextIO:
    try:
        return Path(path).open("w", encoding="utf-8")
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: {getattr(error, 'strerror', None) or error}") from error


def _run(source: Source, options: ServerOptions, port: int, pace: Pace) -> Summary:
    from rich.console import Console

    from abuseguard.demo.driver import drive
    from abuseguard.demo.server_process import HOST, ServerProcess
    from abuseguard.demo.summary import Summary
    from abuseguard.demo.table import Progress, show_summary
    from abuseguard.demo.tally import Tally

    console = Console(highlight=False)
    tally = Tally()
    interrupted = False
    with ServerProcess(options, port=port) as server:
        live: contextlib.AbstractContextManager[object] = contextlib.nullcontext()
        if console.is_terminal:
            console.print(f"A protected server at http://{HOST}:{server.port}, limits: {', '.join(options.limits)}")
            live = Progress(tally, source.share).live(console)
        started = time.perf_counter()
        try:
            with live:
                asyncio.run(drive(source, server, pace, tally))
        except KeyboardInterrupt:
            interrupted = True
        seconds = time.perf_counter() - started
    summary = Summary(
        tally=tally,
        limits=options.limits,
        seconds=seconds,
        log_time=options.log_time,
        kind=source.kind,
        kinds=source.kinds,
        skipped_lines=source.skipped,
        first_skipped=source.first_skipped,
        interrupted=interrupted,
    )
    show_summary(console, summary)
    return summary
