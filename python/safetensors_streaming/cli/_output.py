"""Files that the commands write: tried before any work is done for them, and whole or not there."""

import errno
import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


def check_output(path: str) -> None:
    """Refuse a path that could not be written, and leave it as it is."""
    target = Path(path)
    with _told_of(path):
        if target.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        if target.exists() and not os.access(target, os.W_OK):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))
        if not _is_special(target):
            beside = _beside(target)
            beside.open("x").close()
            beside.unlink()


def write_output(path: str, text: str) -> None:
    """Write a file under another name, and rename it when all of it is on the disk."""
    target = Path(path)
    with _told_of(path):
        if _is_special(target):
            target.write_text(text, encoding="utf-8")
            return
        beside = _beside(target)
        with beside.open("x", encoding="utf-8") as file:
            try:
                file.write(text)
                file.flush()
                os.fsync(file.fileno())
                if target.exists():
                    shutil.copymode(target, beside)
                _rename(beside, target.resolve())
            finally:
                beside.unlink(missing_ok=True)


def _rename(beside: Path, target: Path) -> None:
    try:
        beside.replace(target)
    except OSError as error:
        if error.errno != errno.EBUSY:
            raise
        # A mount point of its own, as containers give them for one file: its place cannot be taken.
        shutil.copyfile(beside, target)


def _is_special(target: Path) -> bool:
    """Whether it is a device or a pipe, whose place no file must take."""
    return target.exists() and not target.is_file()


def _beside(target: Path) -> Path:
    """A name in the folder of the file itself, wherever links to it are, that nobody else has."""
    return target.resolve().with_name(f".safetensors-streaming.{secrets.token_hex(8)}")


@contextmanager
def _told_of(path: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise OSError(f"cannot write {path}: {error.strerror}") from error
