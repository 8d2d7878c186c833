"""The demo on a terminal: live progress while it runs, a table when it is over."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from collections.abc import Callable

    from abuseguard.demo.summary import Summary
    from abuseguard.demo.tally import Count, Tally

REFRESHES_PER_SECOND = 4
NAME_COLUMNS = 24


class Progress:
    """How far a run has come, drawn a few times a second.

    Args:
        tally: what has been counted so far.
        share: tells how much of the log has been sent, 0 to 1; None where nobody knows.
    """

    def __init__(self, tally: Tally, share: Callable[[], float | None]) -> None:
        self._tally = tally
        self._share = share
        self._started = self._last = time.monotonic()
        self._last_requests = 0
        self._per_second = 0.0

    def live(self, console: Console) -> Live:
        """A context manager that shows it while it lasts, and leaves nothing behind."""
        return Live(
            console=console, get_renderable=self.render, refresh_per_second=REFRESHES_PER_SECOND, transient=True
        )

    def render(self) -> RenderableType:
        """What is shown now."""
        now = time.monotonic()
        total = self._tally.total
        if now - self._last >= 0.5:
            self._per_second = (total.requests - self._last_requests) / (now - self._last)
            self._last, self._last_requests = now, total.requests
        share = self._share()
        grid = Table.grid(padding=(0, 3))
        grid.add_row(
            _figure("requests", f"{total.requests:,}"),
            _figure("a second", f"{self._per_second:,.0f}"),
            _figure("time left", self._time_left(share, now)),
        )
        grid.add_row(
            _figure("allowed", f"{total.allowed:,}", "green"),
            _figure("denied", f"{total.denied:,}", "red" if total.denied else ""),
            _figure("degraded", f"{total.degraded:,}", "yellow" if total.degraded else ""),
        )
        grid.add_row(
            _figure("streamed", f"{total.streamed:,}"),
            _figure("tokens used", f"{total.tokens:,}"),
            _figure("failed", f"{total.failed:,}", "bold red" if total.failed else ""),
        )
        bar = ProgressBar(total=1.0, completed=share or 0.0, width=60, pulse=share is None)
        return Group(bar, Text(), grid)  # a bar does not end its own line

    def _time_left(self, share: float | None, now: float) -> str:
        if not share or share < 0.005:
            return "?"
        seconds = (now - self._started) * (1 - share) / share
        return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def show_summary(console: Console, summary: Summary) -> None:
    """Prints the table and the sentences."""
    by_kind = summary.kind is not None
    table = Table(box=SIMPLE_HEAD, padding=(0, 1), collapse_padding=True, pad_edge=False)
    table.add_column("traffic" if by_kind else "account", max_width=NAME_COLUMNS, no_wrap=True)
    headings = ("accounts", "requests", "allowed", "denied", "tokens", "p50 ms", "p99 ms")
    for heading in headings if by_kind else headings[1:]:
        table.add_column(heading, justify="right", no_wrap=True)
    for name, count in (*summary.groups.items(), ("all", summary.tally.total)):
        cells = _cells(count)
        table.add_row(Text(printable(name)), *(cells if by_kind else cells[1:]), style="bold" if name == "all" else "")
    console.print(table)
    for sentence in summary.sentences:
        console.print(Text(sentence))


def printable(name: str) -> str:
    r"""A name out of a log that cannot do anything to a terminal.

    >>> printable("a\x1b[31m")
    'a?[31m'
    """
    return "".join(character if character.isprintable() else "?" for character in name[: 2 * NAME_COLUMNS])


def _cells(count: Count) -> list[Text]:
    return [
        *(Text(f"{figure:,}") for figure in (count.accounts, count.requests, count.allowed)),
        Text(f"{count.denied:,}", style="red" if count.denied else ""),
        Text(f"{count.tokens:,}"),
        *(Text(_milliseconds(count.latencies.quantile_seconds(share))) for share in (0.5, 0.99)),
    ]


def _milliseconds(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1000:.1f}"


def _figure(name: str, value: str, style: str = "") -> Text:
    return Text.assemble((f"{name} ", "dim"), (value, style or "bold"))
