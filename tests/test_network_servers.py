"""Files on real servers: nginx, plain and with TLS, and SeaweedFS, filled by ordinary clients."""

from __future__ import annotations

import json
import threading
from typing import TYPE_CHECKING

import pytest
import safetensors_streaming
import torch
from process import run_python
from safetensors.torch import save, save_file
from servers import BUCKET, SECRET, Nginx, Seaweed, nginx, seaweed
from web_server import Request, WebServer, part, status

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

TENSORS = {f"layer.{number}.weight": torch.rand(1000, 2500) for number in range(12)}
INDEX = "model.safetensors.index.json"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint of 120 MB in four shards, with its index."""
    folder = tmp_path_factory.mktemp("model")
    names = sorted(TENSORS)
    weight_map = {}
    for number in range(4):
        shard = f"model-{number}.safetensors"
        save_file({name: TENSORS[name] for name in names[number::4]}, folder / shard)
        weight_map |= dict.fromkeys(names[number::4], shard)
    (folder / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    for file in folder.iterdir():
        file.chmod(0o644)  # safetensors writes files that only their owner may read
    return folder


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path, Path]:
    """An authority, and chain and key of a server that it vouches for."""
    trustme = pytest.importorskip("trustme")
    folder = tmp_path_factory.mktemp("certificates")
    authority = trustme.CA()
    issued = authority.issue_cert("localhost")
    authority.cert_pem.write_to_path(folder / "authority.pem")
    issued.private_key_pem.write_to_path(folder / "key.pem")
    for blob in issued.cert_chain_pems:
        blob.write_to_path(folder / "chain.pem", append=True)
    return folder / "authority.pem", folder / "chain.pem", folder / "key.pem"


@pytest.fixture(scope="module")
def web(
    model: Path, certificates: tuple[Path, Path, Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Nginx]:
    folder = tmp_path_factory.mktemp("nginx")
    with nginx(folder, model, certificate=certificates[1:]) as running:
        yield running


@pytest.fixture(scope="module")
def store(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Seaweed]:
    with seaweed(tmp_path_factory.mktemp("seaweed")) as running:
        for file in model.iterdir():
            running.client.upload_file(str(file), BUCKET, f"llm/{file.name}")
        yield running


def right(tensors: dict[str, torch.Tensor]) -> bool:
    return tensors.keys() == TENSORS.keys() and all(
        torch.equal(tensors[name], tensor) for name, tensor in TENSORS.items()
    )


def test_a_checkpoint_from_nginx(web: Nginx) -> None:
    assert right(safetensors_streaming.load_checkpoint(web.url(INDEX)))
    report = safetensors_streaming.last_report()
    assert report.reader == "network"
    assert report.ring_bytes_peak <= 256 << 20


def test_a_file_that_is_served_slowly(model: Path, tmp_path: Path) -> None:
    with nginx(tmp_path / "slow", model, throttle="4m") as slow:
        tensors = safetensors_streaming.load_file(slow.url("model-0.safetensors"))
    assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in tensors.items())


def test_a_server_that_is_restarted_in_the_middle(model: Path, tmp_path: Path) -> None:
    with nginx(tmp_path / "restarted", model, throttle="8m") as server:
        stream = safetensors_streaming.stream(server.url(INDEX))
        tensors = dict([next(stream)])
        server.stop()
        threading.Thread(target=server.start).start()
        tensors |= dict(stream)
    assert right(tensors)


def test_a_server_without_ranges(web: Nginx) -> None:
    with pytest.raises(OSError, match="200 OK to a request for a range"):
        safetensors_streaming.load_file(web.url("whole/model-0.safetensors"))


def test_what_is_not_there(web: Nginx) -> None:
    with pytest.raises(FileNotFoundError, match=r"404 Not Found.*nothing"):
        safetensors_streaming.load_file(web.url("nothing.safetensors"))


_TLS = """
    import sys
    import safetensors_streaming
    try:
        tensors = safetensors_streaming.load_checkpoint(sys.argv[1])
        print(len(tensors), float(tensors["layer.3.weight"].double().sum()))
    except OSError as error:
        print(type(error).__name__, error)
