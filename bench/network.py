"""The networks of the rows of remote files: loopback, and one that is slow and far away."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

from bench.servers import BUCKET, MissingError, free_port, listens, nginx, seaweed, until

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

#: The address of the folder that holds the files, for the loaders.
BASE = "BENCH_REMOTE_BASE"
#: The same for those that speak S3 alone.
S3_BASE = "BENCH_REMOTE_S3_BASE"

RATE_BYTES_PER_SECOND = 200e6
DELAY_S = 0.08
_SPACE, _OUTSIDE, _INSIDE = "sst-bench", "10.213.77.1", "10.213.77.2"


_WITHIN = ("ip", "netns", "exec", _SPACE)
#: A server that runs there.
_THERE: dict[str, Any] = {"host": _INSIDE, "within": _WITHIN}


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True)  # noqa: S603, S607


@contextmanager
def far_away() -> Iterator[None]:
    """A network of its own, with what can be sent to it from inside shaped to a rate.

    Raises:
        MissingError: If this machine does not let us make one.
    """
    if os.geteuid() != 0 or not shutil.which("tc"):
        raise MissingError("a network of its own takes root, and ip and tc (iproute2)")
    subprocess.run(["ip", "netns", "delete", _SPACE], check=False, capture_output=True)  # noqa: S603, S607
    _ip("netns", "add", _SPACE)
    try:
        _ip("link", "add", "sst0", "type", "veth", "peer", "name", "sst1", "netns", _SPACE)
        _ip("addr", "add", f"{_OUTSIDE}/24", "dev", "sst0")
        _ip("link", "set", "sst0", "up")
        _ip("-n", _SPACE, "addr", "add", f"{_INSIDE}/24", "dev", "sst1")
        _ip("-n", _SPACE, "link", "set", "sst1", "up")
        _ip("-n", _SPACE, "link", "set", "lo", "up")
        rate = f"{RATE_BYTES_PER_SECOND * 8 / 1e6:.0f}mbit"
        shape = ["tc", "-n", _SPACE, "qdisc", "add", "dev", "sst1", "root", "tbf"]
        subprocess.run([*shape, "rate", rate, "burst", "1mb", "latency", "100ms"], check=True)  # noqa: S603
        yield
    finally:
        _ip("netns", "delete", _SPACE)


@contextmanager
def _delayed(
    host: str, to: int, delay_s: float = DELAY_S, within: tuple[str, ...] = ()
) -> Iterator[int]:
    """The port of a proxy in front of another."""
    port = free_port()
    words = [*within, sys.executable, "-m", "bench.delay", host, str(port), str(to), str(delay_s)]
    proxy = subprocess.Popen(words)  # noqa: S603
    until(lambda: listens(host, port), "the proxy")
    try:
        yield port
    finally:
        proxy.kill()
        proxy.wait()


@contextmanager
def serving(network: str | None, files: Sequence[Path]) -> Iterator[dict[str, str]]:
    """Serves files; what the loaders' environment says of where.

    Args:
        network: "loopback"; "proxied", by the proxy without a delay; "far": shaped, and every first
            byte late; or None for no server at all.
        files: All of one folder.

    Raises:
        MissingError: If a server is not installed, or such a network cannot be made here.
    """
    if network is None:
        yield {}
        return
    with ExitStack() as stack:
        folder = Path(stack.enter_context(TemporaryDirectory()))
        if network in {"loopback", "proxied"}:
            web = stack.enter_context(nginx(folder / "nginx", files[0].parent))
            if network == "proxied":
                web.port = stack.enter_context(_delayed(web.host, web.port, 0))
            yield {BASE: web.url("")}
            return
        stack.enter_context(far_away())
        web = stack.enter_context(nginx(folder / "nginx", files[0].parent, **_THERE))
        store = stack.enter_context(seaweed(folder / "seaweed", **_THERE))
        port = stack.enter_context(_delayed(_INSIDE, web.port, within=_WITHIN))
        s3_port = stack.enter_context(_delayed(_INSIDE, store.port, within=_WITHIN))
        for file in files:
            store.client.upload_file(str(file), BUCKET, file.name)
        yield {
            **store.variables(),
            "AWS_ENDPOINT_URL": f"http://{_INSIDE}:{s3_port}",
            BASE: f"http://{_INSIDE}:{port}/",
            S3_BASE: f"s3://{BUCKET}/",
        }
