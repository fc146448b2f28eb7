"""Rules of the house that no other tool checks; prints each breach, exits 1 if there is one."""

import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent

#: Where `unsafe` may stand, and nowhere else.
UNSAFE_FILES = {
    "src/device/cuda/checksum.rs",
    "src/device/cuda/copy.rs",
    "src/device/cuda/driver.rs",
    "src/device/cuda/kernels.rs",
    "src/device/cuda/memory.rs",
    "src/device/cuda/pinned.rs",
    "src/device/cuda/probe.rs",
    "src/device/cuda/stream.rs",
    "src/device/host.rs",
    "src/device/mapping.rs",
    "src/device/part.rs",
    "src/python/aten.rs",
    "src/python/tensor.rs",
    "src/reader/uring.rs",
    "src/source/system.rs",
}

FILE_LINES_MAX = 400
#: A table of cases reads best in one piece.
LONGER_FILES = {"tests/bad_files.py": 800, "tests/test_bad_files.py": 450}

TOP_LEVEL = {"Cargo.toml", "Cargo.lock", "pyproject.toml", "src", "kernels", "python", "bench"}
TOP_LEVEL |= {"ci", "README.md", "tests", "docs", "LICENSE", "CHANGELOG.md"}

MARKS = re.compile(r"\b(FI" + r"XME|TO" + r"DO|XX" + r"X)\b")


def tracked() -> list[Path]:
    """Files of the repository, also those git does not know yet."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(  # noqa: S603 - a fixed command
        command, cwd=ROOT, check=True, capture_output=True, text=True
    )
    return [path for name in listed.stdout.splitlines() if (path := ROOT / name).is_file()]


def module_order() -> list[str]:
    """The modules in the order in which `lib.rs` declares them."""
    text = (ROOT / "src/lib.rs").read_text()
    return re.findall(r"^(?:pub\(crate\) )?mod (\w+);", text, re.MULTILINE)


def check_order(name: str, text: str, order: list[str]) -> Iterator[str]:
    """A module may use only those declared before it."""
    module = re.split(r"[/.]", name)[1]
    if module not in order:
        return
    tests = text.find("#[cfg(test)]\nmod tests")
    product = text if tests < 0 else text[:tests]
    if "crate::{" in product or "super::super" in product:
        yield f"{name}: write `use crate::module::…`, so that the order can be read"
    for used in sorted(set(re.findall(r"\bcrate::(\w+)", product)) & set(order)):
        if order.index(used) > order.index(module):
            yield f"{name}: `{module}` uses `{used}`, which stands after it in lib.rs"


def check_rust(name: str, text: str, order: list[str]) -> Iterator[str]:
    """Order of modules, place of unsafe, who speaks to whom."""
    yield from check_order(name, text, order)
    if "unsafe" in re.sub(r"//.*", "", text) and name not in UNSAFE_FILES:
        yield f"{name}: unsafe code outside the files that may have it"
    if "env::var" in text and name != "src/config.rs":
        yield f"{name}: the environment is read in src/config.rs alone"
    if "extern crate" in text:
        yield f"{name}: extern crate"
    if name.startswith(("src/format/", "src/plan")) and re.search(r"std::(fs|net|io)\b", text):
        yield f"{name}: no input or output in `format` and `plan`"


def check_file(path: Path, order: list[str]) -> Iterator[str]:
    """The rules for one file."""
    name = path.relative_to(ROOT).as_posix()
    if name.split("/")[0] not in TOP_LEVEL and not name.startswith("."):
        yield f"{name}: not a place of the top level"
    if path.suffix not in {".rs", ".py", ".pyi", ".md", ".toml", ".sh", ""}:
        return
    text = path.read_text(errors="replace")
    lines = text.count("\n")
    if path.suffix in {".rs", ".py"} and lines > LONGER_FILES.get(name, FILE_LINES_MAX):
        yield f"{name}: {lines} lines"
    if MARKS.search(text):
        yield f"{name}: a mark of unfinished work"
    if path.suffix == ".rs" and name.startswith("src/"):
        yield from check_rust(name, text, order)
    if path.suffix == ".py" and name.startswith("tests/") and "time.sleep(" in text:
        yield f"{name}: a test that sleeps; wait for a condition"


def main() -> int:
    """Check everything."""
    order = module_order()
    breaches = [breach for path in tracked() for breach in check_file(path, order)]
    print("\n".join(breaches) or f"tidy: {len(order)} modules in order")
    return 1 if breaches else 0


if __name__ == "__main__":
    sys.exit(main())
