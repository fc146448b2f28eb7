"""What a network and its servers do wrong, and what a load makes of each."""

from __future__ import annotations

import itertools
import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

from web_server import MODIFIED, Answer, Pieces, Request, Reset, Stall, head, part, status

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator

#: Put into addresses, tokens and answers; no text of ours may show it.
SECRET = "canary-3f9c1e77"  # noqa: S105 - of nobody


@dataclass(frozen=True)
class Fault:
    """Something that goes wrong.

    Attributes:
        answer: Makes what the server answers, of the file's bytes.
        error: What the load raises, or None where it mends it.
        words: What the text of the error says, as a pattern.
        requests: How many requests it takes at least.
    """

    answer: Callable[[bytes], Answer]
    error: type[BaseException] | None = None
    words: str = ""
    requests: int = 2


def _once(pieces: Callable[[Request, bytes], Pieces], number: int = 1) -> Callable[[bytes], Answer]:
    """A fault of one request, the others are answered rightly. The first one opens the file."""

    def with_content(content: bytes) -> Answer:
        return lambda request: (
            pieces(request, content) if request.number == number else part(request, content)
        )

    return with_content


def _later(pieces: Callable[[Request, bytes], Pieces]) -> Callable[[bytes], Answer]:
    """A fault of all requests but the first."""

    def with_content(content: bytes) -> Answer:
        return lambda request: (
            pieces(request, content) if request.number else part(request, content)
        )

    return with_content


def _always(pieces: Callable[[Request, bytes], Pieces]) -> Callable[[bytes], Answer]:
    return lambda content: lambda request: pieces(request, content)


def _reset(_request: Request, _content: bytes) -> Iterator[bytes]:
    raise Reset
    yield b""


