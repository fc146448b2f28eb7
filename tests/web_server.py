"""A web server on loopback that answers as it is told, byte by byte, as no real one does."""

from __future__ import annotations

import re
import socket
import socketserver
import struct
import threading
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from typing_extensions import Self

if TYPE_CHECKING:
    import ssl

ETAG = '"state-1"'
MODIFIED = "Wed, 21 Oct 2015 07:28:00 GMT"


class Reset(Exception):  # noqa: N818 - what it does
    """The connection is torn down, and what was sent may be lost."""


@dataclass
class Stall:
    """Nothing is sent until the server ends, or the client goes."""


@dataclass
class Request:
    """What a client asks."""

    method: str
    target: str
    headers: dict[str, str]
    #: How many requests came before, for whatever.
    number: int

    @property
    def range(self) -> tuple[int, int]:
        """The first byte that is asked for, and the last."""
        asked = re.fullmatch(r"bytes=(\d+)-(\d+)", self.headers.get("range", ""))
        assert asked is not None, self.headers
        return int(asked[1]), int(asked[2])

    @property
    def path(self) -> str:
        """The target without its query."""
        return self.target.partition("?")[0]


Pieces = Iterable["bytes | Stall"]
Answer = Callable[[Request], Pieces]


def head(status: str, headers: dict[str, str | None]) -> bytes:
    """The beginning of an answer; a header that is None is left out."""
    lines = [f"{name}: {value}" for name, value in headers.items() if value is not None]
    return "\r\n".join([f"HTTP/1.1 {status}", *lines, "", ""]).encode()


def part(request: Request, content: bytes, **changes: str | None) -> list[bytes]:
    """What a server rightly answers: head and body. Changes are headers, underscores for dashes."""
    first, last = request.range
    last = min(last, len(content) - 1)
    body = content[first : last + 1]
    expected = request.headers.get("if-match")
    if expected not in {None, changes.get("ETag", ETAG)}:
        return [head("412 Precondition Failed", {"Content-Length": "0"})]
    headers: dict[str, str | None] = {
        "Content-Range": f"bytes {first}-{last}/{len(content)}",
        "Content-Length": str(len(body)),
        "ETag": ETAG,
        "Last-Modified": MODIFIED,
    }
    headers |= {name.replace("_", "-"): value for name, value in changes.items()}
    return [head("206 Partial Content", headers), body]


def status(text: str, body: bytes = b"", **headers: str) -> list[bytes]:
    """An answer of another kind."""
    named: dict[str, str | None] = {name.replace("_", "-"): text for name, text in headers.items()}
    return [head(text, {"Content-Length": str(len(body)), **named}), body]


@dataclass
class WebServer:
    """Serves while it is entered; what it answers may be changed at any time.

    Attributes:
        answer: Gives the pieces of an answer; they are sent one by one.
        requests: All that came, in their order.
    """

    answer: Answer
    host: str = "127.0.0.1"
    tls: ssl.SSLContext | None = None
    requests: list[Request] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def __enter__(self) -> Self:
        """Begin to listen, on a port that is free."""
        outer = self

        class Handler(socketserver.StreamRequestHandler):
            """One connection."""

            def handle(self) -> None:
                outer.serve(self)

        class Listener(socketserver.ThreadingTCPServer):
            """Does not wait for connections that a client keeps open."""

            daemon_threads = True
            block_on_close = False
            request_queue_size = 128

            def handle_error(self, request: Any, client_address: Any) -> None:  # noqa: ANN401
                """A client that goes away is no news."""

            def get_request(self) -> tuple[socket.socket, Any]:
                """A connection, with TLS where there is a certificate."""
                connection, address = super().get_request()
                if outer.tls is not None:
                    connection = outer.tls.wrap_socket(
                        connection, server_side=True, do_handshake_on_connect=False
                    )
                return connection, address

        self._listener = Listener((self.host, 0), Handler)
        threading.Thread(target=self._listener.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_exception: object) -> None:
        """Listen no more."""
        self._ended.set()
        self._listener.shutdown()
        self._listener.server_close()

    def url(self, path: str = "/model.safetensors", host: str | None = None) -> str:
        """The address of a path."""
        scheme = "http" if self.tls is None else "https"
        return f"{scheme}://{host or self.host}:{self._listener.server_address[1]}{path}"

    def serve(self, connection: socketserver.StreamRequestHandler) -> None:
        """Answer the requests of a connection, as long as both sides keep it."""
        try:
            while (request := self._request(connection)) is not None:
                for piece in self.answer(request):
                    if isinstance(piece, Stall):
                        self._ended.wait()
                        return
                    connection.wfile.write(piece)
        except Reset:
            linger = struct.pack("ii", 1, 0)
            connection.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
        except OSError:  # the client has gone, or shall
            return

    def _request(self, connection: socketserver.StreamRequestHandler) -> Request | None:
        line = connection.rfile.readline().decode("latin-1").split()
        if len(line) != 3:
            return None
        headers = {}
        while text := connection.rfile.readline().decode("latin-1").strip():
            name, _, value = text.partition(":")
            headers[name.lower()] = value.strip()
        with self._lock:
            request = Request(line[0], line[1], headers, len(self.requests))
            self.requests.append(request)
        return request
