"""Files that the command line reads and writes beside checkpoints."""

from __future__ import annotations

import errno
import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest
import safetensors_streaming
from commands import BAD, REFUSED, run
from oracle import shards, write_checkpoint

OUTPUTS = [("load", "--trace"), ("verify", "--write-manifest")]


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A checkpoint alone in its folder."""
    return write_checkpoint(tmp_path / "own")


@pytest.mark.parametrize(("command", "option"), OUTPUTS)
@pytest.mark.parametrize("output", ["{folder}/no/such", "{folder}", "{file}/below", ""])
def test_what_cannot_be_written_is_told_before_anything_is_read(
    own: Path, tmp_path: Path, command: str, option: str, output: str
) -> None:
    output = output.format(folder=tmp_path, file=shards(own)[0])
    before = sorted(tmp_path.rglob("*"))
    result = run(command, tmp_path / "missing.safetensors", option, output)
    assert (result.exit_code, result.stdout) == (REFUSED, "")
    assert result.stderr.startswith(f"error: cannot write {output}: ")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(("command", "option"), OUTPUTS)
def test_a_file_is_there_as_a_whole_or_as_it_was(
    own: Path, monkeypatch: pytest.MonkeyPatch, command: str, option: str
) -> None:
    output = own / "output.json"
    output.write_text("before")
    output.chmod(0o640)
    files = sorted(own.iterdir())

    def full(_: int) -> None:
        assert output.read_text() == "before"
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patched:
        patched.setattr(os, "fsync", full)
        result = run(command, own, option, output)
    assert result.exit_code == REFUSED
    assert result.stderr == f"error: cannot write {output}: No space left on device\n"
    assert output.read_text() == "before"
    assert sorted(own.iterdir()) == files
    bad = own.parent / "bad.safetensors"
    bad.write_bytes(b"<html>not found</html>")
    assert run(command, bad, option, output).exit_code == BAD
    assert output.read_text() == "before"
    assert run(command, own, option, output).exit_code == 0
    assert json.loads(output.read_text())
    assert stat.S_IMODE(output.stat().st_mode) == 0o640
    assert sorted(own.iterdir()) == files


@pytest.mark.parametrize(("command", "option"), OUTPUTS)
def test_links_and_devices_stay_what_they_are(
    own: Path, tmp_path: Path, command: str, option: str
) -> None:
    (tmp_path / "folder").mkdir()
    target, link = tmp_path / "folder/target.json", tmp_path / "link.json"
    link.symlink_to(target)
    assert run(command, own, option, link).exit_code == 0
    assert link.readlink() == target
    assert json.loads(target.read_text())
    assert os.listdir(target.parent) == [target.name]  # noqa: PTH208 - names
    full = tmp_path / "full"
    full.symlink_to("/dev/full")
    result = run(command, own, option, full)
    assert result.exit_code == REFUSED
    assert result.stderr == f"error: cannot write {full}: No space left on device\n"
    assert Path("/dev/full").is_char_device()


def test_what_could_not_be_written_has_loaded_nothing(own: Path, tmp_path: Path) -> None:
    safetensors_streaming.load_checkpoint(own)
    before = safetensors_streaming.last_report()
    assert before is not None
    assert run("load", own, "--trace", tmp_path / "no/such").exit_code == REFUSED
    after = safetensors_streaming.last_report()
    assert after is not None
    assert after.seconds == before.seconds


SECOND = "model-00002-of-00003.safetensors"


def refused_manifest(own: Path, manifest: Path) -> str:
    """Asserts that a manifest is refused, and gives the reason."""
    result = run("verify", own, "--manifest", manifest)
    assert (result.exit_code, result.stdout) == (BAD, "")
    prefix = f"error: {manifest} is no manifest of digests: "
    assert result.stderr.startswith(prefix)
    return result.stderr.removeprefix(prefix)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "line 1 column 1"),
        (b"{'files'", "line 1 column 2"),
        (b"\xff\xfe", "utf-8"),
        (b"[" * 1_000_000, "recursion"),
        (b"[]", "format"),
    ],
)
def test_what_is_no_manifest(own: Path, content: bytes, words: str) -> None:
    manifest = own / "manifest.json"
    manifest.write_bytes(content)
    assert words in refused_manifest(own, manifest)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        (("format",), "another 1", "format"),
        (("files",), [SECOND], "files"),
        (("files", SECOND), "0" * 64, f"tensors of file '{SECOND}'"),
        (("files", SECOND, "tensors"), None, f"tensors of file '{SECOND}'"),
        (("files", SECOND, "header"), None, f"the header of file '{SECOND}'"),
        (("files", SECOND, "header"), "0" * 63, f"the header of file '{SECOND}'"),
        (("files", SECOND, "tensors", "s1.F32"), "g" * 64, f"tensor 's1.F32' of file '{SECOND}'"),
        (("files", SECOND, "tensors", "s1.F32"), 5, f"tensor 's1.F32' of file '{SECOND}'"),
    ],
)
def test_a_manifest_that_is_spoilt(
    own: Path, place: tuple[str, ...], value: object, words: str
) -> None:
    manifest = own / "manifest.json"
    assert run("verify", own, "--write-manifest", manifest).exit_code == 0
    content = json.loads(manifest.read_text())
    table: Any = content
    for name in place[:-1]:
        table = table[name]
    table[place[-1]] = value
    manifest.write_text(json.dumps(content))
    assert words in refused_manifest(own, manifest)


def test_digests_in_capitals_are_the_same(own: Path) -> None:
    manifest = own / "manifest.json"
    assert run("verify", own, "--write-manifest", manifest).exit_code == 0
    content = json.loads(manifest.read_text())
    for file in content["files"].values():
        file["header"] = file["header"].upper()
        file["tensors"] = {name: digest.upper() for name, digest in file["tensors"].items()}
    manifest.write_text(json.dumps(content))
    assert run("verify", own, "--manifest", manifest).exit_code == 0
