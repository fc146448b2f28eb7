"""The files the benchmarks and the demo load: made once, kept under ``.cache/models``.

The checkpoint has the architecture of Qwen2.5-1.5B (28 layers, tied embeddings, 338 tensors in 4
shards) and is written by transformers' own ``save_pretrained``; other sizes scale every width.
"""

from __future__ import annotations

import argparse
import math
import os
import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from collections.abc import Callable

    import torch

CACHE = Path(__file__).resolve().parent.parent / ".cache" / "models"
FULL_GB = 3.09  # what sixteen steps of width weigh: Qwen2.5-1.5B in bfloat16
FULL_STEPS = 16
FLUX_GB = 23.8  # what FLUX.1-dev with its 24 heads weighs in bfloat16
FLUX_HEADS = 24
LORA_RANK = 64  # a tenth of the full checkpoint's size, in float32
SHARDS = 4
TILE_ELEMENTS = 16 << 20  # 32 MB of bfloat16
SMALL_TENSORS = 5_000
EXPERT_TENSORS = 20_000


def checkpoint(size_gb: float = FULL_GB) -> Path:
    """Gives the folder of a sharded checkpoint of about ``size_gb``, made on first use.

    Args:
        size_gb: The wished size in GB (1e9 bytes); widths move in steps, so the result is near it.

    Returns:
        A folder holding config.json, the shards and model.safetensors.index.json.
    """
    steps = max(1, round(FULL_STEPS * math.sqrt(size_gb / FULL_GB)))
    return _made_once(f"qwen2-{96 * steps}", lambda folder: _save_qwen2(folder, steps))


def small_tensors(count: int = SMALL_TENSORS) -> Path:
    """Gives one file of ``count`` tensors of 32 to 256 bytes, made on first use."""
    folder = _made_once(f"small-{count}", lambda folder: _save_small(folder, count))
    return folder / "model.safetensors"


def experts(count: int = EXPERT_TENSORS) -> Path:
    """Gives one file of ``count`` matrices of 4 KiB in bfloat16, made on first use."""
    folder = _made_once(f"experts-{count}", lambda folder: _save_experts(folder, count))
    return folder / "model.safetensors"


def picture_model(size_gb: float) -> Path:
    """Gives the folder of a sharded FLUX-shaped network of about ``size_gb``, made on first use."""
    heads = max(1, round(FLUX_HEADS * math.sqrt(size_gb / FLUX_GB)))
    return _made_once(f"flux-{heads}", lambda folder: _save_flux(folder, heads))


def adapter(size_gb: float) -> Path:
    """Gives the folder of an adapter for ``checkpoint(size_gb)``, made on first use."""
    base = checkpoint(size_gb)
    return _made_once(f"lora-{base.name}", lambda folder: _save_lora(folder, base))


def shards(folder: Path) -> list[Path]:
    """Lists the safetensors files of a checkpoint folder in order."""
    return sorted(folder.glob("*.safetensors"))


def _made_once(name: str, make: Callable[[Path], None]) -> Path:
    target = CACHE / name
    if not target.is_dir():
        CACHE.mkdir(parents=True, exist_ok=True)
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
    _fill(list(model.parameters()))
    model.tie_weights()
    # Every shard but the last is within one weight of the limit, hence exactly SHARDS of them.
    model.save_pretrained(folder, max_shard_size=total // SHARDS + largest_weight)


def _save_flux(folder: Path, heads: int) -> None:
    import torch  # noqa: PLC0415
    from diffusers import FluxTransformer2DModel  # noqa: PLC0415

    network: Any = FluxTransformer2DModel
    with torch.device("meta"):
        model = network(num_attention_heads=heads, guidance_embeds=True)
    model.bfloat16()
    sizes = [parameter.nbytes for parameter in model.parameters()]
    print(f"making a {sum(sizes) / 1e9:.2f} GB picture model in {CACHE} (once)", flush=True)
    model.to_empty(device="cpu")
    _fill(list(model.parameters()))
    model.save_pretrained(folder, max_shard_size=sum(sizes) // SHARDS + max(sizes))


def _save_lora(folder: Path, base: Path) -> None:
    import torch  # noqa: PLC0415
    from peft import LoraConfig, get_peft_model  # noqa: PLC0415
    from transformers import AutoConfig, AutoModelForCausalLM  # noqa: PLC0415

    print(f"making an adapter of {base.name} in {CACHE} (once)", flush=True)
    auto: Any = AutoModelForCausalLM
    with torch.device("meta"):
        model = auto.from_config(AutoConfig.from_pretrained(base))
    adapted = get_peft_model(model, LoraConfig(r=LORA_RANK, target_modules="all-linear"))
    adapted.to_empty(device="cpu")
    _fill([weight for name, weight in adapted.named_parameters() if "lora_" in name])
    adapted.save_pretrained(str(folder))


def _fill(parameters: list[torch.nn.Parameter]) -> None:
    """Fills the parameters from one seeded tile, each continuing where the last one ended."""
    import torch  # noqa: PLC0415

    seed = torch.Generator().manual_seed(0)
    tile = torch.empty(TILE_ELEMENTS, dtype=torch.bfloat16).normal_(0, 0.02, generator=seed)
    position = 0
    for parameter in parameters:
        for piece in torch.split(parameter.detach().view(-1), TILE_ELEMENTS):
            head = min(TILE_ELEMENTS - position, piece.numel())
            piece[:head] = tile[position : position + head]
            piece[head:] = tile[: piece.numel() - head]
            position = (position + piece.numel()) % TILE_ELEMENTS


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


def main() -> None:
    """Makes a checkpoint and the small-tensor file, and prints where they are."""
    parser = argparse.ArgumentParser(prog="python -m bench.models", description=__doc__)
    parser.add_argument("--size", type=float, default=FULL_GB, metavar="GB", help="default 3.09")
    size_gb = parser.parse_args().size
    for file in [*shards(checkpoint(size_gb)), small_tensors()]:
        print(f"{file.stat().st_size:>13,} B  {file}")


if __name__ == "__main__":
    main()
