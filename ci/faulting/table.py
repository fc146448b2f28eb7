"""The scenarios, in the order in which they run. Imports nothing of what they need."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scenario:
    """A fault and the function that makes it, which runs in a process of its own.

    Attributes:
        name: What it is called by.
        function: Module and function, with a colon between them.
        fault: What happens, in a few words.
        arguments: What the function is called with besides a folder.
        wrapper: The command that its process is run by, relative to the top folder.
        programs: What that command needs.
        limit_s: How long it may take.
    """

    name: str
    function: str
    fault: str
    arguments: tuple[object, ...] = ()
    wrapper: tuple[str, ...] = ()
    programs: tuple[str, ...] = ()
    limit_s: int = 120  # many times what it takes: a machine may be busy


MIB = 1 << 20

SCENARIOS = (
    Scenario("bad-sector", "disks:bad_sector", "a disk that cannot read 4 KiB in a tensor"),
    Scenario("short-reads", "disks:short_reads", "reads that give 9,000 bytes at most"),
    Scenario("slow-reads", "disks:slow_reads", "every read takes 10 ms"),
    Scenario("early-end", "disks:early_end", "half of what the file's size says is there"),
    Scenario("squashfs", "disks:squashfs", "a file system without direct reads"),
    Scenario("tmpfs", "disks:tmpfs", "a file in memory"),
    Scenario("overlay", "disks:overlay", "a file of a container's lower layer"),
    Scenario("truncated", "files:changed", "cut short during loads", ("truncate", "shorten")),
    Scenario("replaced", "files:changed", "renamed over or removed", ("replace", "unlink")),
    Scenario("rewritten", "files:changed", "written to in place during loads", ("rewrite",)),
    Scenario("full-cache-disk", "caches:full_disk", "no room in cache_dir"),
    Scenario(
        "io-uring-eperm",
        "limits:without_io_uring",
        "io_uring is forbidden",
        ("is forbidden here",),
        wrapper=("ci/without_io_uring", "EPERM"),
    ),
    Scenario(
        "io-uring-enosys",
        "limits:without_io_uring",
        "a kernel without io_uring",
        ("has no io_uring",),
        wrapper=("ci/without_io_uring", "ENOSYS"),
    ),
    Scenario(
        "io-uring-enter",
        "limits:without_io_uring",
        "rings of io_uring can be made, and not entered",
        ("is forbidden here",),
        wrapper=("ci/without_io_uring", "ENTER"),
    ),
    Scenario("memlock-8-mib", "limits:memlock", "a user who may lock 8 MiB", (8 * MIB,)),
    Scenario("memlock-64-kib", "limits:memlock", "a user who may lock 64 KiB", (MIB // 16,)),
    Scenario("few-descriptors", "limits:few_descriptors", "0 to 24 descriptors are left"),
    Scenario("memory-mapped", "memory:mapped", "4 GiB mapped in a group of 64 MiB"),
    Scenario("memory-stream", "memory:streamed", "4 GiB streamed in a small group"),
    Scenario("fork", "processes:fork", "forks in the middle of loads"),
    Scenario(
        "killed-neighbour",
        "processes:killed_neighbour",
        "kill -9 of who loads the same file",
        limit_s=240,
    ),
    Scenario("killed-writer", "caches:killed_writer", "kill -9 of who holds the lock in cache_dir"),
    Scenario(
        "interrupt",
        "interrupts:on_the_host",
        "200 interrupts at random moments",
        limit_s=300,
    ),
    Scenario(
        "interrupt-cuda",
        "interrupts:on_a_gpu",
        "40 interrupts at random moments, on the simulated driver",
        wrapper=("ci/sim",),
        programs=("cargo", "g++"),
        limit_s=300,  # the first time the driver is built
    ),
)
