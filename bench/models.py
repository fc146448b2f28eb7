"""The files the benchmarks and the demo load: made once, kept under ``.cache/models``.

The checkpoint has the architecture of Qwen2.5-1.5B (28 layers, tied embeddings, 338 tensors in 4
shards) and is written by transformers' own ``save_pretrained``; other sizes scale every width.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from torch import Tensor

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "models"
FULL_GB = 3.09  # what sixteen steps of width weigh: Qwen2.5-1.5B in bfloat16
FULL_STEPS = 16
FLUX_GB = 23.8  # what FLUX.1-dev with its 24 heads weighs in bfloat16
FLUX_HEADS = 24
LORA_RANK = 64
LORA_SHARE = 0.1  # of the full checkpoint's size, in float32; more of smaller ones
SHARDS = 4
SMALL_TENSORS = 5_000
SMALL_BYTES = 256
EXPERT_TENSORS = 20_000
EXPERT_BYTES = 4096
MB, GB = 10**6, 10**9
#: One of the checkpoint's tensors: 18 MB of 2 GB.
ONE_TENSOR = "model.layers.14.mlp.up_proj.weight"


def gigabytes(text: str) -> float:
    """Reads a size as the command line has it: a number of GB, or one with M or G at its end.

    Raises:
        argparse.ArgumentTypeError: If it is something else, or nothing.
    """
    found = re.fullmatch(r"(\d+\.?\d*|\.\d+)([MG]?)", text)
    size = float(found[1]) / (1000 if found[2] == "M" else 1) if found else 0.0
    if size == 0:
        raise argparse.ArgumentTypeError(f"{text!r} is no size such as 2G, 512M, or 1.5 for 1.5 GB")
    return size


def files(name: str, size_gb: float) -> list[Path]:
    """Gives the files that a row of the benchmark calls ``name``, made on first use.

    Args:
        name: "model", "shard" (that with ``ONE_TENSOR``), "small", "both" (model and small),
            "experts", or a kind in ``bench/single_files.py``.
        size_gb: The wished size in GB; "small" and "experts" have one of their own.
    """
    if name == "small":
        return [small_tensors()]
    if name == "experts":
        return [experts()]
    if name not in {"model", "shard", "both"}:
        return [single_file(name, size_gb)]
    folder = checkpoint(size_gb)
    if name == "shard":
        index = json.loads((folder / "model.safetensors.index.json").read_text(encoding="utf-8"))
        return [folder / index["weight_map"][ONE_TENSOR]]
    return [*shards(folder), *([small_tensors()] if name == "both" else [])]


def checkpoint(size_gb: float = FULL_GB) -> Path:
    """Gives the folder of a sharded checkpoint of about ``size_gb``, made on first use.

    Args:
        size_gb: The wished size in GB (1e9 bytes); widths move in steps, so the result is near it.

    Returns:
        A folder holding config.json, the shards and model.safetensors.index.json.
    """
    steps = max(1, round(FULL_STEPS * math.sqrt(size_gb / FULL_GB)))
    name = f"qwen2-{96 * steps}"
    return _made_once(name, round(size_gb * GB), lambda folder: _save_qwen2(folder, steps))


def small_tensors(count: int = SMALL_TENSORS) -> Path:
    """Gives one file of ``count`` tensors of 32 to 256 bytes, made on first use."""
    name = f"small-{count}"
    folder = _made_once(name, count * SMALL_BYTES, lambda folder: _save_small(folder, count))
    return folder / "model.safetensors"


def experts(count: int = EXPERT_TENSORS) -> Path:
    """Gives one file of ``count`` matrices of 4 KiB in bfloat16, made on first use."""
    name = f"experts-{count}"
    folder = _made_once(name, count * EXPERT_BYTES, lambda folder: _save_experts(folder, count))
    return folder / "model.safetensors"


def single_file(kind: str, size_gb: float) -> Path:
    """Gives one file of about ``size_gb``, made on first use; its kind is of ``single_files``."""
    size = round(size_gb * GB)
    name = f"{kind}-{size // MB}"
    folder = _made_once(name, size, lambda folder: _save_single(folder, kind, size))
    return folder / "model.safetensors"


def picture_model(size_gb: float) -> Path:
    """Gives the folder of a sharded FLUX-shaped network of about ``size_gb``, made on first use."""
    heads = max(1, round(FLUX_HEADS * math.sqrt(size_gb / FLUX_GB)))
    name = f"flux-{heads}"
    return _made_once(name, round(size_gb * GB), lambda folder: _save_flux(folder, heads))


def adapter(size_gb: float) -> Path:
    """Gives the folder of an adapter for ``checkpoint(size_gb)``, made on first use."""
    base = checkpoint(size_gb)
    size = round(size_gb * GB * LORA_SHARE)
    return _made_once(f"lora-{base.name}", size, lambda folder: _save_lora(folder, base))


def shards(folder: Path) -> list[Path]:
    """Lists the safetensors files of a checkpoint folder in order."""
    return sorted(folder.glob("*.safetensors"))


def in_format(paths: Sequence[Path], suffix: str) -> Path:
    """Names the file that holds the tensors of some files in another loader's format."""
    return CACHE / f"{paths[0].parent.name}-{suffix}" / f"model.{suffix}"


def convert(
    paths: Sequence[Path], suffix: str, write: Callable[[dict[str, Tensor], Path], None]
) -> None:
    """Makes the file of ``in_format``, if it is not there, by a writer of that format."""
    from safetensors.torch import load_file  # noqa: PLC0415

    target = in_format(paths, suffix)

    def save(folder: Path) -> None:
        tensors = {name: part for path in paths for name, part in load_file(path).items()}
        write(tensors, folder / target.name)

    _made_once(target.parent.name, sum(path.stat().st_size for path in paths), save)


