"""Checks what a wheel holds and what its extension asks of glibc; exits 1 if anything is amiss."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING
from zipfile import ZipFile

if TYPE_CHECKING:
    from collections.abc import Iterator

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = "safetensors_streaming"
EXTENSION = f"{PACKAGE}/_native.abi3.so"
#: What the build writes, beside what it takes from the sources.
WRITTEN = ("METADATA", "RECORD", "WHEEL", "entry_points.txt", f"sboms/{PACKAGE}.cyclonedx.json")

#: The newest glibc that a wheel for manylinux2014 may ask for.
GLIBC = (2, 17)
#: A symbol that readelf shows as undefined, with the version of the library that it is to be of.
UNDEFINED = re.compile(r" (GLOBAL|WEAK) +DEFAULT +UND (\w+)(?:@(\w+)_([\d.]+))?")


def sources(stem: str) -> dict[str, Path]:
    """Files of this repository, by their names in a wheel of that name and version."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard", "python"]
    listed = subprocess.run(  # noqa: S603 - a fixed command
        command, cwd=ROOT, check=True, capture_output=True, text=True
    )
    files = {f"{stem}.dist-info/licenses/LICENSE": ROOT / "LICENSE"}
    for name in listed.stdout.splitlines():
        held = name.removeprefix("python/").replace(f"{PACKAGE}.data/", f"{stem}.data/")
        files[held] = ROOT / name
    return files


def check_files(wheel: ZipFile, stem: str) -> Iterator[str]:
    """The sources byte for byte, the extension, what the build writes, and nothing else."""
    copied = sources(stem)
    wanted = copied.keys() | {EXTENSION} | {f"{stem}.dist-info/{name}" for name in WRITTEN}
    held = {entry.filename for entry in wheel.infolist() if not entry.is_dir()}
    yield from (f"{name}: missing" for name in sorted(wanted - held))
    yield from (f"{name}: not to be there" for name in sorted(held - wanted))
    for name in sorted(copied.keys() & held):
        if wheel.read(name) != copied[name].read_bytes():
            yield f"{name}: not as in the sources"


def check_symbols(extension: bytes) -> Iterator[str]:
    """Symbols that the loader would not find in such a glibc.

    The linker leaves what it does not know to the loader: a function that is newer than the glibc
    that it links against has no version at all, and no tool that compares versions sees it.
    """
    with NamedTemporaryFile() as file:
        file.write(extension)
        file.flush()
        told = subprocess.run(  # noqa: S603 - a fixed command
            ["readelf", "--wide", "--dyn-syms", file.name],  # noqa: S607 - the binutils of the host
            check=True,
            capture_output=True,
            text=True,
        )
    symbols = UNDEFINED.findall(told.stdout)
    if not any(name.startswith("Py") for _, name, *_ in symbols):
        yield f"{EXTENSION}: readelf shows no symbol of Python's"
    for binding, name, library, version in symbols:
        if library == "GLIBC" and tuple(map(int, version.split("."))) > GLIBC:
            yield f"{EXTENSION}: asks for {name} of glibc {version}"
        if binding == "GLOBAL" and not library and not name.startswith(("Py", "_Py")):
            yield f"{EXTENSION}: asks for {name}, which glibc {GLIBC[0]}.{GLIBC[1]} does not have"


def main() -> int:
    """Check the wheel that is named."""
    path = Path(sys.argv[1])
    stem = "-".join(path.name.split("-")[:2])
    with ZipFile(path) as wheel:
        breaches = list(check_files(wheel, stem))
        if EXTENSION in wheel.namelist():
            breaches += check_symbols(wheel.read(EXTENSION))
    glibc = ".".join(map(str, GLIBC))
    print("\n".join(breaches) or f"{path.name}: holds what it must, asks for glibc {glibc} at most")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
