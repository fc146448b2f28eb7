"""A file system that serves one file with faults, by the kernel's FUSE protocol itself.

Usage: python -m faulting.fuse_file FOLDER SOURCE [FAULT ...], as root. It serves the bytes of
SOURCE, by its name, in FOLDER; says "ready" when that is mounted, and ends when it is unmounted.

    bad=OFFSET:BYTES   reads that touch these bytes fail with EIO
    short=BYTES        a read gives so many bytes at most
    slow=MILLISECONDS  how long each read takes
    end=OFFSET         there are no bytes from there on, whatever the size says
    direct=1           the kernel caches nothing, and hands on every answer as it is
"""

from __future__ import annotations

import ctypes
import errno
import os
import stat
import struct
import sys
import threading
import time
from dataclasses import dataclass
from pathlib import Path

# Operations and structures of linux/fuse.h, version 7.31.
LOOKUP, FORGET, GETATTR, OPEN, READ, RELEASE, FLUSH = 1, 2, 3, 14, 15, 18, 25
INIT, OPENDIR, RELEASEDIR, ACCESS, INTERRUPT, DESTROY, BATCH_FORGET = 26, 27, 29, 34, 36, 38, 42
WITHOUT_ANSWER = {FORGET, INTERRUPT, BATCH_FORGET}
EMPTY_ANSWER = {RELEASE, FLUSH, RELEASEDIR, ACCESS, DESTROY}
REQUEST = struct.Struct("<IIQQIIII")
ANSWER = struct.Struct("<IiQ")
ATTRIBUTES = struct.Struct("<QQQQQQIIIIIIIIII")
INIT_ANSWER = struct.Struct("<IIIIHHIIHHI28x")
ASYNC_READ, DIRECT_IO = 1, 1
ROOT, FILE = 1, 2
READ_BYTES_MAX = 128 << 10
REQUEST_BYTES_MAX = READ_BYTES_MAX + 8192
THREADS = 4


@dataclass
class Faults:
    """What goes wrong; nothing as it stands."""

    bad: range = range(0)
    short: int = READ_BYTES_MAX
    slow_s: float = 0.0
    end: int = sys.maxsize
    direct: int = 0

    @classmethod
    def parse(cls, words: list[str]) -> Faults:
        """The faults of a command line."""
        faults = cls()
        for word in words:
            name, _, value = word.partition("=")
            if name == "bad":
                offset, _, count = value.partition(":")
                faults.bad = range(int(offset), int(offset) + int(count))
            elif name == "slow":
                faults.slow_s = int(value) / 1000
            else:
                setattr(faults, name, int(value))
        return faults


class RefusalError(Exception):
    """An answer that is an error number."""


@dataclass
class OneFile:
    """The file system: a folder, and a file in it."""

    source: Path
    faults: Faults

    def __post_init__(self) -> None:
        """Opens what is served."""
        self.handle = os.open(self.source, os.O_RDONLY)
        self.size = os.fstat(self.handle).st_size

    def answer(self, operation: int, node: int, body: bytes) -> bytes:
        """The answer to a request."""
        if operation == INIT:
            minor = min(31, struct.unpack_from("<II", body)[1])
            return INIT_ANSWER.pack(7, minor, READ_BYTES_MAX, ASYNC_READ, 16, 12, 4096, 1, 0, 0, 0)
        if operation == LOOKUP:
            if node != ROOT or body.rstrip(b"\0") != os.fsencode(self.source.name):
                raise RefusalError(errno.ENOENT)
            return struct.pack("<QQQQII", FILE, 0, 60, 60, 0, 0) + self.attributes(FILE)
        if operation == GETATTR:
            return struct.pack("<QII", 60, 0, 0) + self.attributes(node)
        if operation in {OPEN, OPENDIR}:
            return struct.pack("<QII", 0, DIRECT_IO * self.faults.direct, 0)
        if operation == READ and node == FILE:
            _, offset, count = struct.unpack_from("<QQI", body)
            return self.read(offset, count)
        if operation in EMPTY_ANSWER:
            return b""
        raise RefusalError(errno.ENOSYS)

    def attributes(self, node: int) -> bytes:
        """What stat tells of a node."""
        is_file = node == FILE
        mode = stat.S_IFREG | 0o444 if is_file else stat.S_IFDIR | 0o555
        size, links = (self.size, 1) if is_file else (0, 2)
        times = (1, 1, 1, 0, 0, 0)
        return ATTRIBUTES.pack(node, size, -(-size // 512), *times, mode, links, 0, 0, 0, 4096, 0)

    def read(self, offset: int, count: int) -> bytes:
        """The bytes of the file, as the faults have it."""
        faults = self.faults
        time.sleep(faults.slow_s)
        if offset < faults.bad.stop and faults.bad.start < offset + count:
            raise RefusalError(errno.EIO)
        count = max(0, min(count, faults.short, faults.end - offset))
        return os.pread(self.handle, count, offset)


def mount(device: int, folder: Path) -> None:
    """Mounts what answers at a descriptor of /dev/fuse."""
    libc = ctypes.CDLL(None, use_errno=True)
    options = (
        f"fd={device},rootmode=40000,user_id=0,group_id=0,allow_other,max_read={READ_BYTES_MAX}"
    )
    flags = 1 | 2 | 4  # MS_RDONLY, MS_NOSUID, MS_NODEV
    texts = [b"faulty", os.fsencode(folder), b"fuse"]
    if libc.mount(*texts, ctypes.c_ulong(flags), options.encode()) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number), str(folder))


def serve(device: int, files: OneFile) -> None:
    """Answers requests until the file system is unmounted."""
    while True:
        try:
            request = os.read(device, REQUEST_BYTES_MAX)
        except OSError as error:
            if error.errno in {errno.ENOENT, errno.EINTR}:  # the request was taken back
                continue
            return
        _, operation, number, node, *_ = REQUEST.unpack_from(request)
        if operation in WITHOUT_ANSWER:
            continue
        body, refusal = b"", 0
        try:
            body = files.answer(operation, node, request[REQUEST.size :])
        except RefusalError as error:
            [refusal] = error.args
        try:
            os.write(device, ANSWER.pack(ANSWER.size + len(body), -refusal, number) + body)
        except FileNotFoundError:  # nobody waits for it any more
            continue


def main() -> None:
    """Mounts and serves."""
    folder, source = map(Path, sys.argv[1:3])
    files = OneFile(source, Faults.parse(sys.argv[3:]))
    device = os.open("/dev/fuse", os.O_RDWR)
    mount(device, folder)
    print("ready", flush=True)
    threads = [threading.Thread(target=serve, args=(device, files)) for _ in range(THREADS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()


if __name__ == "__main__":
    main()
