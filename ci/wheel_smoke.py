"""Uses an installed wheel as its users do, in an environment that has nothing else of ours.

``ci/wheel_smoke.py commands`` needs no torch; ``ci/wheel_smoke.py loads`` compares with upstream.
"""

from __future__ import annotations

import hashlib
import json
import random
import shutil
import struct
import subprocess
import sys
from importlib.metadata import entry_points, version
from importlib.util import find_spec
from operator import is_
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import safetensors_streaming

if TYPE_CHECKING:
    from torch import Tensor

#: Loads a file by upstream's function, and tells how many loads were served here.
CHILD = """
import sys, safetensors.torch
safetensors.torch.load_file(sys.argv[1])
print(sum(sys.modules["safetensors_streaming"].status().served.values()))
"""


def check(what: str, *, holds: bool) -> None:
    """Tells what holds; ends the process where it does not."""
    if not holds:
        raise SystemExit(f"FAILED: {what}")
    print(f"  {what}")


def command(*words: object, status: int = 0) -> str:
    """What the installed command prints, when it leaves with that status."""
    program = Path(sys.executable).with_name("safetensors-streaming")
    done = subprocess.run(  # noqa: S603
        [program, *map(str, words)], capture_output=True, text=True, check=False
    )
    if done.returncode != status:
        raise SystemExit(f"FAILED: {words} left with {done.returncode}: {done.stdout}{done.stderr}")
    return done.stdout


def commands(path: Path) -> None:
    """The command line and the plug-ins, with what the wheel itself asks for."""
    package = Path(safetensors_streaming.__file__)
    check("imported from this environment", holds=package.is_relative_to(sys.prefix))
    check("no Rust here", holds=shutil.which("cargo") is None and shutil.which("rustc") is None)
    check("no torch here", holds=find_spec("torch") is None)
    told = command("--version").split()[-1]
    check(f"--version tells {told}", holds=told == version("safetensors-streaming-gpu"))

    table = {"rows": {"dtype": "F32", "shape": [3, 5], "data_offsets": [0, 60]}}
    header = json.dumps(table).encode()
    data = random.Random(0).randbytes(60)  # noqa: S311 - any bytes do
    path.write_bytes(struct.pack("<Q", len(header)) + header + data)
    (file,) = json.loads(command("inspect", path, "--json"))["files"]
    facts = [(one["name"], one["dtype"], one["shape"]) for one in file["tensors"]]
    check(f"inspect tells {facts}", holds=facts == [("rows", "F32", [3, 5])])
    command("verify", path, "--sha256", hashlib.sha256(path.read_bytes()).hexdigest())
    command("verify", path, "--sha256", "0" * 64, status=1)
    print("  verify knows the file by its digest, and refuses it by another")

    for group in ("vllm.general_plugins", "sglang.srt.plugins"):
        found = [entry.load() for entry in entry_points(group=group)]
        check(f"a plug-in for {group}", holds=len(found) == 1 and callable(found[0]))


def tensors() -> dict[str, Tensor]:
    """Random bits of several types, one number alone, and none at all."""
    import torch  # noqa: PLC0415 - not there for the commands

    bits = torch.randint(256, (3000, 64), dtype=torch.uint8, generator=torch.manual_seed(0))
    types = (torch.float32, torch.bfloat16, torch.float16, torch.float8_e4m3fn, torch.int64)
    viewed = {str(dtype): bits.view(dtype).clone() for dtype in types}
    return {**viewed, "one": torch.tensor(7), "none": torch.empty(0, 3)}


def same(ours: dict[str, Tensor], theirs: dict[str, Tensor]) -> bool:
    """Whether names, their order, types, shapes and bits are equal."""
    import torch  # noqa: PLC0415

    def flat(tensor: Tensor) -> Tensor:
        return tensor.reshape(-1).view(torch.uint8)

    return list(ours) == list(theirs) and all(
        (one.dtype, one.shape) == (other.dtype, other.shape) and torch.equal(flat(one), flat(other))
        for one, other in zip(ours.values(), theirs.values(), strict=True)
    )


def loads(path: Path) -> None:
    """Loads by either way, and by upstream's own functions where they are patched."""
    import safetensors.torch  # noqa: PLC0415
    import torch  # noqa: PLC0415

    def served() -> int:
        return sum(safetensors_streaming.status().served.values())

    safetensors.torch.save_file(tensors(), path)
    stock = [safetensors.torch.load_file, safetensors.safe_open]  # a list: patch() leaves it alone
    theirs = safetensors.torch.load_file(path)
    for backend in ("mmap", "pread"):
        ours = safetensors_streaming.load_file(path, backend=backend)
        what = f"load_file by {backend}: the bits of safetensors {safetensors.__version__}"
        check(f"{what}, torch {torch.__version__}", holds=same(ours, theirs))

    safetensors_streaming.patch(children=True)
    before = served()
    patched = safetensors.torch.load_file(path)
    check("patch() serves upstream's load_file", holds=served() == before + 1)
    check("the bits are the same", holds=same(patched, theirs))
    child = [sys.executable, "-I", "-c", CHILD, str(path)]
    told = subprocess.run(child, check=True, capture_output=True, text=True)  # noqa: S603
    check("and that of a child, by the .pth file", holds=told.stdout.strip() == "1")
    safetensors_streaming.unpatch()
    now = [safetensors.torch.load_file, safetensors.safe_open]
    check("unpatch() leaves upstream as it was", holds=all(map(is_, now, stock)))


def main() -> None:
    """Does what is named."""
    with TemporaryDirectory() as folder:
        {"commands": commands, "loads": loads}[sys.argv[1]](Path(folder) / "small.safetensors")


if __name__ == "__main__":
    main()
