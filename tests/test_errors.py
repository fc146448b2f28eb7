"""Every exception tells the file, the place in it, the tensor, the cause, and what to do about it.

One table over all kinds of faults. What has to be told of each stands with its case; where stock
has the case too, the exception is stock's or a subclass of it.
"""

from __future__ import annotations

import json
import re
import ssl
import tempfile
from concurrent.futures import ThreadPoolExecutor
from functools import cache, partial
from itertools import chain
from operator import attrgetter
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from error_calls import of_arguments, of_checkpoints
from error_cases import AGAIN, Case, missing, of_bad_files, of_changes, of_memory, of_paths
from gpu import NEEDS_SIMULATOR
from network_faults import FAULTS
from oracle import OURS, STOCK, Entry, Outcome, outcome, write_raw
from process import run_python
from refusal import DRIVER_WAYS
from safetensors import SafetensorError
from safetensors.torch import save
from safetensors_streaming import load_file
from test_cuda_refused import CAUSES, STATES, environment
from web_server import Answer, WebServer, part

if TYPE_CHECKING:
    from collections.abc import Mapping

CASES = list(
    chain(of_bad_files(), of_paths(), of_changes(), of_memory(), of_checkpoints(), of_arguments())
)


@cache
def untold(case: Case) -> list[str]:
    """What our exception does not tell, and whether it is another than it has to be."""
    with tempfile.TemporaryDirectory() as place:
        call = case.make(Path(place))
        got = outcome(lambda: call(OURS))
        found = faults(got, case.error, case.told, Path(place))
        stock = outcome(lambda: call(STOCK)).error if case.stock else BaseException
    if got.error is not None and (stock is None or not issubclass(got.error, stock)):
        found.append(f"{got.error}, stock: {stock}")
    return found


def faults(
    got: Outcome, error: type[BaseException], told: Mapping[str, str], folder: Path = Path()
) -> list[str]:
    """In what an exception is not what it has to be."""
    if got.error is None:
        return ["no exception"]
    found = [f"no {what}: {got.words!r}" for what in missing(told, folder, got.words)]
    return found if issubclass(got.error, error) else [f"{got.error}, not {error}", *found]


@pytest.mark.parametrize("case", CASES, ids=attrgetter("id"))
def test_an_error_tells_what_is_wrong(case: Case) -> None:
    assert untold(case) == []


# The network.

CONTENT = save({"a": torch.arange(700_000, dtype=torch.int32), "b": torch.rand(300, 100)})
DURING_A_LOAD = 2  # requests that such a fault takes at least; at the opening it is one, or six
PATIENCE = "SAFETENSORS_STREAMING_NETWORK_PATIENCE"

#: What to do, by the cause.
ADVICE = {
    "changed": AGAIN,
    "request for a range|sends gzip": "download",
    "no answer within|bytes came within": PATIENCE,
    "401|403": "token|password|credentials",
    "peer certificate": "SSL_CERT_FILE",
}


def of_network() -> dict[str, tuple[Answer, type[BaseException], dict[str, str]]]:
    """What a server answers, what a load then raises, and what that tells."""
    known = {}
    for name, fault in FAULTS.items():
        if fault.error is not None:
            told = {"cause": fault.words}
            if fault.requests == DURING_A_LOAD:
                told |= {"offset": r"wanted \d+ bytes at offset \d+", "tensor": "tensor `[ab]`"}
            known[name] = (fault.answer(CONTENT), fault.error, told | advice_for(fault.words))
    page = b"<html><body>Sign in</body></html>"
    told = {"cause": "HTML page", "advice": "download the file itself"}
    known["a web page"] = (lambda request: part(request, page), SafetensorError, told)
    return known


def advice_for(words: str) -> dict[str, str]:
    """What the text has to advise, if there is something to do."""
    found = [advice for cause, advice in ADVICE.items() if re.search(cause, words)]
    return {"advice": found[0]} if found else {}


def not_told_of_network(name: str) -> list[str]:
    answer, error, told = of_network()[name]
    with WebServer(answer) as server:
        got = outcome(lambda: load_file(server.url()))
        return faults(got, error, told | {"file": server.url()})


def not_told_of_a_connection() -> list[str]:
    """Nobody listens there any more."""
    with WebServer(lambda _request: []) as server:
        address = server.url()
    told = {"file": address, "cause": "no connection: .*refused.*6 tries"}
    return faults(outcome(lambda: load_file(address)), ConnectionRefusedError, told)


