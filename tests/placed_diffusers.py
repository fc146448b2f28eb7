"""Loads of diffusers for placed_cases.py."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pathlib import Path

    import torch

Weights = dict[str, "torch.Tensor"]


def diffusers(folder: Path, name: str = "unet", **keywords: object) -> Weights:
    """A network of a picture model."""
    from diffusers import UNet2DModel  # noqa: PLC0415

    return UNet2DModel.from_pretrained(folder / name, **keywords).state_dict()


def diffusers_nowhere(folder: Path) -> Weights:
    """Without a word about devices."""
    return diffusers(folder)


def diffusers_whole(folder: Path) -> Weights:
    """From one file, to one GPU."""
    return diffusers(folder, device_map="cuda:1")


def diffusers_cast(folder: Path) -> Weights:
    """Converted on the way."""
    import torch  # noqa: PLC0415

    return diffusers(folder, device_map={"": 0}, torch_dtype=torch.bfloat16)


def diffusers_shards(folder: Path) -> Weights:
    """In shards, to one GPU."""
    return diffusers(folder, "unet-shards", device_map="cuda")


def diffusers_pickled(folder: Path) -> Weights:
    """From a file of torch's own format."""
    return diffusers(folder, "unet-pickled", device_map="cuda:0", use_safetensors=False)


def diffusers_spread(folder: Path) -> Weights:
    """In shards, on a GPU and the host, with a part on the disk."""
    from diffusers import UNet2DModel  # noqa: PLC0415

    placed = {"conv_in": 0, "time_embedding": 0, "down_blocks": 0, "mid_block": "cpu"}
    placed |= {"up_blocks": "disk", "conv_norm_out": 0, "conv_out": 0}
    model = UNet2DModel.from_pretrained(
        folder / "unet-shards", device_map=placed, offload_folder=str(folder / "off-unet")
    )
    return {name: part for name, part in model.state_dict().items() if not part.is_meta}


def diffusers_auto(folder: Path) -> Weights:
    """By the class that finds the class."""
    from diffusers import AutoModel  # noqa: PLC0415

    return AutoModel.from_pretrained(str(folder / "unet")).state_dict()


def diffusers_pipeline_given(folder: Path) -> Weights:
    """A pipeline of a network that hooks move."""
    from diffusers import DDPMPipeline, UNet2DModel  # noqa: PLC0415

    placed = {"": 0, "mid_block": "cpu"}
    unet = UNet2DModel.from_pretrained(folder / "unet", device_map=placed)
    made = DDPMPipeline.from_pretrained(folder / "ddpm", unet=unet).unet
    return {name: part for name, part in made.state_dict().items() if not part.is_meta}


def diffusers_pipeline(folder: Path, name: str = "ddpm", **keywords: object) -> Weights:
    """A pipeline with a device of its own."""
    from diffusers import DDPMPipeline  # noqa: PLC0415

    placed = keywords or {"device_map": "cuda"}
    return DDPMPipeline.from_pretrained(folder / name, **placed).unet.state_dict()


def diffusers_pipeline_shards(folder: Path) -> Weights:
    """A pipeline whose network is in shards."""
    return diffusers_pipeline(folder, "ddpm-shards")


def diffusers_pipeline_nowhere(folder: Path) -> Weights:
    """A pipeline without a word about devices."""
    return diffusers_pipeline(folder, device_map=None)
