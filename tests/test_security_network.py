"""What docs/security.md promises of servers, and of a folder that keeps files."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
import re
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import bad_files
import pytest
from network_faults import SECRET
from oracle import STOCK, outcome, same
from process import run_python
from safetensors import SafetensorError
from safetensors.torch import save
from safetensors_streaming import _native, load_file
from web_server import ETAG, Request, WebServer, head, part, status

if TYPE_CHECKING:
    from collections.abc import Iterator


# A server.


WITH_LITTLE_MEMORY = """
    import resource, sys
    import torch
    import safetensors_streaming
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
    for load in (safetensors_streaming.load_file, lambda a: dict(safetensors_streaming.stream(a))):
        try:
            load(sys.argv[1])
        except (MemoryError, OSError) as error:
            print(type(error).__name__, error)
"""


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ([1 << 43], "MemoryError .*out of host memory: wanted {sum} bytes"),
        ([1 << 50], "OSError .*{sum} bytes, where .* are the most of one load"),
        ([1 << 60, 1 << 60], "OSError .*{sum} bytes, where .* are the most of one load"),
    ],
    ids=["8 TiB", "1 PiB", "2 EiB"],
)
def test_a_size_that_no_memory_has_is_an_error(sizes: list[int], words: str) -> None:
    """In a process that can take no more memory than this machine can spare."""
    ends = list(itertools.accumulate(sizes, initial=0))
    tensors = {
        f"t{begin}": {"dtype": "U8", "shape": [end - begin], "data_offsets": [begin, end]}
        for begin, end in itertools.pairwise(ends)
    }
    begin = bad_files.file(json.dumps(tensors))
    whole = len(begin) + ends[-1]

    def answer(request: Request) -> list[bytes]:
        first, last = request.range
        body = begin[first : last + 1].ljust(last + 1 - first, b"\0")
        told = {"Content-Range": f"bytes {first}-{last}/{whole}", "ETag": ETAG}
        return [head("206 Partial Content", {**told, "Content-Length": str(len(body))}), body]

    with WebServer(answer) as server:
        told = run_python(WITH_LITTLE_MEMORY, server.url())
        assert server.url() in told
    assert len(re.findall(words.format(sum=ends[-1]), told)) == 2, told


GUARDED = """
    import sys
    from safetensors_streaming import _native
    try:
        _native.describe([sys.argv[1]])
    except OSError as error:
        print(type(error).__name__, error)
"""


@pytest.mark.parametrize("address", ["169.254.169.254", "fd00:ec2::254", "fe80::1"])
def test_a_redirect_to_a_name_of_a_link_local_address(address: str, tmp_path: Path) -> None:
    inside = ["unshare", "--mount", "sh", "-c", 'mount --bind "$0" /etc/hosts && exec "$@"']
    hosts = tmp_path / "hosts"
    hosts.write_text(f"{address} innocent.example\n127.0.0.1 localhost\n")
    tried = subprocess.run([*inside, hosts, "true"], check=False, capture_output=True)  # noqa: S603
    if tried.returncode != 0:
        pytest.skip(f"names of its own for a process take root: {tried.stderr.decode()}")
    with WebServer(
        lambda _request: status("302 Found", Location="http://innocent.example/latest/")
    ) as server:
        told = run_python(GUARDED, server.url(), wrapper=(*inside, str(hosts)))
    assert told.startswith("PermissionError")
    assert "link-local" in told
    assert server.url() in told


def repeats_the_request(request: Request) -> list[bytes]:
    """An answer of a store that says all that it was told."""
    said = " ".join(f"{name}={value}" for name, value in request.headers.items())
    return status(
        "400 Bad Request", f"<Error><Code>No</Code><Message>{said}</Message></Error>".encode()
    )


def test_a_token_of_the_environment_that_a_store_repeats(monkeypatch: pytest.MonkeyPatch) -> None:
    with WebServer(repeats_the_request) as server:
        for name, value in {
            "AWS_ENDPOINT_URL": server.url(""),
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "word",
            "AWS_SESSION_TOKEN": SECRET,
        }.items():
            monkeypatch.setenv(name, value)
        with pytest.raises(OSError, match="400 Bad Request") as caught:
            load_file("s3://bucket/key")
    assert SECRET in server.requests[0].headers["x-amz-security-token"]
    assert SECRET not in f"{caught.value!r}"


def test_a_token_of_the_hub_that_a_server_repeats() -> None:
    with WebServer(repeats_the_request) as server:
        address: Any = _native.Address(server.url(), {"token": SECRET})
        with pytest.raises(OSError, match="400 Bad Request") as caught:
            _native.describe([address])
    assert server.requests[0].headers["authorization"] == f"Bearer {SECRET}"
    assert SECRET not in f"{caught.value!r} {address!r}"


# A folder that keeps files.

TENSORS = {"a": STOCK.load(bad_files.shaped("[700000]", 700_000))["a"]}
CONTENT = save(TENSORS)


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer(lambda request: part(request, CONTENT)) as running:
        yield running


@pytest.fixture
def entry(server: WebServer, tmp_path: Path) -> Path:
    """Where a load will keep the file, which anybody can work out."""
    learnt, folder = tmp_path / "learnt", tmp_path / "shared"
    load_file(server.url(), cache_dir=learnt)
    _native.settle()
    [known] = learnt.rglob("*.safetensors")
    place = folder / known.relative_to(learnt)
    place.parent.mkdir(parents=True)
    return place


@pytest.mark.parametrize("ending", ["part", "lock"])
@pytest.mark.parametrize("kind", ["symbolic link", "hard link", "fifo"])
def test_what_is_planted_in_cache_dir_is_not_written_through(
    server: WebServer, entry: Path, tmp_path: Path, ending: str, kind: str
) -> None:
    victim, planted = tmp_path / "victim", Path(f"{entry}.{ending}")
    victim.write_text("precious")
    if kind == "fifo":
        os.mkfifo(planted)
    elif kind == "hard link":
        planted.hardlink_to(victim)
    else:
        planted.symlink_to(victim)
    got = outcome(lambda: load_file(server.url(), cache_dir=entry.parent.parent))
    _native.settle()
    assert victim.read_text() == "precious"
    assert got.error is not None or same(got.value, TENSORS)
    assert got.error is None or (issubclass(got.error, OSError) and str(entry) in got.words)


def test_verify_finds_what_was_put_into_cache_dir(server: WebServer, entry: Path) -> None:
    """Not promised without it: who may write to the folder decides what is loaded."""
    other = bytearray(CONTENT)
    other[-1] ^= 1
    entry.write_bytes(other)
    digest = hashlib.sha256(CONTENT).hexdigest()
    folder = entry.parent.parent
    assert not same(load_file(server.url(), cache_dir=folder), TENSORS)
    with pytest.raises(SafetensorError, match="sha256"):
        load_file(server.url(), cache_dir=folder, verify=digest)


def test_what_is_kept_has_the_rights_that_umask_leaves(server: WebServer, tmp_path: Path) -> None:
    before = os.umask(0o077)
    try:
        load_file(server.url(), cache_dir=tmp_path / "own")
        _native.settle()
    finally:
        os.umask(before)
    kept = [tmp_path / "own", *(tmp_path / "own").rglob("*")]
    assert len(kept) == 4
    assert all(path.stat().st_mode & 0o077 == 0 for path in kept)
