"""A TCP proxy for tests that stands between a client and a server and, on demand, breaks what passes."""

import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

Mood = Literal["well", "refuse", "cut", "slow down"]
SLOW_DOWN = (
    b'<?xml version="1.0" encoding="UTF-8"?><Error><Code>SlowDown</Code>'
    b"<Message>Please reduce your request rate.</Message></Error>"
)
HEAD_BYTES = 2000
"""an answer that is cut has its headers and a piece of a body of some size"""


class FlakyServer:
    """The proxy: its next connections fare as `moods` say, in order; later ones go well."""

    def __init__(self, target: int) -> None:
        self.moods: list[Mood] = []
        self.num_connections = 0
        self._target = target
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = int(self._socket.getsockname()[1])
        self._thread = threading.Thread(target=self._accept, daemon=True)
        self._thread.start()

    def close(self) -> None:
        """Listen no more."""
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        self._thread.join()

    def _accept(self) -> None:
        while True:
            try:
                client, _ = self._socket.accept()
            except OSError:
                return
            self.num_connections += 1
            mood = self.moods.pop(0) if self.moods else "well"
            threading.Thread(target=self._serve, args=(client, mood), daemon=True).start()

    def _serve(self, client: socket.socket, mood: Mood) -> None:
        """One request, one connection: a broken one then breaks nothing else."""
        with client:
            if mood == "refuse":
                # a reset rather than an orderly end
                client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                return
            request = _whole_request(client)
            if mood == "slow down":
                client.sendall(
                    b"HTTP/1.1 503 Slow Down\r\nContent-Type: application/xml\r\nConnection: close\r\n"
                    + f"Content-Length: {len(SLOW_DOWN)}\r\n\r\n".encode()
                    + SLOW_DOWN
                )
                return
            with socket.create_connection(("127.0.0.1", self._target)) as server:
                server.sendall(request)
                sent = 0
                while piece := server.recv(1 << 16):
                    if mood == "cut":
                        piece = piece[: max(0, HEAD_BYTES - sent)]
                    client.sendall(piece)
                    sent += len(piece)
                    if mood == "cut" and sent >= HEAD_BYTES:
                        return


def _whole_request(client: socket.socket) -> bytes:
    """Headers and body of one request, told to close the connection after its answer."""
    data = b""
    while b"\r\n\r\n" not in data:
        piece = client.recv(1 << 16)
        if not piece:
            return data
        data += piece
    head, body = data.split(b"\r\n\r\n", 1)
    lines = [line for line in head.split(b"\r\n") if not line.lower().startswith((b"connection:", b"expect:"))]
    names = {name.strip().lower(): value.strip() for name, _, value in (line.partition(b":") for line in lines[1:])}
    if b"expect:" in head.lower():
        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
    length = int(names.get(b"content-length", b"0"))
    whole = bytearray(b"\r\n".join([*lines, b"Connection: close"]) + b"\r\n\r\n" + body)
    left = length - len(body)
    while left > 0 and (piece := client.recv(1 << 20)):
        whole += piece
        left -= len(piece)
    return bytes(whole)


@contextmanager
def between(target: int) -> Iterator[FlakyServer]:
    """A proxy to the server on loopback port `target` for the length of the block."""
    proxy = FlakyServer(target)
    try:
        yield proxy
    finally:
        proxy.close()
