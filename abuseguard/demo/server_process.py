"""The demo's server in a process of its own, so that it and the driver do not share one interpreter's time."""

from __future__ import annotations

import contextlib
import multiprocessing
import signal
import socket
import sys
import threading
import time
from typing import TYPE_CHECKING

from abuseguard.errors import AbuseGuardError

if TYPE_CHECKING:
    from collections.abc import Iterator
    from multiprocessing.connection import Connection
    from types import TracebackType

    import uvicorn

    from abuseguard.demo.server import ServerOptions

HOST = "127.0.0.1"
START_SECONDS = 60.0
STOP_SECONDS = 5.0
_STARTED = "started"


class ServerError(AbuseGuardError):
    """The demo's server did not start, broke down, or gave an answer that it must not give."""


class PortError(AbuseGuardError):
    """The port that was asked for cannot be had."""


class ServerProcess:
    """Runs the demo's application under uvicorn on loopback; a context manager, started and stopped by it.

    Args:
        options: how the application is set up.
        port: the port to listen at; 0 for any that is free.

    Raises:
        PortError: the port cannot be had.
        ServerError: on entering, if the server does not start.
    """

    def __init__(self, options: ServerOptions, *, port: int = 0) -> None:
        self._options = options
        # A socket that knows its protocol: asyncio turns Nagle's algorithm off for those only, and with it on, every
        # answer in two parts waits 40 ms for an acknowledgement.
        self._socket = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            if sys.platform != "win32":  # there, it would let two servers have the same port
                self._socket.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            self._socket.bind((HOST, port))
            self._socket.listen(1024)
        except (OSError, OverflowError) as error:
            self._socket.close()
            reason = (error.strerror if isinstance(error, OSError) else None) or str(error)
            raise PortError(f"port {port}: {reason}") from None
        self.port: int = self._socket.getsockname()[1]

    def __enter__(self) -> ServerProcess:
        context = multiprocessing.get_context("spawn")
        self._channel, theirs = context.Pipe()
        self._process = context.Process(
            target=_serve, args=(self._options, self._socket, theirs), name="abuseguard-demo-server", daemon=True
        )
        try:
            with _interrupts_ignored():
                self._process.start()
            theirs.close()
            self._socket.close()
            message = self._channel.recv() if self._channel.poll(START_SECONDS) else "it took too long"
        except EOFError:
            message = "its process ended"
        except BaseException:
            self.stop()
            raise
        if message != _STARTED:
            self.stop()
            raise ServerError(f"the demo's server did not start: {message}")
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.stop()

    @property
    def alive(self) -> bool:
        """Whether the process is running."""
        return self._process.is_alive()

    @property
    def pid(self) -> int | None:
        """The process's id."""
        return self._process.pid

    @property
    def exit_code(self) -> int | None:
        """The process's exit code, negative for a signal; None while it runs."""
        return self._process.exitcode

    def stop(self) -> None:
        """Asks the server to finish, and makes it if it does not in a few seconds. Safe to call again."""
        self._channel.close()
        self._socket.close()
        if self._process.pid is None:  # it was never started
            return
        self._process.join(STOP_SECONDS)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()


@contextlib.contextmanager
def _interrupts_ignored() -> Iterator[None]:
    """A process started meanwhile ignores Ctrl-C from its first instruction on: its parent tells it when to stop."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _serve(options: ServerOptions, listener: socket.socket, channel: Connection) -> None:
    """The process: serves until the other end of the channel is closed, also because the parent has died."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with contextlib.suppress(EOFError, OSError):  # the parent is gone: nobody to tell, and nothing to serve
        try:
            server = _uvicorn_server(options)
        except (AbuseGuardError, ImportError) as error:
            channel.send(str(error))
            return
        # Not in the main thread, where uvicorn would take over the signals.
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, name="uvicorn", daemon=True)
        thread.start()
        while thread.is_alive() and not server.started:
            time.sleep(0.005)
        channel.send(_STARTED if server.started else "uvicorn gave up, see above")
        try:
            channel.recv()
        finally:
            server.should_exit = True
            thread.join(STOP_SECONDS)


def _uvicorn_server(options: ServerOptions) -> uvicorn.Server:
    import uvicorn

    from abuseguard.demo.server import build_app

    config = uvicorn.Config(
        build_app(options),
        access_log=False,
        log_level="error",
        timeout_keep_alive=3600,  # a log in real time has long pauses
        timeout_graceful_shutdown=1,
    )
    return uvicorn.Server(config)
