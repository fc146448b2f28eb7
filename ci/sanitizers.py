"""Runs the Rust tests under sanitizers, and loom's models; ci/sanitizers says how it is called.

Each sanitizer must first report the errors of its kind in a program that has them. ThreadSanitizer
takes what it cannot see for a race, std's own locks as well: there, std is compiled along, by a
nightly compiler from the source that belongs to it. The simulated driver is not: see
ci/thread-sanitizer.txt.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
WORK = ROOT / ".cache/sanitizers"
TARGET = "x86_64-unknown-linux-gnu"  # named, so that build scripts and macros are left as they are
TIMEOUT_S = 900  # for tests; a build takes as long as it takes


@dataclass(frozen=True)
class Sanitizer:
    """One of the compiler's sanitizers."""

    name: str
    flags: str
    options: dict[str, str]
    #: What it says of a program with each of these errors.
    finds: dict[str, str]
    #: Whether std is compiled along, which takes a nightly compiler.
    with_std: bool = False


SANITIZERS = (
    Sanitizer(
        "address",
        "-Zsanitizer=address",
        {
            "ASAN_OPTIONS": "detect_leaks=1",
            "LSAN_OPTIONS": f"suppressions={ROOT}/ci/leak-sanitizer.txt:print_suppressions=0",
        },
        {"use after free": "heap-use-after-free", "leak": "77 byte(s) leaked in 1 allocation"},
    ),
    Sanitizer(
        "thread",
        "-Zsanitizer=thread -Zunstable-options -Cunsafe-allow-abi-mismatch=sanitizer",
        {"TSAN_OPTIONS": f"suppressions={ROOT}/ci/thread-sanitizer.txt"},
        {"data race": "ThreadSanitizer: data race"},
        with_std=True,
    ),
)
LOOM = "loom"

#: Has the error that it is told to have.
PROGRAM = """
static mut SHARED: u64 = 0;

fn main() {
    match std::env::args().nth(1).as_deref() {
        Some("use after free") => {
            let freed = Box::into_raw(Box::new(1_u8));
            drop(unsafe { Box::from_raw(freed) });
            println!("{}", unsafe { freed.read_volatile() });
        }
        Some("leak") => {
            std::hint::black_box(Box::into_raw(Box::new([1_u8; 77])));
        }
        Some("data race") => {
            let add = || (0..1000).for_each(|_| unsafe { SHARED += 1 });
            let threads = [std::thread::spawn(add), std::thread::spawn(add)];
            threads.map(|thread| thread.join().unwrap());
        }
        _ => {}
    }
}
"""


@dataclass
class Outcome:
    """What a run of the tests showed."""

    tests: int
    reports: int
    leaks: int
    failed: bool


def say(line: str) -> None:
    """One line for people."""
    print(f"sanitizers: {line}", flush=True)


def run(command: list[str], **variables: str) -> tuple[int, str]:
    """Runs a command with variables beside the environment; its exit code and all it said."""
    ended = subprocess.run(  # noqa: S603 - our own commands
        command,
        cwd=ROOT,
        env=os.environ | variables,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        timeout=None if command[0] == "cargo" else TIMEOUT_S,
        check=False,
    )
    return ended.returncode, ended.stdout


def must(command: list[str], **variables: str) -> str:
    """The same; ends this run if it fails."""
    code, said = run(command, **variables)
    if code != 0:
        sys.exit(f"{said}\nsanitizers: exit {code} of {' '.join(command)}")
    return said


def check_that_it_finds(sanitizer: Sanitizer) -> None:
    """Ends this run unless each error is reported, and nothing where there is none."""
    source, program = WORK / "program.rs", WORK / f"program-{sanitizer.name}"
    source.write_text(PROGRAM)
    flags = sanitizer.flags.split()
    compiler = ["rustc", *(["+nightly"] if sanitizer.with_std else [])]
    must(
        [*compiler, "--edition=2024", *flags, "-o", str(program), str(source)], RUSTC_BOOTSTRAP="1"
    )
    must([str(program)], **sanitizer.options)
    for error, words in sanitizer.finds.items():
        code, said = run([str(program), error], **sanitizer.options)
        if code == 0 or words not in said:
            sys.exit(f"sanitizers: {sanitizer.name} does not see a {error}:\n{said}")


