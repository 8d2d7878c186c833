from __future__ import annotations

import asyncio

import pytest

from abuseguard.demo.connection import open_connection

HEADERS = [(b"host", b"localhost")]


def talk(script, *requests):
    """The answers of a server that sends, for each request it gets, the next bytes of the script (None: hangs up)."""
    seen = []

    async def serve(reader, writer):
        for reply in script:
            head = await reader.readuntil(b"\r\n\r\n")
            length = [line for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")]
            seen.append(head + (await reader.readexactly(int(length[0].split(b":")[1])) if length else b""))
            if reply is None:
                break
            for part in reply if isinstance(reply, list) else [reply]:
                writer.write(part)
                await writer.drain()
                await asyncio.sleep(0)
        writer.close()

    async def main():
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        connection = await open_connection("127.0.0.1", server.sockets[0].getsockname()[1])
        answers = []
        try:
            for method, body in requests:
                answers.append(await connection.request(method, "/", HEADERS, body))
            return answers, connection.reusable, seen
        finally:
            connection.close()
            server.close()
            await server.wait_closed()

    return asyncio.run(main())


def test_answers_are_read_to_their_end_and_the_connection_kept():
    plain = b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\nX-Kind: plain\r\n\r\nhello"
    chunked = [b"HTTP/1.1 429 Too Many\r\ntransfer-encoding: chu", b"nked\r\n\r\n3\r\nabc\r\n", b"2\r\nde\r\n0\r\n\r\n"]
    answers, reusable, seen = talk([plain, chunked, plain], ("GET", b""), ("POST", b"{}"), ("GET", b""))
    assert [(answer.status, answer.body) for answer in answers] == [(200, b"hello"), (429, b"abcde"), (200, b"hello")]
    assert answers[0].headers[b"x-kind"] == b"plain"
    assert reusable
    assert seen[1].endswith(b"content-length: 2\r\n\r\n{}")


def test_interim_answers_are_passed_over():
    answers, _, _ = talk([b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 204 No Content\r\n\r\n"], ("POST", b"{}"))
    assert answers[0].status == 204


def test_an_answer_that_ends_with_the_connection_is_read_and_the_connection_given_up():
    answers, reusable, _ = talk([b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\nuntil the end"], ("GET", b""))
    assert answers[0].body == b"until the end"
    assert not reusable


@pytest.mark.parametrize(
    "reply",
    [None, b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\ncut off", b"SSH-2.0-OpenSSH_9.6\r\n", b"HTTP/1.1 200 OK\r\n"],
)
def test_a_server_that_goes_away_or_speaks_something_else_is_an_error(reply):
    with pytest.raises(ConnectionError):
        talk([reply], ("GET", b""))


def test_a_closed_connection_cannot_be_used():
    with pytest.raises(ConnectionError):
        talk([b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n"], ("GET", b""), ("GET", b""))


def test_nothing_listening_is_an_error():
    async def main():
        server = await asyncio.start_server(lambda r, w: None, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        server.close()
        await server.wait_closed()
        await open_connection("127.0.0.1", port)

    with pytest.raises(ConnectionRefusedError):
        asyncio.run(main())
