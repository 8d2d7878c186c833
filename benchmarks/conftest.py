"""Benchmarks beside the project's peers; the table comes last. Nothing asserts a time: machines differ."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any

import pytest

from benchmarks.speed_table import SpeedTable, machine

# The order of the table.
_SUITES = ("fastapi", "flask", "django", "decision", "redis", "http", "clients", "memory", "import")
_TABLE = pytest.StashKey[SpeedTable]()


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--speed-table", metavar="FILE", type=Path, help="also write the table to a file, as Markdown")


def pytest_configure(config: pytest.Config) -> None:
    config.stash[_TABLE] = SpeedTable()
    # Peers use what others have deprecated, and close little; that is theirs to deal with.
    config.addinivalue_line("filterwarnings", "ignore")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    order = {f"test_{suite}": position for position, suite in enumerate(_SUITES)}
    items.sort(key=lambda item: order.get(item.path.stem, len(order)))


@pytest.fixture
def speed_table(request: pytest.FixtureRequest) -> SpeedTable:
    return request.config.stash[_TABLE]


@pytest.fixture
def run() -> Iterator[Callable[[Coroutine[Any, Any, Any]], Any]]:
    """Runs a coroutine on one event loop, the same for all of a test's contenders."""
    loop = asyncio.new_event_loop()
    yield loop.run_until_complete
    loop.run_until_complete(_cancel_others())
    loop.close()


async def _cancel_others() -> None:
    others = asyncio.all_tasks() - {asyncio.current_task()}
    for task in others:
        task.cancel()
    await asyncio.gather(*others, return_exceptions=True)


@pytest.hookimpl(trylast=True)
def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    table = config.stash[_TABLE]
    if not table.rows:
        return
    terminalreporter.section("speed")
    terminalreporter.write_line(machine())
    terminalreporter.write_line(
        "Times are of the fastest rounds, in parentheses of the median round; ratios are medians."
    )
    terminalreporter.write_line(table.markdown())
    path = config.getoption("--speed-table")
    if path is not None:
        path.write_text(f"{machine()}\n\n{table.markdown()}\n")
