"""A keep-alive HTTP/1.1 connection on h11: as much of a client as the demo needs, at a tenth of httpx's price."""

from __future__ import annotations

import asyncio
from typing import NamedTuple

import h11


class Answer(NamedTuple):
    """A response, read to its end. A tuple, as one is made for every request."""

    status: int
    headers: dict[bytes, bytes]
    body: bytes


class Connection(asyncio.Protocol):
    """Sends one request at a time; made by ``open_connection``.

    >>> async def ask(port):
    ...     connection = await open_connection("127.0.0.1", port)
    ...     answer = await connection.request("GET", "/healthz", [(b"host", b"localhost")])
    ...     connection.close()
    ...     return answer.status
    """

    def __init__(self) -> None:
        self._protocol = h11.Connection(h11.CLIENT)
        self._transport: asyncio.Transport | None = None
        self._answered: asyncio.Future[Answer] | None = None
        self._response: h11.Response | None = None
        self._body: list[bytes] = []

    @property
    def reusable(self) -> bool:
        """Whether another request can be sent on it."""
        return self._transport is not None and self._protocol.our_state is h11.IDLE

    async def request(self, method: str, target: str, headers: list[tuple[bytes, bytes]], body: bytes = b"") -> Answer:
        """Sends a request and waits for the whole response.

        Raises:
            ConnectionError: the server went away, or did not answer in HTTP.
        """
        if self._transport is None:
            raise ConnectionResetError("the server closed the connection")
        if body:
            headers = [*headers, (b"content-length", b"%d" % len(body))]
        self._answered = asyncio.get_running_loop().create_future()
        self._response, self._body = None, []
        send = self._protocol.send
        parts = [send(h11.Request(method=method, target=target, headers=headers))]
        if body:
            parts.append(send(h11.Data(data=body)))
        parts.append(send(h11.EndOfMessage()))
        self._transport.write(b"".join(part for part in parts if part))
        return await self._answered

    def close(self) -> None:
        """Closes the connection."""
        if self._transport is not None:
            self._transport.close()

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        self._transport = transport

    def data_received(self, data: bytes) -> None:
        self._protocol.receive_data(data)
        self._read_events()

    def eof_received(self) -> None:
        self.data_received(b"")

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None
        self._fail(ConnectionResetError("the server closed the connection"))

    def _read_events(self) -> None:
        try:
            while True:
                event = self._protocol.next_event()
                if isinstance(event, h11.Data):
                    self._body.append(bytes(event.data))
                elif isinstance(event, h11.Response):
                    self._response = event
                elif isinstance(event, h11.EndOfMessage):
                    self._finish()
                    return
                elif not isinstance(event, h11.InformationalResponse):
                    return  # nothing more for now, or closed
        except h11.RemoteProtocolError as error:
            self._fail(ConnectionError(f"the server's answer is not HTTP: {error}"))
            self.close()

    def _finish(self) -> None:
        assert self._response is not None
        answer = Answer(self._response.status_code, dict(self._response.headers), b"".join(self._body))
        if self._protocol.our_state is h11.DONE and self._protocol.their_state is h11.DONE:
            self._protocol.start_next_cycle()
        else:
            self.close()
        if self._answered is not None and not self._answered.done():
            self._answered.set_result(answer)

    def _fail(self, error: ConnectionError) -> None:
        if self._answered is not None and not self._answered.done():
            self._answered.set_exception(error)


async def open_connection(host: str, port: int) -> Connection:
    """Connects to a server.

    Raises:
        OSError: nothing listens there.
    """
    _, connection = await asyncio.get_running_loop().create_connection(Connection, host, port)
    return connection
