"""What the command line does to a terminal, and what where there is none."""

from __future__ import annotations

import json
import os
import re
import subprocess
import time
import unicodedata
from typing import TYPE_CHECKING

import pytest
from commands import COMMAND, NOBODY_READS, run
from oracle import Entry, header_of, write_raw
from process import environment, in_terminal

if TYPE_CHECKING:
    from pathlib import Path

#: What a terminal would obey, and how it is shown.
OBEYED = {
    "\x1b[31mred": "\\x1b[31mred",
    "\x9b31mred": "\\x9b31mred",
    "one\ntwo\r": "one\\ntwo\\r",
    "\u202egnp.exe": "\\u202egnp.exe",
}


@pytest.fixture(params=OBEYED)
def obeyed(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


def shown(output: str) -> str:
    """Asserts that a terminal has nothing to obey in an output."""
    assert [line for line in output.split("\n") if not line.isprintable()] == []
    return output


def test_what_a_terminal_would_obey_is_shown_instead(obeyed: str, tmp_path: Path) -> None:
    entries = {obeyed: Entry("F32", [2])}
    path = write_raw(tmp_path / f"{obeyed}.safetensors", entries, {obeyed: f"of {obeyed}"})
    written = OBEYED[obeyed]
    told = shown(run("inspect", path).output)
    assert f"  {written}: of {written}\n" in told
    assert told.count(written) == 1 + 1 + 2 + 1  # the file, its metadata's title, them, the tensor
    for words in (("verify", path), ("load", path, "--trace", tmp_path / f"{obeyed}.json")):
        assert written in shown(run(*words).output)
    digest = "0" * 64
    assert f"{written}.safetensors: sha256 is" in shown(
        run("verify", path, "--sha256", digest).output
    )


def test_what_a_terminal_would_obey_is_shown_in_errors(obeyed: str, tmp_path: Path) -> None:
    bad = tmp_path / f"{obeyed}.safetensors"
    bad.write_bytes(b"<html>not found</html>")
    written = OBEYED[obeyed]
    assert written in shown(run("inspect", bad).stderr)
    assert written in shown(run("inspect", tmp_path / f"no {obeyed}").stderr)
    assert written in shown(run("load", bad, "--device", obeyed).stderr)


def test_json_has_every_name_and_nothing_that_a_terminal_would_obey(tmp_path: Path) -> None:
    names = [*OBEYED, "é", "\N{SLIGHTLY SMILING FACE}"]
    path = write_raw(tmp_path / "m.safetensors", {name: Entry("F32", [1]) for name in names})
    (file,) = json.loads(shown(run("inspect", path, "--json").stdout))["files"]
    assert [tensor["name"] for tensor in file["tensors"]] == names


#: A line of the table up to the end of its size, in front of the offset.
SIZE = re.compile(r".*(size|[\d,]+)(?= +(offset|[\d,]+)$)")


def cells(text: str) -> int:
    """How wide a text without marks is on a terminal."""
    return sum(2 if unicodedata.east_asian_width(character) == "W" else 1 for character in text)


def test_columns_stand_below_each_other_whatever_is_in_them(tmp_path: Path) -> None:
    sizes = {"模型.权重" * 4: 7, "plain": 1234567, "é" * 12: 1}
    entries = {name: Entry("U8", [size]) for name, size in sizes.items()}
    path = write_raw(tmp_path / "m.safetensors", entries)
    for columns in (160, 80, 40):
        lines = in_terminal(columns, "inspect", str(path)).splitlines()
        table = lines[next(at for at, line in enumerate(lines) if line.startswith("tensor  ")) :]
        assert all(cells(line) <= columns for line in table)
        places = {cells(line[: line.index("U8")]) for line in table if "U8" in line}
        assert places == {cells(table[0][: table[0].index("dtype")])}
        if columns >= 80:  # narrower ones have no sizes
            assert len({cells(match[0]) for line in table if (match := SIZE.match(line))}) == 1


def test_a_table_takes_about_as_long_as_json(tmp_path: Path) -> None:
    sizes = {f"model.layers.{index}.weight": ("U8", [1], 1) for index in range(20_000)}
    path = tmp_path / "many.safetensors"
    path.write_bytes(header_of(sizes) + bytes(len(sizes)))

    def seconds(*words: str) -> float:
        began = time.process_time()
        output = run("inspect", path, *words).output
        assert output.count("model.layers.") == len(sizes)
        return time.process_time() - began

    assert seconds() < 5 * seconds("--json")


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_who_reads_only_the_beginning_is_not_told_more(words: tuple[str], tmp_path: Path) -> None:
    path = write_raw(tmp_path / "m.safetensors", {"a": Entry("F32", [1])})
    reading, writing = os.pipe()
    os.close(reading)
    ended = subprocess.run(  # noqa: S603 - our own command
        [*COMMAND, "inspect", path, *words],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=environment(),
        check=False,
    )
    os.close(writing)
    assert (ended.returncode, ended.stderr) == (NOBODY_READS, b"")


@pytest.mark.parametrize(
    ("words", "label"),
    [(("verify", "--write-manifest", "{folder}/m.json"), "verifying"), (("load",), "loading")],
)
def test_progress_is_told_to_a_terminal_alone(
    slow: Path, words: tuple[str, ...], label: str
) -> None:
    command = [word.format(folder=slow.parent) for word in (words[0], str(slow), *words[1:])]
    assert run(*command).stderr == ""
    bars = [part for part in in_terminal(80, *command).splitlines() if part.startswith(label)]
    moving = re.compile(rf"{label}: +(\d+)%\|.*\| ([\d.]+)M/537M \[\d+:\d+<\d+:\d+, .*[MG]B/s\]")
    shown = [match for bar in bars if (match := moving.match(bar))]
    assert len(shown) > 1
    assert (shown[-1][1], shown[-1][2]) == ("100", "537")


def test_no_bar_stays_where_nothing_is_read(tmp_path: Path) -> None:
    path = write_raw(tmp_path / "m.safetensors", {"a": Entry("F32", [0])})
    for command in ("verify", "load"):
        *_, first = in_terminal(80, command, str(path)).split("\r\n")[0].split("\r")
        assert first.startswith({"verify": "structure: ", "load": "1 tensors, "}[command])
