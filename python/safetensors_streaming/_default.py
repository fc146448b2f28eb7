"""Where calls that name no device put their tensors, and whose calls these are."""

import sys
from contextvars import ContextVar
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

#: Libraries that place tensors themselves: a call of theirs without a device means the CPU.
_PLACERS = frozenset(
    {
        "accelerate",
        "diffusers",
        "huggingface_hub",
        "lightning",
        "open_clip",
        "optimum",
        "peft",
        "pytorch_lightning",
        "safetensors",
        "sentence_transformers",
        "sglang",
        "timm",
        "torch",
        "transformers",
        "trl",
        "vllm",
    }
)


class Default:
    """The device of `patch(device=...)`: by its number, and as it was named.

    Libraries may take "cuda" for another GPU than the first.
    """

    device = "cpu"
    named = "cpu"


default = Default()

#: Set where somebody further up has named a device for what is loaded further down.
device_named: ContextVar[bool] = ContextVar("safetensors_streaming_device_named", default=False)

#: Set where the tensors of a file are asked for as views, and read another way.
read_otherwise: ContextVar[bool] = ContextVar("safetensors_streaming_read_otherwise", default=False)

#: Where a library is about to move what it has another one, or itself, load for the host.
moved_to: "ContextVar[str | int | torch.device | None]" = ContextVar(
    "safetensors_streaming_moved_to", default=None
)


def _library(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).split(".", maxsplit=1)[0]


def device_for(caller: FrameType) -> str:
    """The device for a call that names none: the default, but for libraries that place tensors."""
    return "cpu" if _library(caller) in _PLACERS else default.device


def device_for_caller_of(library: str) -> str:
    """The same for a call into a library, which may have called itself since, as it was named.

    Code of models that came with their weights is the library's, and so are the decorators of
    huggingface_hub.
    """
    if device_named.get():
        return "cpu"
    inside = {library, f"{library}_modules", "huggingface_hub", "safetensors_streaming"}
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001 - no other way
    while frame is not None and _library(frame) in inside:
        frame = frame.f_back
    return "cpu" if frame is not None and _library(frame) in _PLACERS else default.named