def _made_once(name: str, size: int, make: Callable[[Path], None]) -> Path:
    """Gives the folder ``name``, made on first use.

    Args:
        name: What it is called in ``CACHE``.
        size: About how many bytes it will hold.
        make: Fills an empty folder.

    Raises:
        SystemExit: If the disk has no room for it.
    """
    target = CACHE / name
    if not target.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(CACHE).free
        if size > free:
            room = f"{CACHE} has {free / GB:.2f} GB free"
            raise SystemExit(f"{name} needs {size / GB:.2f} GB; {room}")
        making = Path(tempfile.mkdtemp(dir=CACHE, prefix=f".{name}-"))
        try:
            make(making)
            making.chmod(0o755)
            for file in making.iterdir():
                file.chmod(0o644)  # safetensors writes 0600
                with file.open("rb") as handle:
                    os.fsync(handle.fileno())  # a dirty page cannot be evicted for a cold run
            making.rename(target)
        finally:
            shutil.rmtree(making, ignore_errors=True)
    return target


def _save_qwen2(folder: Path, steps: int) -> None:
    import torch  # noqa: PLC0415  (heavy; not needed once the files exist)
    from transformers import Qwen2Config, Qwen2ForCausalLM  # noqa: PLC0415

    from bench.single_files import fill  # noqa: PLC0415

    config = Qwen2Config(
        hidden_size=96 * steps,
        intermediate_size=560 * steps,
        vocab_size=9496 * steps,
        num_hidden_layers=28,
        num_attention_heads=12,
        num_key_value_heads=2,
        tie_word_embeddings=True,
    )
    with torch.device("meta"):
        model = Qwen2ForCausalLM(config)
    model.bfloat16()
    total = sum(parameter.nbytes for parameter in model.parameters())
    largest_weight = 2 * config.hidden_size * config.intermediate_size
    print(f"making a {total / 1e9:.2f} GB checkpoint in {CACHE} (once)", flush=True)
    model.to_empty(device="cpu")
    fill(model.parameters())
    model.tie_weights()
    # Every shard but the last is within one weight of the limit, hence exactly SHARDS of them.
    model.save_pretrained(folder, max_shard_size=total // SHARDS + largest_weight)


def _save_flux(folder: Path, heads: int) -> None:
    import torch  # noqa: PLC0415
    from diffusers import FluxTransformer2DModel  # noqa: PLC0415

    from bench.single_files import fill  # noqa: PLC0415

    network: Any = FluxTransformer2DModel
    with torch.device("meta"):
        model = network(num_attention_heads=heads, guidance_embeds=True)
    model.bfloat16()
    sizes = [parameter.nbytes for parameter in model.parameters()]
    print(f"making a {sum(sizes) / 1e9:.2f} GB picture model in {CACHE} (once)", flush=True)
    model.to_empty(device="cpu")
    fill(model.parameters())
    model.save_pretrained(folder, max_shard_size=sum(sizes) // SHARDS + max(sizes))


def _save_lora(folder: Path, base: Path) -> None:
    import torch  # noqa: PLC0415
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    from bench.single_files import fill  # noqa: PLC0415

    print(f"making an adapter of {base.name} in {CACHE} (once)", flush=True)
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(AutoConfig.from_pretrained(base))
    adapted = get_peft_model(model, LoraConfig(r=LORA_RANK, target_modules="all-linear"))
    adapted.to_empty(device="cpu")
    fill(weight for name, weight in adapted.named_parameters() if "lora_" in name)
    adapted.save_pretrained(str(folder))


def _save_small(folder: Path, count: int) -> None:
    import torch  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    print(f"making a file of {count:,} small tensors in {CACHE} (once)", flush=True)
    seed = torch.Generator().manual_seed(0)
    shapes = [(16,), (8, 8), (4, 8), (2, 3, 4)]
    dtypes = [torch.bfloat16, torch.float32]
    tensors = {
        f"layers.{i // 8}.experts.{i % 8}.scale": torch.randn(shapes[i % 4], generator=seed).to(
            dtypes[i // 4 % 2]
        )
        for i in range(count)
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _save_experts(folder: Path, count: int) -> None:
    import torch  # noqa: PLC0415
    from safetensors.torch import save_file  # noqa: PLC0415

    print(f"making a file of {count:,} matrices in {CACHE} (once)", flush=True)
    seed = torch.Generator().manual_seed(0)
    tile = torch.randn(64, 32, generator=seed).bfloat16()
    tensors = {
        f"layers.{i // 384}.experts.{i // 3 % 128}.{['gate', 'up', 'down'][i % 3]}": tile + i
        for i in range(count)
    }
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def _save_single(folder: Path, kind: str, size: int) -> None:
    from bench.single_files import save  # noqa: PLC0415

    print(f"making a file of {size / GB:.2f} GB, {kind}, in {CACHE} (once)", flush=True)
    save(kind, size, folder / "model.safetensors")


def main() -> None:
    """Makes a checkpoint and the small-tensor file, and prints where they are."""
    parser = argparse.ArgumentParser(prog="python -m bench.models", description=__doc__)
    parser.add_argument("--size", type=gigabytes, default=FULL_GB, help="default 3.09 (GB)")
    size_gb = parser.parse_args().size
    for file in [*shards(checkpoint(size_gb)), small_tensors()]:
        print(f"{file.stat().st_size:>13,} B  {file}")


if __name__ == "__main__":
    main()