def _reset_in_body(request: Request, content: bytes) -> Iterator[bytes]:
    whole, body = part(request, content)
    yield whole
    yield body[: len(body) // 2]
    raise Reset


def _closed(request: Request, content: bytes, bytes_sent: int) -> Iterable[bytes]:
    """Ends a body early by closing the connection, as a server does that dies."""
    whole, body = part(request, content, Connection="close")
    return itertools.chain([whole, body[:bytes_sent]], _end())


def _end() -> Iterator[bytes]:
    yield b""
    raise ConnectionAbortedError


def _stall(_request: Request, _content: bytes) -> Pieces:
    return [Stall()]


def _stall_in_body(request: Request, content: bytes) -> Pieces:
    whole, body = part(request, content)
    return [whole, body[:1000], Stall()]


_NEVER = threading.Event()


def _trickle(request: Request, content: bytes) -> Iterator[bytes]:
    whole, body = part(request, content)
    yield whole
    for byte in body:
        yield bytes([byte])
        _NEVER.wait(0.05)


def _answers(text: str, body: bytes = b"", **headers: str) -> Callable[[Request, bytes], Pieces]:
    return lambda _request, _content: status(text, body, **headers)


def _changed(**changes: str | None) -> Callable[[Request, bytes], Pieces]:
    return lambda request, content: part(request, content, **changes)


def _whole(_request: Request, content: bytes) -> Pieces:
    return status("200 OK", content)


def _shifted(request: Request, content: bytes) -> Pieces:
    first, last = request.range
    return part(request, content, Content_Range=f"bytes {first + 1}-{last + 1}/{len(content) + 9}")


def _grown(request: Request, content: bytes) -> Pieces:
    first, last = request.range
    return part(request, content, Content_Range=f"bytes {first}-{last}/{len(content) + 1}")


def _chunked(request: Request, content: bytes, surplus: bytes = b"") -> Pieces:
    whole, body = part(request, content, Content_Length=None, Transfer_Encoding="chunked")
    body += surplus
    chunk = f"{len(body):x}\r\n".encode() + body + b"\r\n"
    return [whole, chunk, b"0\r\n\r\n"]


def _weak(request: Request, content: bytes) -> Pieces:
    return part(request, content, ETag='W/"weak"')


def _weak_and_changed(request: Request, content: bytes) -> Pieces:
    modified = "Thu, 22 Oct 2015 07:28:00 GMT" if request.number else MODIFIED
    return part(request, content, ETag='W/"weak"', Last_Modified=modified)


def _without_state(request: Request, content: bytes) -> Pieces:
    return part(request, content, ETag=None, Last_Modified=None)


def _redirect(to: str, text: str = "302 Found") -> Callable[[Request, bytes], Pieces]:
    return lambda _request, _content: status(text, Location=to)


def _redirected(text: str) -> Callable[[bytes], Answer]:
    def with_content(content: bytes) -> Answer:
        return lambda request: (
            part(request, content)
            if request.path == "/moved"
            else status(text, Location=f"/moved?signature={SECRET}")
        )

    return with_content


def _expiring(content: bytes) -> Answer:
    """An address that leads to a signed one, which is good for one request."""

    def answer(request: Request) -> Pieces:
        ticket = request.target.partition("ticket=")[2]
        if not ticket:
            return status("302 Found", Location=f"/signed?ticket={request.number}")
        if request.number - int(ticket) > 1:  # by then it has expired
            return status("403 Forbidden", b"Request has expired")
        return part(request, content)

    return answer


def _throttled(content: bytes) -> Answer:
    """Refuses every other request."""
    return lambda request: (
        status("503 Slow Down", b"SlowDown") if request.number % 2 else part(request, content)
    )


_XML = f"<Error><Code>AccessDenied</Code><Message>Not yours</Message><Key>{SECRET}</Key></Error>"

#: Of a range, where refusals come at once: pauses are drawn, and tries go on while patience lasts.
_SIX_OR_MORE = r"\b([6-9]|\d\d) tries"

FAULTS = {
    "reset before an answer": Fault(_once(_reset)),
    "reset at the opening": Fault(_once(_reset, 0)),
    "reset in the middle": Fault(_once(_reset_in_body)),
    "reset in the opening": Fault(_once(_reset_in_body, 0)),
    "every connection is reset": Fault(_later(_reset), ConnectionResetError, _SIX_OR_MORE),
    "an answer ends early": Fault(_once(lambda r, c: _closed(r, c, 1000))),
    "an answer ends before its body": Fault(_once(lambda r, c: _closed(r, c, 0))),
    "no answer": Fault(_once(_stall)),
    "no answer at the opening": Fault(_once(_stall, 0)),
    "never an answer": Fault(_later(_stall), TimeoutError, "no answer within 1 s.*6 tries"),
    "stalls in the middle": Fault(_once(_stall_in_body)),
    "a trickle": Fault(_once(_trickle)),
    "always a trickle": Fault(_later(_trickle), TimeoutError, "bytes came within 1 s"),
    "no ranges": Fault(_always(_whole), OSError, "200 OK to a request for a range", 1),
    "no ranges any more": Fault(_later(_whole), OSError, "200 OK to a request for a range"),
    "another range": Fault(_later(_shifted), OSError, "the server sends bytes .* were asked for"),
    "no Content-Range": Fault(
        _later(_changed(Content_Range=None)), OSError, "does not tell which range"
    ),
    "a Content-Range that is none": Fault(
        _later(_changed(Content_Range="bytes */7")), OSError, "tells of a range"
    ),
    "another Content-Length": Fault(
        _later(_changed(Content_Length="7")), OSError, "in another number of bytes"
    ),
    "another size": Fault(_later(_grown), OSError, "was changed while it was being loaded"),
    "another ETag": Fault(
        _later(_changed(ETag='"state-2"')), OSError, "was changed while it was being loaded"
    ),
    "no ETag any more": Fault(
        _later(_changed(ETag=None)), OSError, "was changed while it was being loaded"
    ),
    "a weak ETag": Fault(_always(_weak)),
    "a weak ETag of another time": Fault(
        _always(_weak_and_changed), OSError, "was changed while it was being loaded"
    ),
    "no ETag and no time": Fault(_always(_without_state)),
    "chunks": Fault(_always(_chunked)),
    "more bytes than it said": Fault(
        _later(lambda r, c: _chunked(r, c, b"more")), OSError, "more bytes than it said"
    ),
    "compressed": Fault(_always(_changed(Content_Encoding="gzip")), OSError, "sends gzip", 1),
    "not there": Fault(_always(_answers("404 Not Found")), FileNotFoundError, "404", 1),
    "gone in the middle": Fault(_later(_answers("410 Gone")), FileNotFoundError, "410"),
    "forbidden": Fault(
        _always(_answers("403 Forbidden", _XML.encode(), Content_Type="application/xml")),
        PermissionError,
        "403 Forbidden: AccessDenied: Not yours",
        1,
    ),
    "not known": Fault(_always(_answers("401 Unauthorized")), PermissionError, "401", 1),
    "empty": Fault(_always(_answers("416 Range Not Satisfiable")), OSError, "the file is empty", 1),
    "busy once": Fault(_once(_answers("503 Service Unavailable"))),
    "busy for a second": Fault(_once(_answers("503 Service Unavailable", Retry_After="1"))),
    "always busy": Fault(
        _later(_answers("503 Service Unavailable", b"come back later")),
        OSError,
        f"503 Service Unavailable: come back later.*{_SIX_OR_MORE}",
    ),
    "throttled": Fault(_throttled, requests=3),
    "too many requests": Fault(_once(_answers("429 Too Many Requests"))),
    "an error of the server's": Fault(_once(_answers("500 Internal Server Error"))),
    "a bad gateway": Fault(_once(_answers("502 Bad Gateway"), 0)),
    "a gateway that waits too long": Fault(_once(_answers("504 Gateway Timeout"))),
    "a request that took too long": Fault(_once(_answers("408 Request Timeout"))),
    "moved": Fault(_redirected("301 Moved Permanently"), requests=3),
    "found elsewhere": Fault(_redirected("307 Temporary Redirect"), requests=3),
    "a signed address that expires": Fault(_expiring, requests=5),
    "round in circles": Fault(_always(_redirect("/again")), OSError, "more than 5 redirects", 6),
    "to a file": Fault(_always(_redirect("file:///etc/passwd")), PermissionError, "of file", 1),
    "to a machine's own secrets": Fault(
        _always(_redirect("http://169.254.169.254/latest/")), PermissionError, "link-local", 1
    ),
    "nowhere": Fault(_always(_answers("302 Found")), PermissionError, "does not tell where", 1),
    "not HTTP": Fault(_always(lambda _r, _c: [b"SSH-2.0-OpenSSH\r\n"]), OSError, "6 tries", 6),
    "a head without end": Fault(
        _always(lambda _r, _c: [head("206 OK", {"X": "x" * (1 << 20)})]), OSError, "", 1
    ),
}
