"""A folder that keeps what was loaded: whole or not at all, and downloaded once."""

from __future__ import annotations

import hashlib
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import textwrap
import threading
from typing import TYPE_CHECKING

import pytest
import safetensors_streaming
import torch
from process import environment, eventually, run_python, start_python
from safetensors.torch import save
from safetensors_streaming import _native
from web_server import Request, Stall, WebServer, part

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TENSORS = {"a": torch.arange(3_000_000, dtype=torch.int32), "b": torch.rand(300, 100)}
CONTENT = save(TENSORS)

LOAD = """
    import sys
    import safetensors_streaming
    print("ready", flush=True)
    tensors = safetensors_streaming.load_file(sys.argv[1], cache_dir=sys.argv[2])
    print("loaded", int(tensors["a"].sum()), flush=True)
"""
LOADED = f"loaded {int(TENSORS['a'].sum())}\n"


@pytest.fixture
def server() -> Iterator[WebServer]:
    with WebServer(lambda request: part(request, CONTENT)) as running:
        yield running


def right(tensors: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items())


def kept(folder: Path) -> list[Path]:
    return list(folder.rglob("*.safetensors"))


def test_the_second_load_is_a_local_one(server: WebServer, tmp_path: Path) -> None:
    folder = tmp_path / "new"
    assert right(safetensors_streaming.load_file(server.url(), cache_dir=folder))
    count = len(server.requests)
    assert right(safetensors_streaming.load_file(server.url(), cache_dir=folder))
    assert len(server.requests) == count + 1  # is it still the same?
    assert safetensors_streaming.last_report().reader == "mmap"
    [file] = kept(folder)
    assert file.read_bytes() == CONTENT
    assert file.name == "model.safetensors"
    assert not list(folder.rglob("*.part"))


def test_another_state_is_another_file(server: WebServer, tmp_path: Path) -> None:
    safetensors_streaming.load_file(server.url(), cache_dir=tmp_path)
    other = {name: tensor + 1 for name, tensor in TENSORS.items()}
    server.answer = lambda request: part(request, save(other), ETag='"state-2"')
    got = safetensors_streaming.load_file(server.url(), cache_dir=tmp_path)
    assert torch.equal(got["a"], other["a"])
    _native.settle()
    assert len(kept(tmp_path)) == 2


def test_a_state_without_a_name_is_not_kept(server: WebServer, tmp_path: Path) -> None:
    server.answer = lambda request: part(request, CONTENT, ETag=None, Last_Modified=None)
    assert right(safetensors_streaming.load_file(server.url(), cache_dir=tmp_path))
    _native.settle()
    assert not kept(tmp_path)


def test_a_part_is_not_kept(server: WebServer, tmp_path: Path) -> None:
    tensors = safetensors_streaming.load_checkpoint(
        server.url(), cache_dir=tmp_path, filter=lambda name: name == "b"
    )
    assert torch.equal(tensors["b"], TENSORS["b"])
    assert not list(tmp_path.iterdir())


def test_a_child_that_multiprocessing_has_forked(server: WebServer, tmp_path: Path) -> None:
    """It ends without the interpreter's own way to do so."""
    child = multiprocessing.get_context("fork").Process(
        target=safetensors_streaming.load_file,
        args=(server.url(),),
        kwargs={"cache_dir": tmp_path},
    )
    child.start()
    child.join(60)
    assert child.exitcode == 0
    [file] = kept(tmp_path)
    assert file.read_bytes() == CONTENT


def test_a_failed_load_leaves_nothing(server: WebServer, tmp_path: Path) -> None:
    server.answer = lambda request: part(
        request, CONTENT, ETag='"state-2"' if request.number > 1 else '"state-1"'
    )
    with pytest.raises(OSError, match="changed"):
        safetensors_streaming.load_file(server.url(), cache_dir=tmp_path)
    assert eventually(lambda: not list(tmp_path.rglob("*.part")))
    assert not kept(tmp_path)


def test_killed_at_any_moment_the_next_load_is_right(server: WebServer, tmp_path: Path) -> None:
    moments = random.Random(7)  # noqa: S311 - moments, not secrets
    answered = threading.Semaphore(0)

    def slowly(request: Request) -> Iterator[bytes]:
        head, body = part(request, CONTENT)
        yield head
        for begin in range(0, len(body), 1 << 16):
            yield body[begin : begin + (1 << 16)]
            answered.release()

    server.answer = slowly
    for _ in range(20):
        with start_python(LOAD, server.url(), tmp_path) as child:
            assert child.stdout is not None
            assert child.stdout.readline() == "ready\n"
            for _ in range(moments.randrange(1, len(CONTENT) >> 16)):
                if not answered.acquire(timeout=5):
                    break
            os.kill(child.pid, signal.SIGKILL)
            child.wait(30)
        for file in kept(tmp_path):
            assert file.read_bytes() == CONTENT
    assert run_python(LOAD, server.url(), tmp_path) == f"ready\n{LOADED}"
    [file] = kept(tmp_path)
    assert file.read_bytes() == CONTENT
    assert run_python(LOAD, server.url(), tmp_path) == f"ready\n{LOADED}"