def not_told_of_a_certificate() -> list[str]:
    """Nobody vouches for the server."""
    import trustme  # noqa: PLC0415 - where only the tests of a GPU run, there is none

    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    trustme.CA().issue_cert("localhost").configure_cert(context)
    with WebServer(lambda request: part(request, CONTENT), tls=context) as server:
        address = server.url(host="localhost")
        told = {"file": address, "cause": "no connection: invalid peer certificate"}
        got = outcome(lambda: load_file(address))
        return faults(got, OSError, told | advice_for("peer certificate"))


NETWORK = {name: partial(not_told_of_network, name) for name in of_network()} | {
    "nobody listens": not_told_of_a_connection,
    "a certificate of nobody": not_told_of_a_certificate,
}


@cache
def untold_of_network() -> dict[str, list[str]]:
    """All at once: most of them wait."""
    with ThreadPoolExecutor(8) as pool:
        return dict(zip(NETWORK, pool.map(lambda call: call(), NETWORK.values()), strict=True))


@pytest.mark.parametrize("name", NETWORK)
def test_an_error_of_the_network_tells_what_is_wrong(name: str) -> None:
    assert untold_of_network()[name] == []


def test_all_errors_are_told(
    pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {case.id: untold(case) for case in CASES} | untold_of_network()
    tell(pytestconfig, capsys, found)


def tell(
    pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str], found: dict[str, list[str]]
) -> None:
    """Prints how many errors there are and how many tell all, and asserts that all do."""
    numbers = {"errors": len(found), "told": sum(1 for untold in found.values() if not untold)}
    with capsys.disabled():
        writer = pytestconfig.get_terminal_writer()
        writer.line(f"\nerrors: {numbers['told']} of {numbers['errors']} tell what is wrong")
        writer.line(f"figure {json.dumps(numbers)}")
    assert {name: untold for name, untold in found.items() if untold} == {}


# A GPU: what is told is which one, the cause, and what to do.

GPU_ADVICE = {
    "no driver": "install one.*--gpus all",
    "a stub for a driver": "take its folder off LD_LIBRARY_PATH",
    "too old a driver": "update it",
    "no devices": "nvidia-smi",
}
#: A function that fails, the driver's code, the cause and what to do.
BREAKS = {
    "the GPU is lost": ("cuMemcpyHtoDAsync_v2", 719, r"\(719\)", "start a new one"),
    "a graph is captured": ("cuMemcpyHtoDAsync_v2", 900, r"\(900\)", "load before or after"),
    "no memory": ("cuMemAlloc_v2", 2, "out of memory: .* bytes free, .* wanted", "dtype="),
}
BROKEN = """
    import sys, simulator
    from oracle import outcome
    from refusal import ways
    path, way, symbol, code = *sys.argv[1:4], int(sys.argv[4])
    ways(path)[way]()
    simulator.fail_from(symbol, 1, code)
    told = outcome(ways(path)[way])
    assert issubclass(told.error, RuntimeError), told
    print(told.words)
"""


@cache
def untold_of_gpu() -> dict[str, list[str]]:
    """What every way without torch leaves untold of a GPU that cannot be had, or breaks."""
    found = {}
    with tempfile.TemporaryDirectory() as place:
        path = write_raw(Path(place, "a.safetensors"), {"a": Entry("U8", [5 << 20])})
        for state, ordinal in STATES.items():
            script = "import sys, refusal; refusal.tell(sys.argv[1], int(sys.argv[2]))"
            output = run_python(script, path, ordinal, env=environment(state, Path(place)))
            told = {"file": f"cuda:{ordinal}: ", "cause": CAUSES[state]}
            if state in GPU_ADVICE:
                told["advice"] = GPU_ADVICE[state]
            for way, (classes, words) in json.loads(output.splitlines()[-1]).items():
                if way in DRIVER_WAYS:
                    got = Outcome(error=RuntimeError, words=words)
                    known = "RuntimeError" in classes
                    found[f"{state}, {way}"] = faults(got, RuntimeError, told) if known else classes
        for name, (symbol, code, cause, advice) in BREAKS.items():
            told = {"file": "cuda:0", "cause": cause, "advice": advice}
            for way in DRIVER_WAYS[:3]:
                words = run_python(BROKEN, path, way, symbol, code)
                got = Outcome(error=RuntimeError, words=words)
                found[f"{name}, {way}"] = faults(got, RuntimeError, told)
    return found


class TestOfGpu:
    pytestmark = NEEDS_SIMULATOR

    def test_all_errors_of_a_gpu_are_told(
        self, pytestconfig: pytest.Config, capsys: pytest.CaptureFixture[str]
    ) -> None:
        tell(pytestconfig, capsys, untold_of_gpu())
