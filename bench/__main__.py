"""``python -m bench COMMAND``: this loader beside others, each sample in a fresh process."""

from __future__ import annotations

import argparse
import fcntl
import os
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from bench import models, null, records
from bench.cases import CONSUMER_ROWS, DISK_ROWS, GPU_ROWS, NULL_READERS, ROWS, SIM_ROWS, Row
from bench.consumers import CONSUMERS, absent
from bench.loaders import LOADERS, missing
from bench.measure import Job, UnsteeredError, has_driver, simulated_driver
from bench.more_cases import MORE_CPU_ROWS, MORE_SIM_ROWS
from bench.network import serving
from bench.null_reader import memory_rate
from bench.remote_cases import REMOTE_ROWS
from bench.report import Result, evaluate, lines, table
from bench.sampling import LINK_GBPS, ROOT, run, run_row, say, total_bytes
from bench.servers import MissingError

if TYPE_CHECKING:
    from bench.sampling import Taken

CEILING_RUNS = 2
#: What `sim` asks of the simulated driver: a link of 2 GB/s, memory as it comes.
SIMULATION = {"SIMCUDA_H2D_GBPS": LINK_GBPS, "SIMCUDA_POISON": "0", "SIMCUDA_MEM": str(16 << 30)}


class Command(NamedTuple):
    """What a command compares, on a model of which size, and what it needs."""

    rows: tuple[Row, ...]
    size_gb: float
    says: str


COMMANDS = {
    "cpu": Command((*ROWS, *MORE_CPU_ROWS), models.FULL_GB, "no GPU needed"),
    "sim": Command((*SIM_ROWS, *MORE_SIM_ROWS), 1.0, "a GPU simulated by ci/sim"),
    "gpu": Command((*GPU_ROWS, *DISK_ROWS), 15.0, "a real GPU"),
    "consumers": Command(CONSUMER_ROWS, 1.0, "a GPU, or one simulated by ci/sim"),
    "remote": Command(REMOTE_ROWS, 1.0, "servers on loopback, a GPU or one simulated by ci/sim"),
    "null": Command(null.ROWS, 1.0, "a test of the harness itself"),
}


