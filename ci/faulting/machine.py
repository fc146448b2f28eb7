"""What the machine has to provide: file systems, groups of processes, and processes themselves."""

# What a scenario checks, it asserts.
# ruff: noqa: S101

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parents[2]
MEMORY_GROUPS = Path("/sys/fs/cgroup/memory")


class MissingError(Exception):
    """This machine cannot make the fault; the text says what is missing."""


def need_root() -> None:
    """Skips the scenario for anybody else."""
    if os.geteuid() != 0:
        raise MissingError("root")


def need(program: str, package: str) -> None:
    """Skips the scenario without a program."""
    if shutil.which(program) is None:
        raise MissingError(f"{program} (on Debian: apt-get install {package})")


def run(*command: object) -> str:
    """Runs a command and gives its output; what it says of a failure is in the exception."""
    words = [str(word) for word in command]
    done = subprocess.run(words, capture_output=True, text=True, check=False)  # noqa: S603
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(words)}: {done.stderr.strip() or done.stdout.strip()}")
    return done.stdout


@contextmanager
def started(module: str, *arguments: object) -> Iterator[subprocess.Popen[str]]:
    """A module of this package as a process that is spoken to by its standard streams."""
    with subprocess.Popen(  # noqa: S603
        [sys.executable, "-m", f"faulting.{module}", *map(str, arguments)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as child:
        try:
            yield child
        except BaseException:
            child.kill()
            raise


def hear(child: subprocess.Popen[str]) -> str:
    """The next line that a process says."""
    assert child.stdout is not None
    line = child.stdout.readline().strip()
    if not line:
        raise RuntimeError(f"a child has ended: exit {child.wait(10)}")
    return line


def tell(child: subprocess.Popen[str], line: str = "") -> None:
    """Says a line to a process."""
    assert child.stdin is not None
    print(line, file=child.stdin, flush=True)


@contextmanager
def mounted(source: object, folder: Path, kind: str, options: str = "") -> Iterator[Path]:
    """A file system; unmounting it fails where something of it is still open or mapped."""
    need_root()
    folder.mkdir()
    try:
        run("mount", "-t", kind, *(["-o", options] if options else []), source, folder)
    except RuntimeError as error:
        raise MissingError(f"{kind} cannot be mounted here: {error}") from error
    yield folder
    run("umount", folder)


@contextmanager
def faulty(source: Path, folder: Path, *faults: str) -> Iterator[Path]:
    """A file of the same bytes, with faults, by a file system of our own."""
    need_root()
    if not Path("/dev/fuse").exists():
        raise MissingError("/dev/fuse")
    folder.mkdir()
    with started("fuse_file", folder, source, *faults) as server:
        if hear(server) != "ready":
            raise MissingError("FUSE cannot be mounted here")
        yield folder / source.name
        run("umount", folder)


@contextmanager
def memory_group(limit_bytes: int) -> Iterator[Path]:
    """Puts this process into a group with a limit on memory, which it sees as a container does."""
    need_root()
    if not (MEMORY_GROUPS / "memory.limit_in_bytes").exists():
        raise MissingError("a memory cgroup of version 1")
    group = MEMORY_GROUPS / group_name(os.getpid())
    try:
        group.mkdir()
        (group / "memory.limit_in_bytes").write_text(str(limit_bytes))
        (group / "cgroup.procs").write_text(str(os.getpid()))
        run("mount", "--bind", group, MEMORY_GROUPS)
    except (OSError, RuntimeError) as error:
        raise MissingError(f"a memory cgroup of its own: {error}") from error
    yield MEMORY_GROUPS
    run("umount", MEMORY_GROUPS)
    (MEMORY_GROUPS / "cgroup.procs").write_text(str(os.getpid()))
    group.rmdir()


def group_name(process: int) -> str:
    """The name of a process's group."""
    return f"safetensors-streaming-faults-{process}"
