"""A TLS endpoint in front of a plain TCP port: the handshake, the certificate and the records are real."""

from __future__ import annotations

import asyncio
import contextlib
import ssl
import threading
from typing import TYPE_CHECKING

import trustme

if TYPE_CHECKING:
    from pathlib import Path


class TlsEndpoint:
    """Accepts TLS on ``port`` and passes the bytes on to ``target_port``, both on 127.0.0.1, until closed.

    Args:
        directory: where the certificate of the authority that clients must trust is written, as ``ca.pem``.
    """

    def __init__(self, *, port: int, target_port: int, directory: Path) -> None:
        authority = trustme.CA()
        self.authority_file = directory / "ca.pem"
        authority.cert_pem.write_to_path(str(self.authority_file))
        self._context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        authority.issue_cert("127.0.0.1", "localhost").configure_cert(self._context)
        self._port = port
        self._target_port = target_port
        self._loop = asyncio.new_event_loop()
        self._listening = threading.Event()
        self._failure: OSError | None = None
        self._thread = threading.Thread(target=self._run, name=f"tls:{port}", daemon=True)
        self._thread.start()
        self._listening.wait()
        if self._failure is not None:
            self._thread.join()
            raise self._failure

    def close(self) -> None:
        """Closes the port and every connection."""
        self._loop.call_soon_threadsafe(self._stop.set)
        self._thread.join()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._serve())
        finally:
            self._listening.set()
            self._loop.close()

    async def _serve(self) -> None:
        self._stop = asyncio.Event()
        self._connections: set[asyncio.Task[None]] = set()
        try:
            server = await asyncio.start_server(self._connect, "127.0.0.1", self._port, ssl=self._context)
        except OSError as error:
            self._failure = error
            return
        self._listening.set()
        await self._stop.wait()
        server.close()
        for connection in self._connections:
            connection.cancel()
        await asyncio.gather(*self._connections, return_exceptions=True)

    async def _connect(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        this = asyncio.current_task()
        assert this is not None
        self._connections.add(this)
        try:
            # Where the server behind is dead, the connection just ends, as it would with any terminator.
            with contextlib.suppress(OSError, asyncio.CancelledError):
                target_reader, target_writer = await asyncio.open_connection("127.0.0.1", self._target_port)
                try:
                    directions = [
                        asyncio.ensure_future(_pump(reader, target_writer)),
                        asyncio.ensure_future(_pump(target_reader, writer)),
                    ]
                    try:
                        await asyncio.wait(directions, return_when=asyncio.FIRST_COMPLETED)
                    finally:
                        for direction in directions:
                            direction.cancel()
                        await asyncio.gather(*directions, return_exceptions=True)
                finally:
                    target_writer.transport.abort()
        finally:
            writer.transport.abort()
            self._connections.discard(this)


async def _pump(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(65536):
        writer.write(data)
        await writer.drain()
