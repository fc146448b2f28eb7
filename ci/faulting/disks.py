"""Disks and file systems: what cannot be read, is short, slow, or not read directly."""

# What a scenario checks, it asserts.
# ruff: noqa: S101

from __future__ import annotations

import errno
import mmap
import os
from functools import partial
from typing import TYPE_CHECKING

from safetensors_streaming import last_report, load_checkpoint, load_file, safe_open

from faulting.checks import (
    READ,
    TENSOR_BYTES,
    by_stock,
    check_refused,
    check_right,
    check_same,
    evict,
    nothing_left,
    write_weights,
)
from faulting.machine import faulty, mounted, need, run

if TYPE_CHECKING:
    from pathlib import Path

    from faulting.checks import Tensors

MIB = 1 << 20
SECTOR_BYTES = 4096
NAME = "model.safetensors"


def bad_sector(folder: Path) -> None:
    """An ext4 on a disk that fails at one place, in the middle of a tensor."""
    need("mkfs.ext4", "e2fsprogs")
    files = folder / "files"
    files.mkdir()
    healthy = write_weights(files / NAME)
    bad = "t09"
    data = healthy.stat().st_size - 16 * TENSOR_BYTES
    offset = (data + 9 * TENSOR_BYTES + TENSOR_BYTES // 2) // SECTOR_BYTES * SECTOR_BYTES
    image = folder / "image"
    image.touch()
    os.truncate(image, 64 * MIB)
    run("mkfs.ext4", "-q", "-F", "-b", SECTOR_BYTES, "-d", files, image)
    place = place_of(image, healthy.read_bytes()[offset : offset + SECTOR_BYTES])
    expected = by_stock(healthy)
    with (
        nothing_left(folder),
        faulty(image, folder / "disk", f"bad={place}:{SECTOR_BYTES}") as disk,
        mounted(disk, folder / "mounted", "ext4", "loop,ro,noload") as root,
    ):
        check_bad_sector(root / NAME, expected, bad, offset)


def place_of(image: Path, block: bytes) -> int:
    """Where the image of a disk has a block."""
    with image.open("rb") as file, mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ) as whole:
        place = whole.find(block)
        assert place > 0
        assert place % SECTOR_BYTES == 0
        return place


def check_bad_sector(path: Path, expected: Tensors, bad: str, offset: int) -> None:
    """Whole loads fail at that place; all other tensors can be read."""
    for name, load in READ:
        evict(path)
        said = check_refused(name, partial(load, path), path, "error", errno.EIO)
        wanted, begin = int(said[1]), int(said[2])
        assert begin <= offset < begin + wanted, f"{name}: another place is named: {said[0]}"
        # The kernel reads, and fails, by folios that may hold the tensor before.
        assert said[3] in {"t08", bad}, f"{name}: another tensor is named: {said[0]}"
    others = {name: tensor for name, tensor in expected.items() if name != bad}
    for cache in ("keep", "bypass"):
        evict(path)
        loaded = load_checkpoint(
            path,
            backend="pread",
            cache=cache,
            filter=lambda name: name != bad,
        )
        check_same(f"the other tensors, {cache}", loaded, others)
    with safe_open(path, "pt", backend="pread") as handle:
        one_by_one = {name: handle.get_tensor(name) for name in others}
        said = check_refused(
            "the tensor alone", lambda: handle.get_tensor(bad), path, "error", errno.EIO
        )
        assert said[3] == bad, f"another tensor is named: {said[0]}"
    check_same("tensor by tensor", one_by_one, others)
    mapped = load_file(path)
    del mapped[bad]  # to touch it ends the process, as with upstream
    check_same("mapped", mapped, others)


def short_reads(folder: Path) -> None:
    """Reads give less than asked, and end anywhere. A mapping cannot have such pages."""
    healthy = write_weights(folder / NAME, tensors=4)
    expected = by_stock(healthy)
    faults = ("short=9000", "direct=1")
    with nothing_left(folder), faulty(healthy, folder / "mounted", *faults) as path:
        check_right(path, expected, READ)


def slow_reads(folder: Path) -> None:
    """Every read takes long."""
    healthy = write_weights(folder / NAME, tensors=4)
    expected = by_stock(healthy)
    with nothing_left(folder), faulty(healthy, folder / "mounted", "slow=10") as path:
        check_right(path, expected)


def early_end(folder: Path) -> None:
    """The size promises more than there is. Who touches a mapping there ends, as with upstream."""
    healthy = write_weights(folder / NAME)
    end = 9 * TENSOR_BYTES + 12345
    with nothing_left(folder):
        for name, load in READ:
            # Cached, the kernel makes the file shorter once it has seen the end.
            for faults in ([f"end={end}"], [f"end={end}", "direct=1"]):
                with faulty(healthy, folder / f"{name}{len(faults)}", *faults) as path:
                    said = check_refused(
                        name, partial(load, path), path, "become shorter|written to"
                    )
                    begin, wanted = int(said[2]), int(said[1])
                    assert end < begin + wanted, f"{name}: another place: {said[0]}"


def squashfs(folder: Path) -> dict[str, str]:
    """A compressed image, which cannot be read directly."""
    need("mksquashfs", "squashfs-tools")
    files = folder / "files"
    files.mkdir()
    expected = by_stock(write_weights(files / NAME))
    run("mksquashfs", files, folder / "image", "-quiet", "-no-progress")
    with (
        nothing_left(folder),
        mounted(folder / "image", folder / "mounted", "squashfs", "loop,ro") as root,
    ):
        check_right(root / NAME, expected)
        return {"reader": reader_past_the_cache(root / NAME)}


def tmpfs(folder: Path) -> dict[str, str]:
    """Memory, whose files have nothing that could be read past a cache."""
    with nothing_left(folder), mounted("tmpfs", folder / "mounted", "tmpfs", "size=64m") as root:
        path = write_weights(root / NAME)
        check_right(path, by_stock(path))
        return {"reader": reader_past_the_cache(path)}


def overlay(folder: Path) -> dict[str, str]:
    """A container's view: the file lies in a layer that others share."""
    layers = {name: folder / name for name in ("lowerdir", "upperdir", "workdir")}
    for layer in layers.values():
        layer.mkdir()
    expected = by_stock(write_weights(layers["lowerdir"] / NAME))
    options = ",".join(f"{name}={layer}" for name, layer in layers.items())
    with nothing_left(folder), mounted("overlay", folder / "mounted", "overlay", options) as root:
        check_right(root / NAME, expected)
        return {"reader": reader_past_the_cache(root / NAME)}


def reader_past_the_cache(path: Path) -> str:
    """What reads a cold file that shall not be cached."""
    evict(path)
    load_checkpoint(path, backend="pread", cache="bypass")
    report = last_report()
    assert report is not None
    return report.reader
