"""``python -m bench COMMAND``: this loader beside others, each sample in a fresh process."""

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
from typing import TYPE_CHECKING, Any, NamedTuple, TextIO

from rich.console import Console

from bench import models, null, records
from bench.cases import CONSUMER_ROWS, DISK_ROWS, GPU_ROWS, NULL_READERS, ROWS, SIM_ROWS, Row
from bench.consumers import CONSUMERS, absent
from bench.loaders import LOADERS, PEERS, missing
from bench.measure import Job, has_driver, simulated_driver
from bench.null_reader import memory_rate
from bench.report import Result, evaluate, lines, table

if TYPE_CHECKING:
    from bench.records import Sample, Samples

ROOT = Path(__file__).resolve().parent.parent
ENVIRONMENT = os.environ | {
    "HF_HUB_OFFLINE": "1",
    "PYTHONDONTWRITEBYTECODE": "",  # compiled once here, torch imports in half the time
    "PYTHONPYCACHEPREFIX": str(ROOT / ".cache" / "pyc"),
}
CLOCK_TICKS = os.sysconf("SC_CLK_TCK")
CEILING_RUNS = 2
#: What `sim` asks of the simulated driver: a link of 2 GB/s, memory as it comes.
LINK_GBPS = "2"
SIMULATION = {"SIMCUDA_H2D_GBPS": LINK_GBPS, "SIMCUDA_POISON": "0", "SIMCUDA_MEM": str(16 << 30)}
#: For a row on the CPU, as on a machine without a GPU: a library may use one that it finds.
NO_GPU = {"CUDA_VISIBLE_DEVICES": "", "SIMCUDA_DEVICES": "0"}


class Command(NamedTuple):
    """What a command compares, on a model of which size, and what it needs."""

    rows: tuple[Row, ...]
    size_gb: float
    says: str


COMMANDS = {
    "cpu": Command(ROWS, models.FULL_GB, "no GPU needed"),
    "sim": Command(SIM_ROWS, 1.0, "a GPU simulated by ci/sim"),
    "gpu": Command((*GPU_ROWS, *DISK_ROWS), 15.0, "a real GPU"),
    "consumers": Command(CONSUMER_ROWS, 1.0, "a GPU, or one simulated by ci/sim"),
    "null": Command(null.ROWS, 1.0, "a test of the harness itself"),
}

say = Console(highlight=False, width=None if sys.stdout.isatty() else 150).print


def busy_seconds() -> float:
    """Tells how long all cores together have worked since boot, for whomever.

    What the host of a virtual machine did on them for others is among it.
    """
    user, nice, system, _idle, _iowait, irq, softirq, steal = map(
        int, Path("/proc/stat").read_text(encoding="ascii").split()[1:9]
    )
    return (user + nice + system + irq + softirq + steal) / CLOCK_TICKS