"""


def test_https(web: Nginx, certificates: tuple[Path, Path, Path]) -> None:
    variables = {"SSL_CERT_FILE": str(certificates[0])}
    told = run_python(_TLS, web.url(INDEX, tls=True), env=variables)
    assert told == f"12 {float(TENSORS['layer.3.weight'].double().sum())}\n"
    assert '" 206 ' in (log := (web.folder / "access.log").read_text())
    assert "HTTP/2.0" in log


def test_a_certificate_that_nobody_vouches_for(web: Nginx) -> None:
    told = run_python(_TLS, web.url(INDEX, tls=True))
    assert told.startswith("OSError no connection: invalid peer certificate")
    assert "tries" not in told
    assert "localhost" in told


def test_a_certificate_of_another_host(web: Nginx, certificates: tuple[Path, Path, Path]) -> None:
    address = web.url(INDEX, tls=True).replace("localhost", "127.0.0.1")
    told = run_python(_TLS, address, env={"SSL_CERT_FILE": str(certificates[0])})
    assert "invalid peer certificate" in told
    assert "127.0.0.1" in told


@pytest.fixture
def signed(store: Seaweed, monkeypatch: pytest.MonkeyPatch) -> Seaweed:
    """The store, and an environment with the right to read it."""
    for name, value in store.variables().items():
        monkeypatch.setenv(name, value)
    return store


@pytest.mark.usefixtures("signed")
def test_a_checkpoint_from_s3() -> None:
    address = f"s3://{BUCKET}/llm/{INDEX}"
    assert right(safetensors_streaming.load_checkpoint(address))
    assert right(dict(safetensors_streaming.stream(address)))
    with safetensors_streaming.safe_open(f"s3://{BUCKET}/llm/model-1.safetensors", "pt") as file:
        assert torch.equal(file.get_tensor("layer.1.weight"), TENSORS["layer.1.weight"])


@pytest.mark.usefixtures("signed")
def test_an_object_that_is_not_there() -> None:
    with pytest.raises(FileNotFoundError, match=rf"404.*NoSuchKey.*s3://{BUCKET}/llm/nothing"):
        safetensors_streaming.load_file(f"s3://{BUCKET}/llm/nothing.safetensors")


def test_a_wrong_secret(signed: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", wrong := "canary-wrong-secret-77aa")
    with pytest.raises(PermissionError, match=r"403.*SignatureDoesNotMatch") as caught:
        safetensors_streaming.load_file(f"s3://{BUCKET}/llm/model-0.safetensors")
    assert wrong not in str(caught.value)
    assert SECRET not in repr(signed.variables) + str(caught.value)


def test_a_key_is_taken_as_it_stands(signed: Seaweed, model: Path) -> None:
    for key in ("llm/a b.safetensors", "llm/a%20b+c=ü@.safetensors"):
        signed.client.upload_file(str(model / "model-0.safetensors"), BUCKET, key)
        tensors = safetensors_streaming.load_file(f"s3://{BUCKET}/{key}")
        assert all(torch.equal(tensor, TENSORS[name]) for name, tensor in tensors.items())


@pytest.mark.parametrize("variable", ["AWS_PROFILE", "AWS_DEFAULT_PROFILE"])
def test_credentials_of_a_file(
    store: Seaweed, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, variable: str
) -> None:
    known = store.variables()
    (tmp_path / "credentials").write_text(
        f"[other]\naws_access_key_id = nobody\n"
        f"[lab]\naws_access_key_id = {known['AWS_ACCESS_KEY_ID']}\n"
        f"aws_secret_access_key = {known['AWS_SECRET_ACCESS_KEY']}\n"
    )
    (tmp_path / "config").write_text(
        f"[profile lab]\nregion = us-east-1\nendpoint_url = {known['AWS_ENDPOINT_URL']}\n"
    )
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "config"))
    monkeypatch.setenv(variable, "lab")
    assert right(safetensors_streaming.load_checkpoint(f"s3://{BUCKET}/llm/{INDEX}"))


def test_the_region_that_a_server_names(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It is righter than that of a file of settings."""
    content = save({"a": torch.arange(200_000)})

    def answer(request: Request) -> list[bytes]:
        if "/eu-west-1/s3/" in request.headers["authorization"]:
            return part(request, content)
        code = b"<Error><Code>AuthorizationHeaderMalformed</Code></Error>"
        return status("400 Bad Request", code, x_amz_bucket_region="eu-west-1")

    (tmp_path / "config").write_text("[default]\nregion = us-east-1\n")
    with WebServer(answer) as server:
        for name, value in {
            "AWS_CONFIG_FILE": str(tmp_path / "config"),
            "AWS_ENDPOINT_URL": server.url(""),
            "AWS_ACCESS_KEY_ID": "key",
            "AWS_SECRET_ACCESS_KEY": "word",
        }.items():
            monkeypatch.setenv(name, value)
        assert list(safetensors_streaming.load_file("s3://bucket/a.safetensors")) == ["a"]