def only_run() -> TextIO:
    """Waits until no other run works on the same files; holds until the result is closed."""
    lock = (models.CACHE / ".lock").open("w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        say("waiting for another run to end: each would evict the other's files")
        fcntl.flock(lock, fcntl.LOCK_EX)
    return lock


def measure_ceilings(rows: list[Row], files: dict[str, list[Path]]) -> dict[str, float]:
    """Measures what bounds the chosen rows, in bytes per second.

    On the largest of their models: the memory may hold one, but not all.
    """
    bounded: dict[str, list[Path]] = {}
    for row in rows:
        for name in row.ceilings:
            bounded[name] = max(bounded.get(name, []), files[row.files], key=total_bytes)
    ceilings = {}
    for name, chosen in bounded.items():
        if name == "memory":
            ceilings[name] = memory_rate()
            continue
        paths = [str(file) for file in chosen]
        if name == "proxy":
            jobs = [Job("curl", "engine", "warm", paths)] * CEILING_RUNS
        elif name == "disk":
            jobs = [Job(n, "engine", "cold", paths) for n in NULL_READERS * CEILING_RUNS]
        else:
            jobs = [Job("link", "load_cuda", "warm", paths)] * (CEILING_RUNS + 1)
        try:
            with serving("proxied" if name == "proxy" else None, chosen) as variables:
                seconds = min(float(run(job, variables)[0]["seconds"]) for job in jobs)
        except (UnsteeredError, MissingError) as reason:
            say(f"no ceiling, {name}: {reason}")
            continue
        ceilings[name] = total_bytes(chosen) / seconds
    for name, rate in ceilings.items():
        say(f"ceiling, {name}: {rate / 1e9:.2f} GB/s")
    return ceilings


def positive(text: str) -> int:
    """Reads a number of blocks."""
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError(f"{text} is less than one")
    return number


def add_command(commands: Any, name: str, what: Command) -> None:  # noqa: ANN401
    """Adds one of the commands to the command line."""
    names = [row.name for row in what.rows]
    command = commands.add_parser(name, help=what.says)
    command.add_argument(
        "--rows",
        nargs="+",
        choices=names,
        default=names,
        metavar="ROW",
        help=f"of {', '.join(names)}",
    )
    command.add_argument(
        "--blocks", type=positive, metavar="N", help="samples a loader, for all rows"
    )
    command.add_argument(
        "--size",
        type=models.gigabytes,
        default=what.size_gb,
        help=f"of the model: 2G, 512M, or a number of GB; default {what.size_gb}",
    )
    output = ROOT / "bench" / "results" / f"{name}.jsonl"
    command.add_argument("--output", type=Path, default=output)
    command.add_argument(
        "--seconds", type=float, default=float("inf"), metavar="S", help="begin no row after that"
    )
    command.add_argument(
        "--resume", action="store_true", help="keep the rows that the output file has already"
    )


def parse() -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    commands = parser.add_subparsers(dest="what", required=True)
    for name, command in COMMANDS.items():
        add_command(commands, name, command)
    return parser.parse_args()


def files_for(rows: list[Row], size_gb: float) -> dict[str, list[Path]]:
    """Makes the files that the rows load."""
    return {
        name: CONSUMERS[name].files(size_gb) if name in CONSUMERS else models.files(name, size_gb)
        for name in {row.files for row in rows}
    }


def installed(rows: list[Row]) -> list[Row]:
    """The rows whose libraries are there; names what is skipped."""
    lacking = {name: absent(name) for row in rows if (name := row.consumer)}
    for name, packages in lacking.items():
        if packages:
            say(f"skipped: {name} ({', '.join(packages)} not installed)")
    for name in sorted({name for row in rows for name in (row.ours, *row.others) if missing(name)}):
        say(f"skipped: {name} ({LOADERS[name].package} is not installed)")
    return [row for row in rows if not (row.consumer and lacking[row.consumer])]


def on_simulation(command: str) -> None:
    """Begins anew on the simulated GPU, where the command wants that one."""
    if command == "sim":
        wanted = simulated_driver() is None
    else:
        wanted = command in {"consumers", "remote"} and not has_driver()
    if wanted:
        # torch's own kernels, which the simulator does not have, are none of a load's.
        kernels = {"SIMCUDART_SKIP_KERNELS": "1"} if command == "consumers" else {}
        os.environ.update(SIMULATION | kernels)
        words = [str(ROOT / "ci" / "sim"), sys.executable, "-m", "bench", *sys.argv[1:]]
        os.execv(words[0], words)  # noqa: S606


def earlier_rows(options: argparse.Namespace) -> set[str]:
    """The names of the rows that an earlier run has measured."""
    if not (options.resume and options.output.exists()):
        return set()
    return {recorded.row["name"] for recorded in records.read(options.output).rows}


def measure_rows(rows: list[Row], options: argparse.Namespace, deadline: float) -> list[Result]:
    """Measures rows and writes each to the output file as soon as it is done."""
    files = files_for(rows, options.size)
    results: list[Result] = []
    second_calls: dict[str, Taken] = {}
    with only_run(), records.opened(options.output, resume=options.resume) as output:
        ceilings = measure_ceilings(rows, files)
        records.append(output, [records.run_record(ceilings, models.CACHE)])
        for row in rows:
            if time.monotonic() > deadline and row.name not in second_calls:
                say(f"no time for {row.name} any more")
                continue
            chosen = files[row.files]
            taken = second_calls.get(row.name)
            if taken is None:
                try:
                    taken, *again = run_row(row, chosen, options.blocks or row.blocks)
                except (UnsteeredError, MissingError) as reason:
                    say(f"skipped: {row.name} ({reason})")
                    continue
                second_calls |= {str(row.again): second for second in again}
            if not any(name in taken.samples for name in row.others):
                say(f"skipped: {row.name} (nobody is left to compare with)")
                continue
            result = evaluate(row, taken.samples, total_bytes(chosen), ceilings)
            results.append(replace(result, failed=taken.failed))
            records.append(output, lines(results[-1]))
    return results


def conclude(output: Path) -> None:
    """Writes what a null test comes to, once all its rows are there."""
    document = records.read(output)
    conclusion = null.conclusion(document)
    if conclusion is None:
        say("rows are missing: go on with --resume")
        return
    if conclusion != document.null:
        with records.opened(output, resume=True) as file:
            records.append(file, [{"kind": "null", **conclusion}])
    say(null.sentence(conclusion))


def main() -> None:
    """Runs the chosen rows, writes them, and prints the table."""
    options = parse()
    on_simulation(options.what)
    started = time.monotonic()
    known = earlier_rows(options)
    every = COMMANDS[options.what].rows
    rows = [row for row in every if row.name in options.rows and row.name not in known]
    results = measure_rows(installed(rows), options, started + options.seconds) if rows else []
    say(table(results))
    if options.what == "null":
        conclude(options.output)
    for result in results:
        if result.failed:
            say(f"failed in {result.row.name}: {', '.join(result.failed)}")
    verdicts = [result.reached for result in results if result.row.target]
    say(
        f"targets: {verdicts.count(True)} reached, {verdicts.count(False)} missed, "
        f"{verdicts.count(None)} undecided; {time.monotonic() - started:.0f} s; "
        f"every sample: {options.output}"
    )


if __name__ == "__main__":
    main()
