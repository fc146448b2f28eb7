"""The command line: what it prints, and how it ends."""

from __future__ import annotations

import hashlib
import json
import re
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
from commands import BAD, INTERRUPTED, REFUSED, USAGE, run, told
from gpu import NEEDS_GPU
from oracle import STOCK, Entry, by_stock, flip, shards, write_checkpoint, write_raw, write_sparse
from process import environment, in_terminal
from safetensors_streaming._verify import make_manifest

#: Raises SIGINT half a second into the digests of a file.
INTERRUPTED_VERIFY = """
import signal, sys, threading
from safetensors_streaming.cli import main

signal.signal(signal.SIGINT, signal.default_int_handler)
threading.Timer(0.5, signal.raise_signal, [signal.SIGINT]).start()
main(["verify", sys.argv[1], "--sha256", "0" * 64])
"""


def table_of(file: Path) -> tuple[int, dict[str, Any]]:
    """The first byte of a file's data, and its table."""
    content = file.read_bytes()
    (length,) = struct.unpack("<Q", content[:8])
    return 8 + length, json.loads(content[8 : 8 + length])


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A checkpoint that a test may damage."""
    return write_checkpoint(tmp_path / "own")


def test_inspect_tells_the_table_of_every_file(checkpoint: Path) -> None:
    files = told("inspect", checkpoint)["files"]
    assert [Path(file["path"]) for file in files] == shards(checkpoint)
    for file in files:
        start, table = table_of(Path(file["path"]))
        metadata = table.pop("__metadata__", None)
        assert file["metadata"] == metadata
        assert file["data_start"] == start
        assert file["bytes"] == Path(file["path"]).stat().st_size
        assert {tensor["name"] for tensor in file["tensors"]} == set(table)
        for tensor in file["tensors"]:
            facts = table[tensor["name"]]
            assert (tensor["dtype"], tensor["shape"]) == (facts["dtype"], facts["shape"])
            offsets = [tensor["begin"] - start, tensor["end"] - start]
            assert offsets == facts["data_offsets"]


def test_inspect_sums_up_dtypes(checkpoint: Path) -> None:
    totals = told("inspect", checkpoint)["dtypes"]
    stock = by_stock(checkpoint)
    assert sum(facts["tensors"] for facts in totals.values()) == len(stock)
    assert sum(facts["bytes"] for facts in totals.values()) == sum(t.nbytes for t in stock.values())


def test_inspect_in_a_narrow_terminal_without_colour_loses_nothing(checkpoint: Path) -> None:
    text = in_terminal(40, "inspect", str(shards(checkpoint)[0]))
    assert "\x1b[3" not in text
    assert [line for line in text.splitlines() if len(line) > 40] == []
    shown = "".join(text.split())
    names = set(table_of(shards(checkpoint)[0])[1]) - {"__metadata__"}
    assert names
    assert all(name in shown for name in names)


def test_a_manifest_holds_the_digest_of_every_header_and_tensor(own: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    assert run("verify", own, "--write-manifest", manifest).exit_code == 0
    files = json.loads(manifest.read_text())["files"]
    assert set(files) == {file.name for file in shards(own)}
    for file in shards(own):
        content, (start, table) = file.read_bytes(), table_of(file)
        assert files[file.name]["header"] == hashlib.sha256(content[:start]).hexdigest()
        table.pop("__metadata__", None)
        for name, facts in table.items():
            begin, end = (start + offset for offset in facts["data_offsets"])
            expected = hashlib.sha256(content[begin:end]).hexdigest()
            assert files[file.name]["tensors"][name] == expected
    result = told("verify", own, "--manifest", manifest)
    assert result["mismatches"] == []
    assert result["bytes_digested"] == sum(file.stat().st_size for file in shards(own))


def test_one_flipped_bit_is_found_and_its_tensor_named(own: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    run("verify", own, "--write-manifest", manifest)
    file = shards(own)[1]
    start, table = table_of(file)
    table.pop("__metadata__", None)
    for name, facts in table.items():
        begin, end = (start + offset for offset in facts["data_offsets"])
        if begin == end:
            continue
        for place in {begin, (begin + end) // 2, end - 1}:
            flip(file, place)
            result = run("verify", own, "--manifest", manifest, "--json")
            flip(file, place)
            assert result.exit_code == BAD
            (mismatch,) = json.loads(result.stdout)["mismatches"]
            assert (Path(mismatch["path"]), mismatch["tensor"]) == (file, name)
    assert run("verify", own, "--manifest", manifest).exit_code == 0


def test_a_changed_header_is_found(own: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    run("verify", own, "--write-manifest", manifest)
    file = shards(own)[0]
    text = file.read_bytes()
    assert text.count(b'"format": "pt"') == 1
    file.write_bytes(text.replace(b'"format": "pt"', b'"format": "tp"'))
    result = run("verify", own, "--manifest", manifest)
    assert result.exit_code == BAD
    assert f"MISMATCH: {file}: sha256 is" in result.output


def test_files_and_tensors_that_only_one_side_has(own: Path, tmp_path: Path) -> None:
    manifest = tmp_path / "manifest.json"
    run("verify", own, "--write-manifest", manifest)
    content = json.loads(manifest.read_text())
    first, second, _ = (file.name for file in shards(own))
    del content["files"][first]
    name = min(content["files"][second]["tensors"])
    content["files"][second]["tensors"]["another"] = content["files"][second]["tensors"].pop(name)
    content["files"]["more.safetensors"] = {"header": "0" * 64, "tensors": {}}
    manifest.write_text(json.dumps(content))
    result = run("verify", own, "--manifest", manifest)
    assert result.exit_code == BAD
    lines = [line for line in result.output.splitlines() if line.startswith("MISMATCH")]
    assert len(lines) == 4
    for words in (
        first,
        f"tensor '{name}': it is not in",
        "tensor 'another': the manifest",
        "more",
    ):
        assert any(words in line for line in lines), words


def test_the_digest_of_a_file(own: Path) -> None:
    file = shards(own)[0]
    digest = hashlib.sha256(file.read_bytes()).hexdigest()
    assert run("verify", file, "--sha256", digest.upper()).exit_code == 0
    flip(file, file.stat().st_size - 1)
    result = run("verify", file, "--sha256", digest)
    assert result.exit_code == BAD
    assert digest in result.output
    assert hashlib.sha256(file.read_bytes()).hexdigest() in result.output


def test_the_names_of_the_hubs_cache_are_digests(own: Path, tmp_path: Path) -> None:
    blobs, snapshot = tmp_path / "hub/blobs", tmp_path / "hub/snapshots/abc"
    blobs.mkdir(parents=True)
    snapshot.mkdir(parents=True)
    for file in own.iterdir():
        digest = hashlib.sha256(file.read_bytes()).hexdigest()
        file.rename(blobs / digest)
        (snapshot / file.name).symlink_to(blobs / digest)
    result = told("verify", snapshot)
    assert (result["mismatches"], result["digest_unknown"]) == ([], [])
    damaged = shards(snapshot)[2]
    flip(damaged, damaged.stat().st_size - 1)
    result = run("verify", snapshot)
    assert result.exit_code == BAD
    assert str(damaged) in result.output


def test_progress_of_digests_ends_with_all_bytes(own: Path) -> None:
    told: list[tuple[int, int]] = []
    make_manifest(own, lambda done, total: told.append((done, total)))
    total = sum(file.stat().st_size for file in shards(own))
    assert {of for _, of in told} == {total}
    assert told == sorted(told)
    assert told[-1] == (total, total)


def test_without_a_digest_the_structure_alone_is_checked(own: Path) -> None:
    result = run("verify", own)
    assert result.exit_code == 0
    assert "no digest is known" in result.output
    assert told("verify", own)["bytes_digested"] == 0


@pytest.mark.parametrize(
    ("words", "code"),
    [
        (("verify", "{own}", "--sha256", "0" * 64), USAGE),  # one digest for three files
        (("verify", "{file}", "--sha256", "xyz"), USAGE),
        (("verify", "{file}", "--manifest", "{file}"), BAD),
        (("verify", "{file}", "--manifest", "{own}/missing"), REFUSED),
        (("verify", "{file}", "--sha256", "0" * 64, "--write-manifest", "m"), USAGE),
        (("load", "{file}", "--device", "tpu"), USAGE),
        (("load", "{file}", "--cache", "perhaps"), USAGE),
        (("inspect", "{own}/missing"), REFUSED),
        (("load", "{own}/missing"), REFUSED),
        (("inspect", "{bad}"), BAD),
        (("verify", "{bad}"), BAD),
        (("load", "{bad}"), BAD),
    ],
)
def test_exit_codes(own: Path, words: tuple[str, ...], code: int) -> None:
    bad = own.parent / "bad.safetensors"
    bad.write_bytes(b"<html>not found</html>")
    file = shards(own)[0]
    result = run(*(word.format(own=own, file=file, bad=bad) for word in words))
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.output
    assert result.stderr


def test_load_tells_what_bound_it_and_writes_the_time_line(own: Path, tmp_path: Path) -> None:
    trace = tmp_path / "trace.json"
    result = run("load", own, "--trace", trace)
    assert result.exit_code == 0, result.output
    assert "bound by" in result.output
    spans = [event for event in json.loads(trace.read_text())["traceEvents"] if "dur" in event]
    assert {"read", "allocate", "place", "deliver"} == {span["name"] for span in spans}
    facts = told("load", own)
    assert facts["tensors"] == len(by_stock(own))


@pytest.mark.parametrize("entries", [{}, {"a": Entry("F32", [0, 3]), "b": Entry("U8", [0])}])
def test_where_nothing_is_to_be_read(entries: dict[str, Entry], tmp_path: Path) -> None:
    path = write_raw(tmp_path / "m.safetensors", entries)
    trace = tmp_path / "trace.json"
    shown = run("load", path, "--trace", trace).output.splitlines()
    assert shown[0] == f"{len(entries)} tensors, 0 B from 1 files"
    assert shown[1].startswith(f"nothing to read: {len(entries)} tensors in ")
    assert "bound by" not in "".join(shown)
    assert json.loads(trace.read_text()) == {"traceEvents": []}
    facts = told("load", path)
    assert (facts["bound"], facts["read_bytes"]) == ("nothing", 0)


class TestOnGpu:
    pytestmark = NEEDS_GPU

    def test_load(self, large: Path) -> None:
        result = run("load", large, "--device", "cuda")
        assert result.exit_code == 0, result.output
        rate = r"^bound by (disk|page cache|link|Python).* \d+ % of \d+\.\d+ s, \d+\.\d\d GB/s"
        assert re.search(rate, result.output, re.MULTILINE)
        facts = told("load", large, "--device", "cuda:0")
        assert (facts["device"], facts["tensors"]) == ("cuda:0", 24)
        assert facts["bytes"] == sum(tensor.nbytes for tensor in STOCK.load_file(large).values())

    def test_the_time_line_has_all_copies(self, large: Path, tmp_path: Path) -> None:
        trace = tmp_path / "trace.json"
        assert run("load", large, "--device", "cuda", "--trace", trace).exit_code == 0
        events = json.loads(trace.read_text())["traceEvents"]
        lanes = {event["args"]["name"]: event["tid"] for event in events if event["ph"] == "M"}
        spans = [event for event in events if event["ph"] == "X"]
        assert len(spans) + len(lanes) == len(events)
        assert all(span["ts"] >= 0 and span["dur"] >= 0 for span in spans)
        copies = [span for span in spans if span["name"] == "copy"]
        assert {copy["tid"] for copy in copies} == {lanes["copies to cuda:0"]}
        reads = [span["args"]["bytes"] for span in spans if span["name"] == "read"]
        assert sorted(copy["args"]["bytes"] for copy in copies) == sorted(reads)
        assert sum(reads) >= sum(tensor.nbytes for tensor in STOCK.load_file(large).values())

    def test_no_such_gpu(self, large: Path) -> None:
        result = run("load", large, "--device", "cuda:99")
        assert (result.exit_code, result.stdout) == (REFUSED, "")
        assert "99" in result.stderr


def test_a_manifest_of_files_of_one_name_is_refused(own: Path, tmp_path: Path) -> None:
    for folder in ("one", "two"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "m.safetensors").write_bytes(shards(own)[0].read_bytes())
    manifest = tmp_path / "manifest.json"
    result = run("verify", tmp_path / "*/m.safetensors", "--write-manifest", manifest)
    assert result.exit_code != 0
    assert not manifest.exists()


def test_verify_ends_at_once_when_it_is_interrupted(tmp_path: Path) -> None:
    path = write_sparse(tmp_path / "long.safetensors", 64, 256 << 20)
    words = [sys.executable, "-c", INTERRUPTED_VERIFY, str(path)]
    began = time.monotonic()
    ended = subprocess.run(words, check=False, timeout=60, env=environment())  # noqa: S603
    assert ended.returncode == INTERRUPTED
    assert time.monotonic() - began < 10  # all of it, 16 GiB, takes several times that


def test_names_are_shown_as_they_are(tmp_path: Path) -> None:
    names = ["a\\[red]b", "x:smile:y", "long" * 50]
    entries = {name: Entry("F32", [1]) for name in names[:2]}
    path = write_raw(tmp_path / f"{names[2]}.safetensors", entries)
    shown = run("inspect", path).output
    assert all(name in shown for name in names[:2])
    assert str(path) in run("verify", path).output
