"""Files on a web server: right or a typed error, whatever the network does; no secret told."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import signal
import sys
import threading
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import safetensors.torch
import safetensors_streaming
import torch
from network_faults import FAULTS, SECRET, Fault
from process import busy, eventually, run, start_python
from safetensors.torch import save, save_file
from safetensors_streaming import SafetensorError
from safetensors_streaming._verify import check_manifest, make_manifest
from web_server import ETAG, Request, Stall, WebServer, part, status

if TYPE_CHECKING:
    from collections.abc import Iterator

TENSORS = {
    "a": torch.arange(700_000, dtype=torch.int32),
    "b": torch.rand(300, 100),
    "c": torch.zeros(0, 4),
}
CONTENT = save(TENSORS, {"format": "pt"})


def equal(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    """Whether both have the same names, types, shapes and bytes."""
    return got.keys() == wanted.keys() and all(
        got[name].dtype == tensor.dtype and torch.equal(got[name], tensor)
        for name, tensor in wanted.items()
    )


@pytest.fixture
def server() -> Iterator[WebServer]:
    """A server that answers rightly, as long as nothing else is said."""
    with WebServer(lambda request: part(request, CONTENT)) as running:
        yield running


@pytest.mark.parametrize("name", FAULTS)
def test_a_fault_is_mended_or_told(
    name: str, server: WebServer, caplog: pytest.LogCaptureFixture
) -> None:
    fault: Fault = FAULTS[name]
    caplog.set_level(logging.DEBUG)
    server.answer = fault.answer(CONTENT)
    address = server.url().replace("http://", f"http://user:{SECRET}@") + f"?sig={SECRET}"
    if fault.error is None:
        assert equal(safetensors_streaming.load_file(address), TENSORS)
        told = safetensors_streaming.last_report().to_json()
    else:
        with pytest.raises(fault.error) as caught:
            safetensors_streaming.load_file(address)
        told = f"{caught.value!r} {caught.value} {caught.value.__cause__}"
        assert re.search(fault.words, told), told
        assert server.url() in told
    assert SECRET not in told + caplog.text
    assert len(server.requests) >= fault.requests
    assert eventually(lambda: not busy())


@pytest.mark.parametrize("fault", ["reset in the opening", "reset in the middle"])
def test_a_range_goes_on_where_it_broke_off(server: WebServer, fault: str) -> None:
    server.answer = FAULTS[fault].answer(CONTENT)
    assert equal(safetensors_streaming.load_file(server.url()), TENSORS)
    assert len(server.requests) == 3
    begin = 0 if fault == "reset in the opening" else 1
    broken, resumed = server.requests[begin : begin + 2]
    first, last = broken.range
    assert first < resumed.range[0] < last
    assert resumed.range[1] == last
    assert resumed.headers["if-match"] == ETAG


def test_an_address_that_led_to_an_expired_one_is_asked_anew(server: WebServer) -> None:
    server.answer = FAULTS["a signed address that expires"].answer(CONTENT)
    safetensors_streaming.load_file(server.url())
    assert "tried again" not in str(safetensors_streaming.last_report())


def test_a_server_is_given_the_time_it_asks_for(server: WebServer) -> None:
    server.answer = FAULTS["busy for a second"].answer(CONTENT)
    began = time.monotonic()
    safetensors_streaming.load_file(server.url())
    assert time.monotonic() - began >= 1


def test_an_error_names_file_tensor_and_offset(server: WebServer) -> None:
    server.answer = FAULTS["gone in the middle"].answer(CONTENT)
    text = r"wanted \d+ bytes at offset 0 \(tensor `[abc]`\), got 0: the server answered 410 Gone"
    with pytest.raises(FileNotFoundError, match=text):
        safetensors_streaming.load_file(server.url())


def test_nobody_listens() -> None:
    with WebServer(lambda _request: []) as gone:
        address = gone.url()
    with pytest.raises(ConnectionRefusedError, match=f"no connection.*{re.escape(address)}"):
        safetensors_streaming.load_file(address)


def test_what_is_no_safetensors_file(server: WebServer) -> None:
    server.answer = lambda request: part(request, b"<html><body>Sign in</body></html>")
    with pytest.raises(SafetensorError, match="HTML"):
        safetensors_streaming.load_file(server.url())


@pytest.mark.parametrize(
    "address",
    [
        "http://",
        "s3://",
        "http:///model",
        "https://[::1",
        "s3://bucket",
        "gs://bucket/",
        "az://container//blob",
        "s3://bucket/../key",
        f"s3://bucket/key?X-Amz-Signature={SECRET}",
        f"s3://{SECRET}:{SECRET}@bucket/key",
        "hf://model",
    ],
)
def test_an_address_that_is_none(address: str) -> None:
    for call in (safetensors_streaming.load_file, safetensors_streaming.load_checkpoint):
        with pytest.raises(ValueError, match=r"address|hf://|empty path segment|\.\.") as caught:
            call(address)
        assert SECRET not in str(caught.value)


def test_a_small_file_is_one_request(server: WebServer) -> None:
    small = {"a": torch.arange(10)}
    server.answer = lambda request: part(request, save(small))
    assert equal(safetensors_streaming.load_file(server.url()), small)
    assert len(server.requests) == 1


def test_a_header_longer_than_the_first_range(server: WebServer) -> None:
    many = {f"layer.{number}.weight": torch.full((2,), number) for number in range(5000)}
    content = save(many)
    server.answer = lambda request: part(request, content)
    assert equal(safetensors_streaming.load_file(server.url()), many)


def test_one_tensor_and_a_part_of_one(server: WebServer) -> None:
    with safetensors_streaming.safe_open(server.url(), "pt") as file:
        assert set(file.keys()) == set(TENSORS)
        assert file.metadata() == {"format": "pt"}
        assert torch.equal(file.get_tensor("b"), TENSORS["b"])
        assert torch.equal(file.get_slice("a")[1000:2000], TENSORS["a"][1000:2000])
    first, last = server.requests[-1].range
    assert last - first < 16 << 10


def _checkpoint(folder: Path) -> dict[str, torch.Tensor]:
    """Four shards and their index."""
    tensors = {f"layer.{number}.weight": torch.rand(500, 1000) for number in range(8)}
    names = sorted(tensors)
    shards = {f"model-{number}.safetensors": names[number::4] for number in range(4)}
    for shard, held in shards.items():
        save_file({name: tensors[name] for name in held}, folder / shard)
    weight_map = {name: shard for shard, held in shards.items() for name in held}
    index = {"metadata": {}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    return tensors


@pytest.fixture
def shards(tmp_path: Path) -> Iterator[tuple[WebServer, dict[str, torch.Tensor]]]:
    """A server of four shards and their index."""
    tensors = _checkpoint(tmp_path)

    def answer(request: Request) -> list[bytes]:
        file = tmp_path / request.path.rpartition("/")[2]
        return part(request, file.read_bytes()) if file.exists() else status("404 Not Found")

    with WebServer(answer) as running:
        yield running, tensors


INDEX = "/m/model.safetensors.index.json"


def test_a_checkpoint_by_its_index(shards: tuple[WebServer, dict[str, torch.Tensor]]) -> None:
    server, tensors = shards
    got = safetensors_streaming.load_checkpoint(server.url(f"{INDEX}?sig=1"))
    assert equal(got, tensors)
    assert {request.target.partition("?")[2] for request in server.requests} == {"sig=1"}
    assert equal(dict(safetensors_streaming.stream(server.url(INDEX))), tensors)
    report = safetensors_streaming.last_report()
    assert report.reader == "network"
    assert report.files == 4


def test_a_shard_that_is_missing(
    shards: tuple[WebServer, dict[str, torch.Tensor]], tmp_path: Path
) -> None:
    server, _ = shards
    (tmp_path / "model-2.safetensors").unlink()
    with pytest.raises(FileNotFoundError, match=r"404.*model-2\.safetensors"):
        safetensors_streaming.load_checkpoint(server.url(INDEX))


def test_an_index_cannot_lead_away(shards: tuple[WebServer, object], tmp_path: Path) -> None:
    server, _ = shards
    for shard in ["../secret", "http://elsewhere/x", "/etc/passwd"]:
        index = {"metadata": {}, "weight_map": {"a": shard}}
        (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
        count = len(server.requests)
        with pytest.raises((SafetensorError, FileNotFoundError)):
            safetensors_streaming.load_checkpoint(server.url(INDEX))
        asked = [request.path for request in server.requests[count:]]
        assert all(path.startswith("/m/") for path in asked), asked


@pytest.mark.parametrize("same", [True, False])
def test_the_right_to_read_stays_with_its_host(server: WebServer, same: bool) -> None:  # noqa: FBT001
    with WebServer(lambda request: part(request, CONTENT), host="127.0.0.2") as other:
        to = server.url("/moved") if same else other.url("/moved")
        server.answer = lambda request: (
            part(request, CONTENT) if request.path == "/moved" else status("302 Found", Location=to)
        )
        address = server.url().replace("http://", "http://user:password@")
        assert equal(safetensors_streaming.load_file(address), TENSORS)
        assert all("authorization" in request.headers for request in server.requests)
        assert not any("authorization" in request.headers for request in other.requests)
        assert bool(other.requests) is not same


@pytest.mark.parametrize("where", ["open", "load"])
def test_interrupted_at_once(where: str) -> None:
    """From the signal to the exception in under 200 ms, and the process goes on."""
    script = """
        import os, signal, sys, time
        signal.signal(signal.SIGINT, signal.default_int_handler)  # a background shell ignores it
        os.environ["SAFETENSORS_STREAMING_NETWORK_PATIENCE"] = "60"
        import safetensors_streaming
        print("ready", flush=True)
        try:
            safetensors_streaming.load_file(sys.argv[1])
        except KeyboardInterrupt:
            print(time.monotonic(), flush=True)
    """
    stalled = threading.Event()

    def answer(request: Request) -> list[bytes | Stall]:
        if where == "load" and request.number == 0:
            return [*part(request, CONTENT)]
        stalled.set()
        return [part(request, CONTENT)[0], Stall()]

    with WebServer(answer) as server, start_python(script, server.url()) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == "ready\n"
        assert stalled.wait(30)
        sent = time.monotonic()
        os.kill(child.pid, signal.SIGINT)
        raised = float(child.stdout.readline())
        assert raised - sent < 0.2
        assert child.wait(30) == 0


def test_many_loads_at_once(shards: tuple[WebServer, dict[str, torch.Tensor]]) -> None:
    server, tensors = shards
    right = []

    def load() -> None:
        right.append(equal(safetensors_streaming.load_checkpoint(server.url(INDEX)), tensors))

    threads = [threading.Thread(target=load) for _ in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert right == [True] * 6
    assert eventually(lambda: not busy())


def test_a_child_of_fork_has_connections_of_its_own(server: WebServer) -> None:
    safetensors_streaming.load_file(server.url())
    process = os.fork()
    if process == 0:
        signal.alarm(60)
        got = safetensors_streaming.load_file(server.url())
        # By bytes: torch's own threads are the parent's.
        right = all(bytes(got[name].numpy()) == bytes(TENSORS[name].numpy()) for name in TENSORS)
        os._exit(0 if right else 1)
    assert os.waitpid(process, 0)[1] == 0
    assert equal(safetensors_streaming.load_file(server.url()), TENSORS)


def test_verified_by_its_digest(server: WebServer) -> None:
    digest = hashlib.sha256(CONTENT).hexdigest()
    assert equal(safetensors_streaming.load_file(server.url(), verify=digest), TENSORS)
    other = digest[:-1] + ("1" if digest[-1] == "0" else "0")
    with pytest.raises(SafetensorError, match=f"sha256 is {digest}"):
        safetensors_streaming.load_file(server.url(), verify=other)


def test_a_name_that_an_address_writes_otherwise(server: WebServer, tmp_path: Path) -> None:
    name, address = "a b.safetensors", server.url("/m/a%20b.safetensors")
    known = {name: hashlib.sha256(CONTENT).hexdigest()}
    assert equal(safetensors_streaming.load_checkpoint(address, verify=known), TENSORS)
    (tmp_path / name).write_bytes(CONTENT)
    (tmp_path / "manifest.json").write_text(json.dumps(make_manifest(tmp_path / name)))
    assert check_manifest(address, tmp_path / "manifest.json") == []
    assert make_manifest(address) == make_manifest(tmp_path / name)


def test_no_digest_is_known_of_an_address(server: WebServer) -> None:
    with pytest.raises(ValueError, match=f"no SHA-256 is known of .*{server.url()}"):
        safetensors_streaming.load_file(server.url(), verify="sha256")


def test_patched(server: WebServer) -> None:
    with safetensors_streaming.patched():
        assert equal(safetensors.torch.load_file(server.url()), TENSORS)


def test_no_secret_in_what_cannot_be_done(server: WebServer) -> None:
    address = server.url().replace("http://", f"http://user:{SECRET}@")
    for call in (
        lambda: safetensors_streaming.load_file(address, device="mps"),
        lambda: safetensors_streaming.safe_open(address, "np"),
    ):
        with pytest.raises(ValueError, match="address") as caught:
            call()
        assert SECRET not in str(caught.value)


def test_what_a_server_repeats_of_an_address(server: WebServer) -> None:
    server.answer = lambda request: status(
        "403 Forbidden", f"user somebody, signature {SECRET}, of {request.target}".encode()
    )
    address = f"{server.url()}?a=1&sig={SECRET}".replace("http://", "http://somebody:word@")
    with pytest.raises(PermissionError) as caught:
        safetensors_streaming.load_file(address)
    assert SECRET not in str(caught.value)
    assert "somebody" not in str(caught.value)


def test_a_path_that_was_an_address() -> None:
    with pytest.raises(ValueError, match="has to be a str"):
        safetensors_streaming.load_file(Path("https://example.org/model.safetensors"))


def test_the_command_line(server: WebServer) -> None:
    source = "from safetensors_streaming.cli import main; main()"
    command = [sys.executable, "-c", source]
    address = f"{server.url()}?sig={SECRET}"
    told = run([*command, "inspect", address], None)
    assert "model.safetensors" in told
    assert SECRET not in told
    told = run([*command, "verify", address], None)
    assert SECRET not in told
