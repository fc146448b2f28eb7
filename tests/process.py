"""What a process holds (threads, descriptors, mappings, memory), and child processes."""

from __future__ import annotations

import ctypes
import fcntl
import mmap
import os
import pty
import struct
import subprocess
import sys
import termios
import textwrap
import time
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

TESTS = Path(__file__).resolve().parent
DEADLINE_S = 30.0
#: Of what follows the name in a thread's `stat`, and PF_EXITING: set before it can be joined.
FLAGS, EXITING = 6, 0x4


def threads() -> list[str]:
    """The names of this process's threads that are ours.

    Not of those that are ending: the kernel lists a thread for a moment after it was joined.
    """
    names = []
    for task in Path("/proc/self/task").iterdir():
        try:
            head, _, rest = (task / "stat").read_text().rpartition(")")
        except OSError:  # it has ended
            continue
        name, flags = head.partition("(")[2], int(rest.split()[FLAGS])
        if name.startswith("sst") and not flags & EXITING:
            names.append(name)
    return names


def busy() -> list[str]:
    """Threads of loads; neither those that read ahead of a mapping, nor the network's."""
    return [name for name in threads() if not name.startswith(("sst-ahead", "sst-network"))]


def descriptors() -> list[str]:
    """What this process's open descriptors point at."""
    return [os.path.realpath(link) for link in Path("/proc/self/fd").iterdir()]


def mappings(path: Path) -> int:
    """How many mappings of a file this process has."""
    lines = Path("/proc/self/maps").read_text().splitlines()
    return sum(line.endswith((f" {path}", f" {path} (deleted)")) for line in lines)


def cached_bytes(path: Path) -> int:
    """How much of a file the page cache holds."""
    with path.open("rb") as file:
        mapped = mmap.mmap(file.fileno(), 0, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE)
    pages = (ctypes.c_ubyte * -(-len(mapped) // mmap.PAGESIZE))()
    first, size = ctypes.c_char.from_buffer(mapped), ctypes.c_size_t(len(mapped))
    assert ctypes.CDLL(None).mincore(ctypes.byref(first), size, pages) == 0
    return sum(page & 1 for page in pages) * mmap.PAGESIZE


def memory_kib(kind: str) -> int:
    """A line of /proc/self/status: RssAnon, RssFile, VmRSS."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{kind}:"):
            return int(line.split()[1])
    raise KeyError(kind)


class _Mallinfo(ctypes.Structure):
    """The C library's `struct mallinfo2`."""

    _fields_ = tuple(
        (name, ctypes.c_size_t)
        for names in (
            "arena ordblks smblks hblks hblkhd",
            "usmblks fsmblks uordblks fordblks keepcost",
        )
        for name in names.split()
    )


def allocated_bytes() -> int:
    """What is allocated by malloc: what it keeps of freed memory is not in it."""
    tell = ctypes.CDLL(None).mallinfo2
    tell.restype = _Mallinfo
    told = tell()
    return int(told.uordblks + told.hblkhd)


def give_back_freed() -> None:
    """Makes malloc give back what was freed: of a tensor cut from that no process grows."""
    ctypes.CDLL(None).malloc_trim(0)


def eventually(condition: Callable[[], object], deadline_s: float = DEADLINE_S) -> bool:
    """Looks again and again until the condition holds; False when the time is up."""
    end = time.monotonic() + deadline_s
    while time.monotonic() < end:
        if condition():
            return True
        os.sched_yield()
    return bool(condition())


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The environment of a child process that can import the helpers of these tests."""
    known = os.environ.get("PYTHONPATH", "")
    path = os.pathsep.join(part for part in (str(TESTS), known) if part)
    return {**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", **(extra or {})}


def run_python(
    source: str,
    *arguments: object,
    env: Mapping[str, str] | None = None,
    wrapper: Sequence[str] = (),
) -> str:
    """Runs Python source in a fresh interpreter; see ``run``."""
    command = [*wrapper, sys.executable, "-c", textwrap.dedent(source), *map(str, arguments)]
    return run(command, env)


def run_script(script: Path, *arguments: object, env: Mapping[str, str] | None = None) -> str:
    """Runs a script, as children that are spawned need it, in a fresh interpreter; see ``run``."""
    return run([sys.executable, str(script), *map(str, arguments)], env)


def run(command: Sequence[str], env: Mapping[str, str] | None) -> str:
    """Runs a command, asserts that it succeeds, and gives its output."""
    done = subprocess.run(  # noqa: S603
        command, env=environment(env), capture_output=True, text=True, timeout=280, check=False
    )
    assert done.returncode == 0, f"exit {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def start_python(source: str, *arguments: object) -> subprocess.Popen[str]:
    """Starts a script in a fresh interpreter, its output to be read while it runs."""
    return subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", textwrap.dedent(source), *map(str, arguments)],
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def in_terminal(columns: int, *words: str) -> str:
    """Runs our command in a terminal of that width without colours, and gives what it shows."""
    primary, secondary = pty.openpty()
    fcntl.ioctl(secondary, termios.TIOCSWINSZ, struct.pack("HHHH", 24, columns, 0, 0))
    command = [sys.executable, "-m", "safetensors_streaming", *words]
    variables = environment({"NO_COLOR": "1", "TERM": "xterm"})
    variables.pop("COLUMNS", None)  # the terminal says how wide it is
    with subprocess.Popen(  # noqa: S603
        command, stdout=secondary, stderr=secondary, env=variables
    ) as child:
        os.close(secondary)
        text = b""
        while True:
            try:
                piece = os.read(primary, 1 << 16)
            except OSError:  # the other end is closed
                break
            text += piece
    os.close(primary)
    assert child.returncode == 0, text
    return text.decode()