def test_two_processes_download_once(server: WebServer, tmp_path: Path) -> None:
    both = threading.Barrier(2)
    began = threading.Event()

    def answer(request: Request) -> list[bytes | Stall]:
        if request.range[0] == 0 and request.number < 2:
            both.wait(30)  # both have opened it before either has more
        else:
            began.set()
        return [*part(request, CONTENT)]

    server.answer = answer
    command = [
        sys.executable,
        "-c",
        textwrap.dedent(LOAD),
        server.url(),
        str(tmp_path),
    ]
    variables = environment({"SAFETENSORS_STREAMING_NETWORK_PATIENCE": "30"})
    children = [
        subprocess.Popen(command, env=variables, stdout=subprocess.PIPE, text=True)  # noqa: S603
        for _ in range(2)
    ]
    outputs = [child.communicate(timeout=60)[0] for child in children]
    assert outputs == [f"ready\n{LOADED}"] * 2
    assert began.is_set()
    sent = sum(
        min(last, len(CONTENT) - 1) + 1 - first
        for first, last in (request.range for request in server.requests)
    )
    openings = 2 * (256 << 10)
    assert sent <= len(CONTENT) + openings


def test_a_full_disk_is_no_failure(server: WebServer, tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("mounting a small file system takes root")
    small = tmp_path / "small"
    small.mkdir()
    mounted = subprocess.run(  # noqa: S603
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", small],  # noqa: S607
        check=False,
        capture_output=True,
        text=True,
    )
    if mounted.returncode != 0:
        pytest.skip(f"no tmpfs can be mounted here: {mounted.stderr}")
    try:
        assert right(safetensors_streaming.load_file(server.url(), cache_dir=small))
        _native.settle()
        assert eventually(lambda: not list(small.rglob("*.part")))
        assert not kept(small)
    finally:
        subprocess.run(["umount", small], check=True)  # noqa: S603, S607


def test_a_folder_that_cannot_be(server: WebServer, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    with pytest.raises(OSError, match=str(file)):
        safetensors_streaming.load_file(server.url(), cache_dir=file)


@pytest.mark.parametrize("difference", ["?id=2", "user"])
def test_another_address_is_another_file(
    server: WebServer, tmp_path: Path, difference: str
) -> None:
    """A server may know no better name of a state than its time, and serve several files by one."""
    other = {name: tensor + 1 for name, tensor in TENSORS.items()}
    contents = {False: CONTENT, True: save(other)}

    def answer(request: Request) -> list[bytes]:
        is_other = "id=2" in request.target or "authorization" in request.headers
        return part(request, contents[is_other], ETag=None)

    server.answer = answer
    address = f"{server.url()}?id=1"
    assert right(safetensors_streaming.load_file(address, cache_dir=tmp_path))
    second = server.url() + difference
    if difference == "user":
        second = address.replace("http://", "http://user:pass@")
    got = safetensors_streaming.load_file(second, cache_dir=tmp_path)
    assert torch.equal(got["a"], other["a"])


def test_what_signs_an_address_is_no_difference(server: WebServer, tmp_path: Path) -> None:
    for signature in ["one", "two"]:
        address = f"{server.url()}?X-Amz-Signature={signature}"
        assert right(safetensors_streaming.load_file(address, cache_dir=tmp_path))
        _native.settle()
    assert len(kept(tmp_path)) == 1


def test_verified_whether_kept_or_not(server: WebServer, tmp_path: Path) -> None:
    known = {"model.safetensors": hashlib.sha256(CONTENT).hexdigest()}
    for _ in range(2):
        tensors = safetensors_streaming.load_file(server.url(), cache_dir=tmp_path, verify=known)
        assert right(tensors)
        _native.settle()


def test_a_folder_that_may_only_be_read(server: WebServer, tmp_path: Path) -> None:
    safetensors_streaming.load_file(server.url(), cache_dir=tmp_path)
    _native.settle()
    for file in tmp_path.rglob("*.lock"):
        file.unlink()
        file.mkdir()  # nobody can open it for writing
    assert right(safetensors_streaming.load_file(server.url(), cache_dir=tmp_path))
    assert safetensors_streaming.last_report().reader == "mmap"