def own_seconds() -> float:
    """Tells how long this process and its finished children have worked."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


class FailedError(Exception):
    """A loader could not do its job; the text says which, and its last words."""


def throttle() -> dict[str, str]:
    """Builds what makes a source as slow as the simulated link; gives what preloads it.

    io_uring's reads pass no function that could be replaced, so the reader has to be ``pread``.
    """
    library, source = models.CACHE / "throttle.so", ROOT / "bench" / "throttle.c"
    flags = ["-std=c11", "-O2", "-Wall", "-Wextra", "-Werror", "-fPIC", "-shared"]
    subprocess.run(["gcc", *flags, "-o", str(library), str(source)], check=True)  # noqa: S603, S607
    preloaded = [str(library), *os.environ.get("LD_PRELOAD", "").split()]
    return {
        "LD_PRELOAD": " ".join(preloaded),
        "THROTTLE_GBPS": LINK_GBPS,
        "SAFETENSORS_STREAMING_READER": "pread",
    }


def run(job: Job, variables: dict[str, str] | None = None) -> list[dict[str, float | str]]:
    """Carries out one job in a fresh process, with environment variables of its own: its calls."""
    folder = LOADERS[job.loader].folder
    known = [os.environ["PYTHONPATH"]] if os.environ.get("PYTHONPATH") else []
    path = os.pathsep.join([str(PEERS / folder), *known] if folder else known)
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-m", "bench.measure", json.dumps(asdict(job))],
        cwd=ROOT,
        env=ENVIRONMENT | {"PYTHONPATH": path} | (variables or {}),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise FailedError(f"{job.loader} failed in {job.action}:\n{done.stderr[-2000:]}")
    lines = done.stdout.splitlines()  # a library may say something, too
    return [json.loads(line) for line in lines if line.startswith('{"seconds":')]


def sample(row: Row, loader: str, files: list[Path], variables: dict[str, str]) -> list[Sample]:
    """Takes one sample: the row's processes one after the other, and the noise meanwhile.

    Of processes that call twice, a sample of the first and one of the second calls.
    """
    start, busy, own = time.monotonic(), busy_seconds(), own_seconds()
    paths = [str(file) for file in files]
    how = (row.read, row.rehearse, row.consumer, row.device, row.again is not None)
    processes = [run(Job(loader, row.action, cache, paths, *how), variables) for cache in row.cache]
    foreign = max(0.0, busy_seconds() - busy - own_seconds() + own)
    foreign /= time.monotonic() - start
    return [
        {
            "seconds": sum(float(call["seconds"]) for call in calls),
            "foreign_cores": foreign,
            "processes": list(calls),
        }
        for calls in zip(*processes, strict=True)
    ]


def run_row(row: Row, files: list[Path], blocks: int) -> list[Samples]:
    """Takes the samples of a row in blocks, each loader once per block in random order.

    Returns:
        The samples of the row, then those of the second calls if it has such.

    Raises:
        SystemExit: If two loaders give different answers.
    """
    loaders = [name for name in (row.ours, *row.others) if not missing(name)]
    samples: dict[str, list[list[Sample]]] = {name: [] for name in loaders}
    variables = throttle() if row.throttled else {}
    if row.consumer and row.device == "cpu":
        variables |= NO_GPU
    order = random.Random(row.name)  # noqa: S311  (a shuffle, reproducible)
    for block in range(blocks):
        say(f"{row.name}: block {block + 1} of {blocks}")
        for name in order.sample(list(samples), len(samples)):
            try:
                samples[name].append(sample(row, name, files, variables))
            except FailedError as failure:  # noqa: PERF203 - beside a process, nothing
                if name == row.ours:
                    raise
                say(f"left out of {row.name}: {failure}", markup=False)
                del samples[name]
    answers = {
        process["answer"]: name
        for name, taken in samples.items()
        for calls in taken
        for one in calls
        for process in one["processes"]
        if process["answer"]
    }
    if len(answers) > 1:
        raise SystemExit(f"{row.name}: the answers differ: {answers}")
    numbers = range(1 + (row.again is not None))
    return [
        {name: [calls[number] for calls in taken] for name, taken in samples.items()}
        for number in numbers
    ]


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
    """Measures what bounds the chosen rows on their files, in bytes per second."""
    bounded: dict[str, set[Path]] = {}
    for row in rows:
        for name in row.ceilings:
            bounded.setdefault(name, set()).update(files[row.files])
    ceilings = {}
    for name, chosen in bounded.items():
        if name == "memory":
            ceilings[name] = memory_rate()
            continue
        paths = [str(file) for file in sorted(chosen)]
        if name == "disk":
            jobs = [Job(n, "engine", "cold", paths) for n in NULL_READERS * CEILING_RUNS]
        else:
            jobs = [Job("link", "load_cuda", "warm", paths)] * (CEILING_RUNS + 1)
        size = sum(file.stat().st_size for file in chosen)
        ceilings[name] = size / min(float(run(job)[0]["seconds"]) for job in jobs)
    for name, rate in ceilings.items():
        say(f"ceiling, {name}: {rate / 1e9:.2f} GB/s")
    return ceilings


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
    command.add_argument("--blocks", type=int, metavar="N", help="samples a loader, for all rows")
    command.add_argument(
        "--size",
        type=float,
        default=what.size_gb,
        metavar="GB",
        help=f"of the model; default {what.size_gb}",
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
    wanted = {row.files for row in rows}
    files = {name: CONSUMERS[name].files(size_gb) for name in wanted & set(CONSUMERS)}
    if wanted & {"model", "both"}:
        files["model"] = models.shards(models.checkpoint(size_gb))
    if wanted & {"small", "both"}:
        files["small"] = [models.small_tensors()]
    if "both" in wanted:
        files["both"] = files["model"] + files["small"]
    if "experts" in wanted:
        files["experts"] = [models.experts()]
    return files


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
        wanted = command == "consumers" and not has_driver()
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
    second_calls: dict[str, Samples] = {}
    with only_run(), records.opened(options.output, resume=options.resume) as output:
        ceilings = measure_ceilings(rows, files)
        records.append(output, [records.run_record(ceilings, models.CACHE)])
        for row in rows:
            if time.monotonic() > deadline and row.name not in second_calls:
                say(f"no time for {row.name} any more")
                continue
            chosen = files[row.files]
            samples = second_calls.get(row.name)
            if samples is None:
                samples, *again = run_row(row, chosen, options.blocks or row.blocks)
                second_calls |= {str(row.again): second for second in again}
            size = sum(file.stat().st_size for file in chosen)
            results.append(evaluate(row, samples, size, ceilings))
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
    verdicts = [result.reached for result in results if result.row.target]
    say(
        f"targets: {verdicts.count(True)} reached, {verdicts.count(False)} missed, "
        f"{verdicts.count(None)} undecided; {time.monotonic() - started:.0f} s; "
        f"every sample: {options.output}"
    )


if __name__ == "__main__":
    main()
