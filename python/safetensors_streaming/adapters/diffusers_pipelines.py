"""diffusers' pipelines: those of callers who name no device get that of `patch(device=...)`."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from safetensors_streaming.adapters._placed import placed

if TYPE_CHECKING:
    from safetensors_streaming.adapters import Replacement

_pipelines: Any = import_module("diffusers.pipelines.pipeline_utils")
_single_files: Any = import_module("diffusers.loaders.single_file")
_REPLACEMENTS = [
    placed(_pipelines.DiffusionPipeline, "from_pretrained"),
    placed(_single_files.FromSingleFileMixin, "from_single_file"),
]


def replacements() -> list[Replacement]:
    """What is replaced by what."""
    return _REPLACEMENTS
