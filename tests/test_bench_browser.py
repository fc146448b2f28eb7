from __future__ import annotations

import re
import shutil
import subprocess
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from typing import TYPE_CHECKING

import pytest
from test_bench_page import hostile_page, page
from test_bench_report import RESULTS

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed")
QUIET = "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync"
QUIET += " --disable-background-networking --disable-component-update"

#: Looks at the page in a frame as wide as a screen, and tells what it finds in its own title.
WATCHER = """<!DOCTYPE html><title>waiting</title><link rel="icon" href="data:,">
<iframe src="page.html" style="width: WIDTHpx; height: 800px; border: 0"></iframe>
<script>
addEventListener("load", () => {
  const frame = document.querySelector("iframe").contentWindow, root = frame.document;
  const requests = frame.performance.getEntriesByType("resource").map(entry => entry.name);
  const texts = [...root.querySelectorAll("svg text")].map(
      one => one.getBoundingClientRect().height);
  document.title = [root.documentElement.scrollWidth, root.body.scrollWidth, requests.length,
      texts.length, Math.min(...texts)].join(" ");
});
</script>"""


class Server(ThreadingHTTPServer):
    """Serves a folder on the loopback, and is the proxy that refuses the browser other hosts."""

    def __init__(self, folder: Path) -> None:
        self.asked: list[str] = []
        super().__init__(("127.0.0.1", 0), partial(Handler, directory=str(folder)))


class Handler(SimpleHTTPRequestHandler):
    server: Server

    def log_message(self, *_: object) -> None:
        self.server.asked.append(self.requestline)


@pytest.fixture
def server(tmp_path: Path) -> Iterator[Server]:
    with Server(tmp_path) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


def shown(server: Server, folder: Path, width: int) -> tuple[int, int, int, int, float]:
    """Widths of document and body, numbers of requests and texts, the least height of a text."""
    (folder / "watcher.html").write_text(WATCHER.replace("WIDTH", str(width)))
    address = f"http://127.0.0.1:{server.server_port}"
    words = [str(CHROMIUM), *QUIET.split(), f"--user-data-dir={folder / 'profile'}"]
    words += [f"--proxy-server={address}", "--proxy-bypass-list=127.0.0.1", "--dump-dom"]
    words += ["--window-size=1400,900", f"{address}/watcher.html"]
    done = subprocess.run(words, check=True, capture_output=True, text=True, timeout=120)  # noqa: S603
    found = re.search(r"<title>([\d. ]+)</title>", done.stdout)
    assert found, done.stdout[:1000]
    document, body, requests, texts, height = map(float, found[1].split())
    return int(document), int(body), int(requests), int(texts), height


@pytest.mark.parametrize("width", [400, 1280])
@pytest.mark.parametrize("names", ["committed", "hostile"])
def test_a_page_fits_and_asks_for_nothing(
    server: Server, tmp_path: Path, width: int, names: str
) -> None:
    files = [RESULTS / "cpu.jsonl", RESULTS / "consumers.jsonl"]
    text = page(files) if names == "committed" else hostile_page(tmp_path)
    (tmp_path / "page.html").write_text(text, encoding="utf-8")
    document, body, requests, texts, height = shown(server, tmp_path, width)
    assert document <= width
    assert body <= width
    assert requests == 0
    assert texts > 10
    assert height >= 9  # pixels: it can be read
    own = {f"GET /{name} HTTP/1.1" for name in ("watcher.html", "page.html")}
    assert {line for line in server.asked if line.split()[1].startswith("/")} == own
