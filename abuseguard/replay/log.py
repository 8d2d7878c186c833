"""The request log: one JSON object a line, in time order, plain or gzip.

A log comes from somebody's production system, so it is long, its lines can be huge (a prompt may fill a context
window), and now and then a line is cut off or another program wrote into the file. Reading therefore streams, holds one
line at a time, bounds that line, and passes over what is not a request, saying which line it was and why.
"""

from __future__ import annotations

import gzip
import io
import logging
import os
import stat
import sys
import zlib
from pathlib import Path
from typing import TYPE_CHECKING, BinaryIO

from abuseguard.errors import AbuseGuardError
from abuseguard.replay.logged_request import LoggedRequest, MalformedError, Message, parse

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import TracebackType

__all__ = ["MAX_LINE_BYTES", "LogError", "LogReader", "LoggedRequest", "Message", "read_log"]

MAX_LINE_BYTES = 64 * 1024 * 1024

_GZIP_MAGIC = b"\x1f\x8b"
_logger = logging.getLogger(__name__)


class LogError(AbuseGuardError):
    """A request log, or a line of it, cannot be read; names the source, the line and what is wrong.

    Args:
        source: the path that was given, ``-`` for standard input.
        line_number: counted from 1; None if the whole source is meant.
        reason: what is wrong, in a few words.

    >>> print(LogError("day.jsonl", 7, "not JSON"))
    day.jsonl: line 7: not JSON
    """

    def __init__(self, source: str, line_number: int | None, reason: str) -> None:
        self.source = source
        self.line_number = line_number
        self.reason = reason
        super().__init__(source, line_number, reason)

    def __str__(self) -> str:
        line = "" if self.line_number is None else f"line {self.line_number}: "
        return f"{self.source}: {line}{self.reason}"


class LogReader:
    """The requests of one log, in its order; an iterator that knows how far it has come.

    source: what is being read.
    line_number: lines seen so far, blank and malformed ones included.
    skipped: malformed lines passed over so far.
    size_bytes: of the file as it lies on disk; None where that is not known (a pipe).
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        strict: bool = False,
        report: Callable[[LogError], None] | None = None,
        max_line_bytes: int = MAX_LINE_BYTES,
    ) -> None:
        self.source = os.fspath(path)
        self.line_number = 0
        self.skipped = 0
        self.size_bytes: int | None = None
        self._strict = strict
        self._report = report or _warn
        self._max_line_bytes = max_line_bytes
        self._file: BinaryIO | None = None
        try:
            self._file = sys.stdin.buffer if self.source == "-" else Path(self.source).open("rb")  # noqa: SIM115
            self._lines = _decompressed(self._file)
            status = os.fstat(self._file.fileno())
        except io.UnsupportedOperation:
            pass  # a stream without a file behind it has no size
        except (OSError, ValueError) as error:
            self.close()
            reason = error.strerror if isinstance(error, OSError) else None
            raise LogError(self.source, None, reason or str(error)) from error
        else:
            self.size_bytes = status.st_size if stat.S_ISREG(status.st_mode) else None

    def __iter__(self) -> LogReader:
        return self

    def __next__(self) -> LoggedRequest:
        while self._file is not None:
            try:
                line = self._read_line()
                if not line:
                    break
                if not line.isspace():
                    return parse(line)
            except MalformedError as error:
                self._malformed(error)
            except (OSError, EOFError, zlib.error) as error:
                # Nothing after this point can be read: a cut-off or damaged gzip file, a failing disk.
                self.close()
                self._malformed(MalformedError(f"the rest cannot be read: {error}"), line_number=self.line_number + 1)
        self.close()
        raise StopIteration

    @property
    def position_bytes(self) -> int:
        """How much of ``size_bytes`` has been read, as it lies on disk; 0 where that is not known."""
        if self._file is None:
            return self.size_bytes or 0
        return self._file.tell() if self.size_bytes is not None else 0

    def close(self) -> None:
        """Closes the file (standard input stays open). Reading on then finds nothing more."""
        file, self._file = self._file, None
        if file is not None and self.source != "-":
            file.close()

    def __enter__(self) -> LogReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _read_line(self) -> bytes:
        line = self._lines.readline(self._max_line_bytes + 1)
        if line:
            self.line_number += 1
        if len(line) > self._max_line_bytes:
            while line and not line.endswith(b"\n"):
                line = self._lines.readline(self._max_line_bytes)
            raise MalformedError(f"longer than {self._max_line_bytes} bytes")
        return line

    def _malformed(self, malformed: MalformedError, *, line_number: int | None = None) -> None:
        error = LogError(self.source, line_number or self.line_number, str(malformed))
        if self._strict:
            self.close()
            raise error from malformed
        self.skipped += 1
        self._report(error)


def read_log(
    path: str | os.PathLike[str],
    *,
    strict: bool = False,
    report: Callable[[LogError], None] | None = None,
    max_line_bytes: int = MAX_LINE_BYTES,
) -> LogReader:
    """Reads a request log as a stream, one line in memory at a time.

    Args:
        path: of the log, plain or gzip (told apart by content); ``-`` for standard input.
        strict: raise at the first malformed line instead of reporting it and going on.
        report: is given a ``LogError`` for each line passed over; by default each is logged as a warning.
        max_line_bytes: a longer line is malformed.

    Raises:
        LogError: at once if the source cannot be opened; while reading, if ``strict`` and a line is malformed.
    """
    return LogReader(path, strict=strict, report=report, max_line_bytes=max_line_bytes)


def _warn(error: LogError) -> None:
    _logger.warning("passed over %s", error)


def _decompressed(file: BinaryIO) -> BinaryIO | gzip.GzipFile:
    start: bytes = file.peek(2)[:2] if isinstance(file, io.BufferedReader) else b""
    # No buffer of ours around it: one that reads ahead would lose what it holds when a cut-off file ends in an error.
    return gzip.GzipFile(fileobj=file) if start == _GZIP_MAGIC else file
