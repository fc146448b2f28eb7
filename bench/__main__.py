"""``python -m bench cpu``: this loader beside the stock one, each sample in a fresh process."""

from __future__ import annotations

import argparse
import fcntl
import json
import os
import random
import resource
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import TextIO

from rich.console import Console

from bench import models
from bench.cases import NULL_READERS, ROWS, Row
from bench.loaders import LOADERS, missing
from bench.measure import Job
from bench.null_reader import memory_rate
from bench.report import Result, Sample, Samples, document, evaluate, table

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = os.environ | {
    "HF_HUB_OFFLINE": "1",
    "PYTHONDONTWRITEBYTECODE": "",  # compiled once here, torch imports in half the time
    "PYTHONPYCACHEPREFIX": str(ROOT / ".cache" / "pyc"),
}
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
CEILING_RUNS = 2

say = Console(highlight=False, width=None if sys.stdout.isatty() else 150).print


def busy_seconds() -> float:
    """Tells how long all cores together have worked since boot, for whomever."""
    user, nice, system, _idle, _iowait, irq, softirq = map(
        int, Path("/proc/stat").read_text(encoding="ascii").split()[1:8]
    )
    return (user + nice + system + irq + softirq) / CLOCK_TICKS


def own_seconds() -> float:
    """Tells how long this process and its finished children have worked."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def run(job: Job) -> dict[str, float | str]:
    """Carries out one job in a fresh process."""
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "bench.measure", json.dumps(asdict(job))],
        cwd=ROOT,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"{job.loader} failed in {job.action}:\n{done.stderr}")
    outcome: dict[str, float | str] = json.loads(done.stdout.splitlines()[-1])
    return outcome


def sample(row: Row, loader: str, files: list[Path]) -> Sample:
    """Takes one sample: the row's processes one after the other, and the noise meanwhile."""
    start, busy, own = time.monotonic(), busy_seconds(), own_seconds()
    paths = [str(file) for file in files]
    processes = [
        run(Job(loader, row.action, cache, paths, row.read, row.rehearse)) for cache in row.cache
    ]
    foreign = max(0.0, busy_seconds() - busy - own_seconds() + own)
    return {
        "seconds": sum(float(process["seconds"]) for process in processes),
        "foreign_cores": foreign / (time.monotonic() - start),
        "processes": processes,
    }


def run_row(row: Row, files: list[Path], blocks: int) -> Samples:
    """Takes the samples of a row in blocks, each loader once per block in random order.

    Raises:
        SystemExit: If two loaders give different answers.
    """
    loaders = [name for name in (row.ours, *row.others) if not missing(name)]
    samples: Samples = {name: [] for name in loaders}
    order = random.Random(row.name)  # noqa: S311  (a shuffle, reproducible)
    for block in range(blocks):
        say(f"{row.name}: block {block + 1} of {blocks}")
        for name in order.sample(loaders, len(loaders)):
            samples[name].append(sample(row, name, files))
    answers = {
        process["answer"]: name
        for name, taken in samples.items()
        for one in taken
        for process in one["processes"]
    }
    if len(answers) > 1:
        raise SystemExit(f"{row.name}: the answers differ: {answers}")
    return samples


def only_run() -> TextIO:
    """Waits until no other run works on the same files; holds until the result is closed."""
    lock = (models.CACHE / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("waiting for another run to end: each would evict the other's files")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def measure_ceilings(rows: list[Row], files: list[Path]) -> dict[str, float]:
    """Measures what bounds the chosen rows, in bytes per second."""
    wanted = {row.ceiling for row in rows}
    ceilings = {}
    if "memory" in wanted:
        ceilings["memory"] = memory_rate()
    if "disk" in wanted:
        paths = [str(file) for file in files]
        runs = [run(Job(n, "engine", "cold", paths)) for n in NULL_READERS * CEILING_RUNS]
        size = sum(file.stat().st_size for file in files)
        ceilings["disk"] = size / min(float(run["seconds"]) for run in runs)
    for name, rate in ceilings.items():
        say(f"ceiling, {name}: {rate / 1e9:.2f} GB/s")
    return ceilings


def write(output: Path, content: dict[str, object]) -> None:
    """Writes the JSON file."""
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    say(f"every sample: {output}")


def parse() -> argparse.Namespace:
    """Reads the command line."""
    names = [row.name for row in ROWS]
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    cpu = parser.add_subparsers(dest="what", required=True).add_parser("cpu", help="no GPU needed")
    cpu.add_argument(
        "--rows",
        nargs="+",
        choices=names,
        default=names,
        metavar="ROW",
        help=f"of {', '.join(names)}",
    )
    cpu.add_argument("--blocks", type=int, metavar="N", help="samples of each loader, for all rows")
    cpu.add_argument(
        "--size",
        type=float,
        default=models.FULL_GB,
        metavar="GB",
        help="of the model; default 3.09",
    )
    cpu.add_argument("--output", type=Path, default=ROOT / "bench" / "results" / "cpu.json")
    return parser.parse_args()


def main() -> None:
    """Runs the chosen rows, prints the table and writes the JSON file."""
    options = parse()
    started = time.monotonic()
    rows = [row for row in ROWS if row.name in options.rows]
    model = models.shards(models.checkpoint(options.size))
    small = [models.small_tensors()]
    files = {"model": model, "small": small, "both": model + small}
    for name in LOADERS:
        if missing(name):
            say(f"skipped: {name} ({LOADERS[name].package} is not installed)")
    results: list[Result] = []
    with only_run():
        ceilings = measure_ceilings(rows, model)
        for row in rows:
            chosen = files[row.files]
            samples = run_row(row, chosen, options.blocks or row.blocks)
            size = sum(file.stat().st_size for file in chosen)
            results.append(evaluate(row, samples, size, ceilings))
    say(table(results))
    verdicts = [result.reached for result in results]
    say(
        f"targets: {verdicts.count(True)} reached, {verdicts.count(False)} not reached; "
        f"{time.monotonic() - started:.0f} s"
    )
    write(options.output, document(results, ceilings, models.CACHE))


if __name__ == "__main__":
    main()
