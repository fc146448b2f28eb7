"""The folder that keeps remote files: a full disk, and a writer that is killed."""

# What a scenario checks, it asserts.
# ruff: noqa: S101

from __future__ import annotations

import sys
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import web_server  # type: ignore[import-not-found]
from safetensors_streaming import load_file
from safetensors_streaming._native import settle

from faulting.checks import (
    by_stock,
    check_same,
    descriptors,
    eventually,
    nothing_left,
    write_weights,
)
from faulting.machine import hear, mounted, started

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

PIECE_BYTES = 64 << 10
#: What kept connections have for the next answers, however many loads there were.
CONNECTIONS_BYTES = 1 << 20
LOADS = 20


@contextmanager
def served(folder: Path) -> Iterator[tuple[Any, bytes, Any]]:
    """A server of a file, the file's bytes and tensors; the loader's network has been used."""
    path = write_weights(folder / "model.safetensors")
    content, expected = path.read_bytes(), by_stock(path)
    with web_server.WebServer(lambda request: web_server.part(request, content)) as server:
        check_same("remote", load_file(server.url()), expected)
        with nothing_left(folder, CONNECTIONS_BYTES):
            yield server, content, expected


def kept(folder: Path) -> list[Path]:
    """Files that a folder keeps under their names."""
    return list(folder.rglob("*.safetensors"))


def full_disk(folder: Path) -> None:
    """The load goes on without keeping, and leaves nothing half written."""
    with (
        served(folder) as (server, _, expected),
        mounted("tmpfs", folder / "small", "tmpfs", "size=2m") as small,
    ):
        for _ in range(LOADS):
            check_same("kept nowhere", load_file(server.url(), cache_dir=small), expected)
            settle()
            assert eventually(lambda: not list(small.rglob("*.part"))), "a part is left"
            assert not kept(small)


def killed_writer(folder: Path) -> dict[str, int]:
    """Who waits for the lock of a process that is killed takes its place."""
    rounds = (5, 60, 200)
    with served(folder) as (server, content, expected):
        for pieces in rounds:
            target = folder / f"kept-{pieces}"
            kill_writer(server, content, target, pieces)
            check_same("kept", load_file(server.url(), cache_dir=target), expected)
    return {"kills": len(rounds)}


def kill_writer(server: Any, content: bytes, target: Path, pieces: int) -> None:  # noqa: ANN401
    """A process is killed that has got so many pieces, while a load of ours waits for its lock."""
    allowed, sent = threading.Semaphore(pieces), threading.Semaphore(0)
    free_from = [sys.maxsize]

    def answer(request: Any) -> Iterator[bytes]:  # noqa: ANN401 - web_server.Request
        head, body = web_server.part(request, content)
        yield head
        for begin in range(0, len(body), PIECE_BYTES):
            if request.number < free_from[0]:
                allowed.acquire()
            yield body[begin : begin + PIECE_BYTES]
            sent.release()

    server.answer = answer
    with started("caches", server.url(), target) as writer:
        assert hear(writer) == "loading"
        for _ in range(pieces):
            assert sent.acquire(timeout=30), "the writer does not load"
        free_from[0] = len(server.requests)
        loaded: list[dict[str, Any]] = []
        waiting = threading.Thread(
            target=lambda: loaded.append(load_file(server.url(), cache_dir=target))
        )
        waiting.start()
        assert eventually(lambda: [name for name in descriptors() if name.endswith(".lock")])
        assert waiting.is_alive(), "nobody waits for the lock"
        writer.kill()
    allowed.release(
        4 * len(content) // PIECE_BYTES
    )  # who answers a process that is gone notices it
    waiting.join()
    assert loaded, "who waited failed"
    settle()
    [file] = kept(target)
    assert file.read_bytes() == content
    assert not list(target.rglob("*.part")), "a part is left"


def main() -> None:
    """The process that is killed: loads an address into a folder."""
    print("loading", flush=True)
    load_file(sys.argv[1], cache_dir=sys.argv[2])


if __name__ == "__main__":
    main()