def source_of_std() -> Path:
    """The nightly compiler's own component, or Debian's package of the same release."""
    version = must(["rustc", "+nightly", "--version"]).split()[1]
    sysroot = must(["rustc", "+nightly", "--print", "sysroot"]).strip()
    component = Path(sysroot, "lib/rustlib/src/rust/library")
    if component.exists():
        return component
    release = version.rpartition(".")[0]
    must(["ci/source_of_std", release])
    return next(WORK.glob(f"std/usr/src/rustc-{release}.*/library"))


def run_tests(sanitizer: Sanitizer) -> Outcome:
    """Builds the tests and runs them on the simulated driver."""
    variables = {
        **sanitizer.options,
        "RUSTC_BOOTSTRAP": "1",
        "RUSTFLAGS": sanitizer.flags,
        "CARGO_TARGET_DIR": str(WORK / sanitizer.name),
        "CARGO_INCREMENTAL": "0",
        "CARGO_PROFILE_TEST_DEBUG": "line-tables-only",
    }
    build = ["cargo", "test", "--lib", "--no-run", "--locked", "--quiet", "--target", TARGET]
    if sanitizer.with_std:
        build[1:1] = ["+nightly", "-Zbuild-std"]
        # Cargo looks there in place of the compiler's own folder; it has no other name for that.
        variables["__CARGO_TESTS_ONLY_SRC_ROOT"] = str(source_of_std())
    messages = must([*build, "--message-format=json"], **variables).splitlines()
    built = [json.loads(line) for line in messages if line.startswith("{")]
    program = next(str(one["executable"]) for one in built if one.get("executable"))
    command = ["ci/sim", "--driver", program, "--nocapture"]
    code, said = run(command, **sanitizer.options, SIMCUDA_JITTER_US="100")
    log = WORK / f"{sanitizer.name}.log"
    log.write_text(said)
    outcome = read(said, failed=code != 0)
    if outcome.failed:
        say(f"{sanitizer.name}: exit {code}; all that was said is in {log.relative_to(ROOT)}:")
        print("\n".join(re.findall(r"^SUMMARY: .*|^.*panicked at .*", said, re.MULTILINE)))
    return outcome


def read(said: str, *, failed: bool) -> Outcome:
    """The outcome, from what a test program said."""
    passed = re.search(r"test result: \w+\. (\d+) passed; (\d+) failed", said)
    leaks = re.findall(r"SUMMARY: AddressSanitizer: .* leaked in (\d+) allocation", said)
    reports = re.findall(r"(?:ERROR: (?:Address|Leak)|WARNING: Thread)Sanitizer", said)
    return Outcome(
        tests=int(passed.group(1)) if passed else 0,
        reports=len(reports),
        leaks=sum(map(int, leaks)),
        failed=failed or passed is None or "not run on a GPU" in said,
    )


def run_loom() -> int:
    """How many models held in every order; 0 if one did not."""
    code, said = run(["ci/every_order"])
    models = re.findall(r"loom: .*: \d+ orders", said)
    print("\n".join(models) if code == 0 else said)
    return len(models) if code == 0 else 0


def main() -> int:
    """Runs what is named, or everything."""
    names = [*(sanitizer.name for sanitizer in SANITIZERS), LOOM]
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="?", choices=names)
    only = parser.parse_args().only
    WORK.mkdir(parents=True, exist_ok=True)
    figure: dict[str, object] = {}
    tests, good = [], True
    for sanitizer in SANITIZERS:
        if only not in {None, sanitizer.name}:
            continue
        began = time.monotonic()
        check_that_it_finds(sanitizer)
        outcome = run_tests(sanitizer)
        clean = not outcome.failed and outcome.reports == 0
        figure[sanitizer.name] = "clean" if clean else f"{outcome.reports} reports"
        if sanitizer.name == "address":
            figure["leaks"] = outcome.leaks
        tests.append(outcome.tests)
        good = good and clean
        taken = time.monotonic() - began
        say(f"{sanitizer.name}: {outcome.tests} tests, {figure[sanitizer.name]}, {taken:.0f} s")
    if tests:
        figure["tests"] = min(tests)
    if only in {None, LOOM}:
        figure["loom_models"] = models = run_loom()
        good = good and models > 0
    print(f"figure {json.dumps(figure)}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
