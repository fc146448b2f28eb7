"""``python -m bench.predicted``: what ``doctor`` predicts, beside what first loads then take.

Each block asks ``doctor`` once, and loads the checkpoint by the engine in two fresh processes, cold
and warm. Leaves with 1 where the medians are further apart than a quarter. For the simulated GPU:
``SIMCUDA_H2D_GBPS=2 SIMCUDA_POISON=0 SIMCUDA_MEM=17179869184 ci/sim .venv/bin/python -m
bench.predicted --device cuda:0``.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
from statistics import median
from typing import TYPE_CHECKING

from bench import models
from bench.measure import Job
from bench.sampling import ENVIRONMENT, run, say, total_bytes

if TYPE_CHECKING:
    from pathlib import Path

STATES = ("cold", "warm")
APART_MAX = 0.25
#: What loads by the engine: without a GPU a file is mapped if nobody asks for another way.
WAYS = {"cpu": ("ours-pread", "load"), "cuda:0": ("ours-cuda", "load_cuda")}


def predictions(folder: Path, device: str) -> dict[str, float]:
    """Asks ``doctor``, in a process of its own: seconds by state."""
    words = ["-m", "safetensors_streaming", "doctor", str(folder), "--device", device, "--json"]
    told = subprocess.run(  # noqa: S603
        [sys.executable, *words], env=ENVIRONMENT, capture_output=True, text=True, check=True
    )
    found = json.loads(told.stdout)["predictions"]
    return {state: float(found[state]["seconds"]) for state in STATES}


def main() -> None:
    """Measures, and prints a line for each state."""
    parser = argparse.ArgumentParser(prog="python -m bench.predicted", description=__doc__)
    parser.add_argument("--size", type=models.gigabytes, default=3.0, help="default: 3G")
    parser.add_argument("--device", choices=list(WAYS), default="cpu")
    parser.add_argument("--blocks", type=int, default=7)
    options = parser.parse_args()
    files = models.files("model", options.size)
    paths = [str(file) for file in files]
    loader, action = WAYS[options.device]
    predicted: dict[str, list[float]] = {state: [] for state in STATES}
    measured: dict[str, list[float]] = {state: [] for state in STATES}
    for _ in range(options.blocks):
        for state, seconds in predictions(files[0].parent, options.device).items():
            predicted[state].append(seconds)
        for state in STATES:
            [call] = run(Job(loader, action, state, paths))
            measured[state].append(float(call["seconds"]))
    far = False
    what = f"{total_bytes(files) / 1e9:.2f} GB to {options.device}, medians of {options.blocks}"
    for state in STATES:
        told, took = median(predicted[state]), median(measured[state])
        far |= abs(told / took - 1) > APART_MAX
        say(f"{what}, {state}: predicted {told:.3f} s, took {took:.3f} s, {told / took - 1:+.0%}")
    sys.exit(far)


if __name__ == "__main__":
    main()
