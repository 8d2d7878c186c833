"""Where the demo's requests come from: a request log, or the demo's own."""

from __future__ import annotations

from itertools import chain
from typing import TYPE_CHECKING

from abuseguard.demo.trace import KINDS, demo_kind, demo_requests
from abuseguard.replay.log import LogError, read_log

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Sequence
    from types import TracebackType

    from abuseguard.replay.logged_request import LoggedRequest

# A file that begins with so many lines that are no requests is another kind of file.
LINES_TO_RECOGNISE = 100


class Source:
    """Requests, and how much of them has been taken; a context manager that closes the log.

    Args:
        path: of a request log, ``-`` for standard input; None for the demo's own.
        max_requests: how many are taken at most; None for all.

    Raises:
        LogError: the log cannot be read, or is not one.
    """

    kind: Callable[[str], str] | None = None
    kinds: Sequence[str] = ()

    def __init__(self, path: str | None = None, *, max_requests: int | None = None) -> None:
        self.taken = 0
        self.first_skipped: LogError | None = None
        self._total = max_requests
        self._reader = None
        self._requests: Iterator[LoggedRequest]
        if path is None:
            own = demo_requests()
            self._total = min(len(own), max_requests or len(own))
            self._requests = iter(own)
            self.kind, self.kinds = demo_kind, tuple(dict.fromkeys(KINDS.values()))
            return
        self._reader = read_log(path, report=self._skip)
        try:
            first = next(self._reader, None)
        except BaseException:
            self._reader.close()
            raise
        if first is None:
            self._reader.close()
            raise LogError(path, None, self._what_else() if self.skipped else "no requests in it")
        self._requests = chain([first], self._reader)

    def __iter__(self) -> Iterator[LoggedRequest]:
        return self

    def __next__(self) -> LoggedRequest:
        if self.taken == self._total:
            raise StopIteration
        request = next(self._requests)
        self.taken += 1
        return request

    @property
    def skipped(self) -> int:
        """Lines of the log that were no requests."""
        return 0 if self._reader is None else self._reader.skipped

    def share(self) -> float | None:
        """How much has been taken, 0 to 1; None where nobody knows."""
        if self._total:
            return self.taken / self._total
        if self._reader is None or not self._reader.size_bytes:
            return None
        return self._reader.position_bytes / self._reader.size_bytes

    def __enter__(self) -> Source:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._reader is not None:
            self._reader.close()

    def _skip(self, error: LogError) -> None:
        if self.first_skipped is None:
            self.first_skipped = error
        if self.taken == 0 and self._reader is not None and self._reader.skipped >= LINES_TO_RECOGNISE:
            raise LogError(error.source, None, self._what_else())

    def _what_else(self) -> str:
        assert self.first_skipped is not None
        return f"not a request log: line {self.first_skipped.line_number}: {self.first_skipped.reason}"