def test_without_credentials(store: Seaweed, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", store.endpoint)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nothing")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nothing")
    with pytest.raises(PermissionError, match=r"403.*without credentials"):
        safetensors_streaming.load_file(f"s3://{BUCKET}/llm/model-0.safetensors")


def test_an_object_that_is_written_anew_meanwhile(signed: Seaweed, model: Path) -> None:
    signed.client.upload_file(str(model / "model-0.safetensors"), BUCKET, "changing")
    with safetensors_streaming.safe_open(f"s3://{BUCKET}/changing", "pt") as file:
        name = file.keys()[0]
        assert torch.equal(file.get_tensor(name), TENSORS[name])
        signed.client.upload_file(str(model / "model-1.safetensors"), BUCKET, "changing")
        with pytest.raises(OSError, match="changed"):
            file.get_tensor(name)


_STORE = """
    import sys
    import safetensors_streaming
    tensors = safetensors_streaming.load_file(sys.argv[1])
    print(sorted(tensors))
"""


@pytest.mark.parametrize(
    ("address", "variables", "path", "authorization"),
    [
        pytest.param(
            "gs://bucket/m/a.safetensors",
            {"GOOGLE_BASE_URL": "{}", "GOOGLE_SKIP_SIGNATURE": "true"},
            "/bucket/m%2Fa%2Esafetensors",
            None,
            id="gs",
        ),
        pytest.param(
            "az://container/m/a.safetensors",
            {
                "AZURE_STORAGE_ACCOUNT_NAME": "account",
                "AZURE_STORAGE_ACCOUNT_KEY": "c2VjcmV0LWNhbmFyeQ==",
                "AZURE_STORAGE_ENDPOINT": "{}/account",
            },
            "/account/container/m/a.safetensors",
            "SharedKey account:",
            id="az",
        ),
    ],
)
def test_what_other_stores_are_asked(
    address: str, variables: dict[str, str], path: str, authorization: str | None
) -> None:
    """Neither has a server that runs here: one that answers rightly, and what it was asked."""
    content = save({"a": torch.arange(200_000), "b": torch.zeros(3)})
    with WebServer(lambda request: part(request, content)) as server:
        named = {name: value.format(server.url("")) for name, value in variables.items()}
        assert run_python(_STORE, address, env=named) == "['a', 'b']\n"
    assert {request.path for request in server.requests} == {path}
    for request in server.requests:
        assert request.headers.get("authorization", "").startswith(authorization or "")
        assert "c2VjcmV0" not in str(request.headers)


def test_a_model_of_the_hub(model: Path, tmp_path: Path) -> None:
    asked = "hf://org/tiny@main"

    def answer(request: Request) -> list[bytes]:
        name = request.path.rpartition("/")[2]
        if request.method == "HEAD":
            commit = {"X-Repo-Commit": "0" * 40, "ETag": '"1"'}
            return status("200 OK" if name == INDEX else "404 Not Found", **commit)
        return part(request, (model / name).read_bytes())

    with WebServer(answer) as server:
        variables = {
            "HF_ENDPOINT": server.url(""),
            "HF_HUB_OFFLINE": "0",
            "HF_HOME": str(tmp_path),
            "HF_TOKEN": "hf_canary_token",
        }
        told = run_python(_TLS, asked, env=variables)
    assert told == f"12 {float(TENSORS['layer.3.weight'].double().sum())}\n"
    loads = [request for request in server.requests if "range" in request.headers]
    assert {request.path.rpartition("/")[0] for request in loads} == {"/org/tiny/resolve/main"}
    assert {request.headers["authorization"] for request in loads} == {"Bearer hf_canary_token"}
