"""``ci/scoreboard``: what can be counted of reliability, each figure by a command of its own.

A command prints its numbers as JSON behind the word "figure", in one line or several, and leaves
with 0 if all is as it should be; of pytest the tests that passed are counted.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULT = ROOT / "bench" / "results" / "scoreboard.json"
TIMEOUT_S = 900

Numbers = Mapping[str, Any]


@dataclass(frozen=True)
class Figure:
    """Something that is counted.

    Attributes:
        name: On the command line.
        what: In the table.
        command: What counts it, a line for the shell.
        goal: What it should be, in words.
        ours: What it is, in words.
        met: Whether the numbers are what they should be, where that is more than leaving with 0.
        others: The same of other loaders, in words, where they can be counted.
    """

    name: str
    what: str
    command: str
    goal: str
    ours: Callable[[Numbers], str]
    met: Callable[[Numbers], bool] = lambda _numbers: True
    others: Callable[[Numbers], str] = lambda _numbers: "-"


def _verdicts_of_others(numbers: Numbers) -> str:
    known = {name: told for name, told in numbers.items() if isinstance(told, dict)}
    told = (
        f"{name}: {counts['differ']}"
        + "".join(f", {counts[end]} {end}" for end in ("crashes", "hangs") if end in counts)
        for name, counts in known.items()
        if name != "safetensors_streaming"
    )
    return "; ".join(told) or "-"


def _passed(numbers: Numbers) -> str:
    return f"{numbers['passed']:,} passed"


FIGURES = (
    Figure(
        "verdicts",
        "odd files, of which other tensors or another verdict than stock's",
        "ci/verdicts",
        "0 undeclared, no hang, no crash",
        lambda n: f"{n['wrong']} of {n['files']}; declared {n['safetensors_streaming']['differ']}",
        lambda n: n["wrong"] == 0,
        _verdicts_of_others,
    ),
    Figure(
        "fuzz",
        "fuzzed headers, indexes and answers",
        "ci/fuzz",
        "2 million, none otherwise than stock, no crash",
        lambda n: f"{n['inputs']:,}, {n['disagreements']} otherwise, {n['crashes']} crashes",
        lambda n: n["inputs"] >= 2_000_000,  # noqa: PLR2004 - as the goal says
    ),
    Figure(
        "simulation",
        "seeds of simulated loads",
        "SIMULATION_SEEDS=50000 cargo test --release --quiet --locked --lib seeds -- --nocapture",
        "50,000, each with right bytes or a typed error, nothing left",
        lambda n: f"{n['seeds']:,}: {n['right']:,} loads right, {n['refused']:,} typed errors",
        lambda n: n["seeds"] >= 50_000,  # noqa: PLR2004 - as the goal says
    ),
    Figure(
        "sweep",
        "operations that failed, one after the other",
        "cargo test --quiet --locked --lib every_n -- --nocapture && "
        "ci/sim --driver cargo test --quiet --locked --lib every_n -- --nocapture",
        "thousands, each with a typed error or survived, nothing left",
        lambda n: f"{n['operations'] + n['beside_gpu'] + n['driver_calls']:,}",
        lambda n: n["operations"] + n["beside_gpu"] + n["driver_calls"] > 2_000,  # noqa: PLR2004
    ),
    Figure(
        "cuda",
        "readers, sources and devices on the simulated driver",
        "SIMCUDA_RACECHECK=1 SIMCUDA_JITTER_US=100 "
        "ci/sim --driver cargo test --quiet --locked --lib cuda -- --nocapture",
        "every byte right, nothing out of order, nothing left",
        lambda n: f"{n['combinations']} combinations",
    ),
    Figure(
        "faults",
        "real faults: disks, mounts, limits, signals, forks",
        "ci/faults",
        "survived, or not possible on this machine",
        lambda n: f"{n['survived']} of {n['scenarios']} survived, {n['skipped']} not possible",
    ),
    Figure(
        "interrupt",
        "from Ctrl-C to the exception",
        "ci/faults interrupt",
        "99 of 100 within 200 ms, nothing left",
        lambda n: f"99 of 100 within {n['interrupt_p99_ms']:.0f} ms",
        lambda n: n["interrupt_p99_ms"] < 200,  # noqa: PLR2004 - as the goal says
    ),
    Figure(
        "network",
        "faults of networks and servers; a canary secret in every text",
        ".venv/bin/python -m pytest -q tests/test_network.py tests/test_network_cache.py",
        "each as promised, the secret nowhere",
        _passed,
    ),
    Figure(
        "sanitizers",
        "address, leak and thread sanitizer; every order of hand-overs",
        "ci/sanitizers",
        "clean",
        lambda n: f"{n['tests']} tests clean; {n['loom_models']} models in every order",
    ),
    Figure(
        "soak",
        "loads in one process, eight threads, faults among them",
        "ci/soak && ci/sim ci/soak --cuda",
        "no descriptor, thread, pinned or device byte more; less than 1 MiB",
        lambda n: f"{n['loads']:,} a device: {n['drift_kib']} KiB more",
    ),
    Figure(
        "held",
        "64 loads at once; memory above the result",
        "ci/held",
        "0.9 of one load's throughput; 288 MiB",
        lambda n: f"{n['throughput_ratio']:.2f}; {n['peak_mib']:.0f} MiB",
    ),
    Figure(
        "upstream",
        "upstream's own tests, patched",
        "ci/upstream",
        "as many pass as without us",
        _passed,
    ),
    Figure(
        "errors",
        "errors that say file, offset, cause and what to do",
        ".venv/bin/python -m pytest -q -s tests/test_errors.py",
        "all",
        lambda n: f"{n['told']} of {n['errors']}",
        lambda n: n["told"] == n["errors"],
    ),
)


def numbers_of(output: str) -> dict[str, Any]:
    """What a command has told."""
    numbers: dict[str, Any] = {}
    for line in output.splitlines():
        _, found, told = line.partition("figure {")
        if found:
            numbers |= json.loads("{" + told)
    passed = re.findall(r"(\d+) passed", output)
    return numbers | ({"passed": sum(map(int, passed))} if passed else {})


def count(figure: Figure) -> dict[str, Any]:
    """Runs a figure's command; gives its line of the table."""
    began = time.monotonic()
    with subprocess.Popen(  # noqa: S602 - the commands are our own
        figure.command,
        shell=True,
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as command:
        try:
            output, _ = command.communicate(timeout=TIMEOUT_S)
        except subprocess.TimeoutExpired:
            os.killpg(command.pid, 9)
            output = f"it did not end within {TIMEOUT_S} s"
    numbers = numbers_of(output)
    try:
        ours, met = figure.ours(numbers), command.returncode == 0 and figure.met(numbers)
        others = figure.others(numbers)
    except KeyError as missing:
        ours, met, others = f"nothing was counted ({missing})", False, "-"
    seconds = round(time.monotonic() - began)
    if not met:
        print(output[-4000:])
    verdict = "yes" if met else "NO"
    print(f"{figure.name}: {ours} ({figure.goal}: {verdict}), {seconds} s", flush=True)
    return {
        "name": figure.name,
        "what": figure.what,
        "command": figure.command,
        "goal": figure.goal,
        "ours": ours,
        "met": met,
        "others": others,
        "seconds": seconds,
        "numbers": numbers,
    }


def known() -> list[dict[str, Any]]:
    """The lines of the result file."""
    lines: list[dict[str, Any]] = json.loads(RESULT.read_text()) if RESULT.exists() else []
    return lines


def table(lines: list[dict[str, Any]]) -> str:
    """The figures as Markdown."""
    headings = ("what", "ours", "goal", "other loaders", "command")
    rows = (
        (
            line["what"],
            line["ours"],
            line["goal"] if line["met"] else f"{line['goal']}: **missed**",
            line["others"],
            f"`{line['command']}`",
        )
        for line in lines
    )
    all_rows = (headings, tuple("---" for _ in headings), *rows)
    return "\n".join(f"| {' | '.join(row)} |" for row in all_rows)


def main() -> int:
    """Counts all figures, or those that are named; those that are not keep what the file says."""
    parser = argparse.ArgumentParser(prog="ci/scoreboard", description=__doc__)
    parser.add_argument("figures", nargs="*", choices=[[], *(figure.name for figure in FIGURES)])
    named = parser.parse_args().figures
    lines = {line["name"]: line for line in (known() if named else [])}
    for figure in FIGURES:
        if not named or figure.name in named:
            lines[figure.name] = count(figure)
    ordered = [lines[figure.name] for figure in FIGURES if figure.name in lines]
    RESULT.write_text(json.dumps(ordered, indent=1) + "\n")
    print(table(ordered))
    return 0 if all(line["met"] for line in ordered) else 1


if __name__ == "__main__":
    raise SystemExit(main())
