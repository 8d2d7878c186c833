"""The table that a run ends with: every measure, ours beside its peers' and beside its target."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.rounds import Microseconds, Rounds

Figure = Microseconds | float

_COLUMNS = ("measure", "ours", "peers", "target", "met")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One measure.

    Args:
        measure: what was measured.
        ours, peers: what came out.
        unit: of all of them; none for a ratio.
        target: the most, or where ``at_least`` the least, that ours may be; None where there is no target.
    """

    measure: str
    ours: Figure
    peers: Mapping[str, Figure] = field(default_factory=dict)
    unit: str = ""
    target: float | None = None
    at_least: bool = False

    @property
    def met(self) -> bool | None:
        if self.target is None:
            return None
        ours = self.ours.least if isinstance(self.ours, Microseconds) else self.ours
        return ours >= self.target if self.at_least else ours <= self.target

    def cells(self) -> tuple[str, ...]:
        sign = "≥" if self.at_least else "≤"
        return (
            self.measure,
            self._text(self.ours, whole=True),
            ", ".join(f"{name} {self._text(figure)}" for name, figure in self.peers.items()),
            "" if self.target is None else f"{sign} {self._number(self.target)}",
            {None: "", True: "yes", False: "no"}[self.met],
        )

    def _text(self, figure: Figure, *, whole: bool = False) -> str:
        if not isinstance(figure, Microseconds):
            return self._number(figure)
        return f"{self._number(figure.least)} ({self._number(figure.median)})" if whole else self._number(figure.least)

    def _number(self, number: float) -> str:
        digits = 0 if abs(number) >= 100 else 1 if abs(number) >= 10 or self.unit == "MB" else 2
        return f"{number:.{digits}f}{' ' if self.unit else ''}{self.unit}"


class SpeedTable:
    """Rows in the order in which they were measured."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def add(self, measure: str, ours: Figure, **options: object) -> None:
        """Adds a row: see ``Row``."""
        self.rows.append(Row(measure=measure, ours=ours, **options))  # type: ignore[arg-type]

    def add_added(
        self,
        where: str,
        played: Rounds,
        *,
        peers: Mapping[str, str] | Sequence[str],
        target_us: float,
        reference_bare_us: float,
    ) -> None:
        """Adds what limiters add to an application: in microseconds, and as a share of what it takes bare.

        Args:
            where: which application.
            played: its rounds, with ``"bare"`` and ``"abuseguard"``.
            peers: which of the others are shown; by name, what each is added to, if that is not ``"bare"``.
            target_us: the target, set on a machine on which the bare application took ``reference_bare_us``.
        """
        bases = dict(peers) if isinstance(peers, Mapping) else dict.fromkeys(peers, "bare")
        self.add(f"{where}, bare", played.took("bare"), unit="µs")
        self.add(
            f"{where}: added",
            played.added("abuseguard"),
            peers={name: played.added(name, base) for name, base in bases.items()},
            unit="µs",
            target=target_us,
        )
        self.add(
            f"{where}: added, of what it takes bare",
            played.share("abuseguard"),
            peers={name: played.share(name, base) for name, base in bases.items()},
            target=target_us / reference_bare_us,
        )

    def markdown(self) -> str:
        cells = [_COLUMNS, *(row.cells() for row in self.rows)]
        # Peers are as wide as they are; everything else is aligned, to be read without a Markdown viewer as well.
        widths = [0 if name == "peers" else max(len(row[at]) for row in cells) for at, name in enumerate(_COLUMNS)]
        lines = [
            "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |"
            for row in cells
        ]
        lines.insert(1, "|" + "|".join("-" * (max(width, 5) + 2) for width in widths) + "|")
        return "\n".join(lines)


def machine() -> str:
    """What it was measured on."""
    model = next(
        (
            line.partition(":")[2].strip()
            for line in _read("/proc/cpuinfo").splitlines()
            if line.startswith("model name")
        ),
        platform.processor() or platform.machine(),
    )
    load = ", ".join(f"{value:.1f}" for value in os.getloadavg())
    return (
        f"{platform.python_implementation()} {platform.python_version()}, {platform.system()} {platform.machine()}, "
        f"{os.cpu_count()} x {model}, load averages {load}"
    )


def _read(path: str) -> str:
    try:
        return Path(path).read_text()
    except OSError:
        return ""
