"""What a run of the demo came to: figures for a program, sentences for a reader."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from abuseguard.demo.tally import Count

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from abuseguard.demo.tally import Tally
    from abuseguard.replay.log import LogError

TOP_ACCOUNTS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """The result of a run.

    Args:
        tally: what was counted.
        limits: that were in force, as texts.
        seconds: the run took.
        log_time: whether the guard ran on the log's own time.
        kind: tells the kind of traffic of an account; None if nobody knows.
        kinds: all kinds in the order in which they are shown.
        skipped_lines: lines of the log that were no requests.
        first_skipped: the first of them, and what was wrong with it.
        interrupted: it was stopped before its end.
    """

    tally: Tally
    limits: Sequence[str]
    seconds: float
    log_time: bool = True
    kind: Callable[[str], str] | None = None
    kinds: Iterable[str] = field(default=())
    skipped_lines: int = 0
    first_skipped: LogError | None = None
    interrupted: bool = False

    @property
    def requests_per_second(self) -> float:
        """Over the whole run."""
        return self.tally.total.requests / self.seconds if self.seconds > 0 else 0.0

    @property
    def groups(self) -> dict[str, Count]:
        """The rows of the table: kinds of traffic, or the accounts that were denied most and asked most."""
        if self.kind is not None:
            return self.tally.by(self.kind, self.kinds)
        accounts = self.tally.accounts
        top = sorted(accounts, key=lambda account: (-accounts[account].denied, -accounts[account].requests, account))
        groups = {account: accounts[account] for account in top[:TOP_ACCOUNTS]}
        if len(top) > TOP_ACCOUNTS:
            rest = Count()
            for account in top[TOP_ACCOUNTS:]:
                rest.merge(accounts[account])
            groups[f"({len(top) - TOP_ACCOUNTS:,} more accounts)"] = rest
        return groups

    @property
    def sentences(self) -> list[str]:
        """The result in plain words."""
        total = self.tally.total
        if self.interrupted:
            opening = f"Interrupted after {_number(total.requests, 'request')}"
        else:
            opening = _number(total.requests, "request")
        speed = f"{self.requests_per_second:,.0f} a second over real HTTP"
        accounts = _number(total.accounts, "account")
        told = [f"{opening} of {accounts}, {self._log_span} of the log, in {self.seconds:.1f} s: {speed}."]
        if total.requests:
            told.append(self._denials)
        if total.degraded:
            told.append(f"{_number(total.degraded, 'request')} were decided without the store, which did not answer.")
        if total.failed:
            told.append(f"{_number(total.failed, 'request')} failed with a server error (5xx).")
        if self.skipped_lines:
            first = f" The first: {self.first_skipped}" if self.first_skipped else ""
            told.append(f"Lines of the log passed over as no requests: {self.skipped_lines:,}.{first}")
        return told

    @property
    def _log_span(self) -> str:
        first_ts, last_ts = self.tally.first_ts, self.tally.last_ts
        seconds = 0.0 if first_ts is None or last_ts is None else last_ts - first_ts
        for size, name in ((86_400, "days"), (3_600, "hours"), (60, "minutes")):
            if seconds >= 2 * size:
                return f"{seconds / size:.1f} {name}"
        return f"{seconds:.0f} seconds"

    @property
    def _denials(self) -> str:
        total = self.tally.total
        limits = f"The limits for each account ({', '.join(self.limits)})" if self.limits else "No limits"
        if not total.denied:
            return f"{limits} denied nothing."
        denied_accounts = sum(1 for count in self.tally.accounts.values() if count.denied)
        text = f"{limits} denied {_number(total.denied, 'request')} of {_number(denied_accounts, 'account')}"
        if self.kind is None:
            return f"{text}; the other {total.accounts - denied_accounts:,} were never denied."
        hit = [name for name, count in self.groups.items() if count.denied]
        spared = [name for name, count in self.groups.items() if not count.denied]
        never = f"; never one of {_listed(spared)}" if spared else ""
        return f"{text}, all of them {_listed(hit)}{never}."

    def as_dict(self) -> dict[str, Any]:
        """The figures, ready for JSON."""
        return {
            **self.tally.total.as_dict(),
            "seconds": round(self.seconds, 3),
            "requests_per_second": round(self.requests_per_second, 1),
            "first_ts": self.tally.first_ts,
            "last_ts": self.tally.last_ts,
            "limits": list(self.limits),
            "log_time": self.log_time,
            "skipped_lines": self.skipped_lines,
            "interrupted": self.interrupted,
            "kinds": None if self.kind is None else {name: count.as_dict() for name, count in self.groups.items()},
            "by_account": {account: count.as_dict() for account, count in self.tally.accounts.items()},
        }


def _number(number: int, name: str) -> str:
    return f"{number:,} {name}{'' if number == 1 else 's'}"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(filter(None, (", ".join(names[:-1]), names[-1])))
