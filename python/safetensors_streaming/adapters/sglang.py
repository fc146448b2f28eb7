"""SGLang: what its default loader loads onto a GPU at the start, read as one stream.

Its other loads (drafts, LoRA, updates while it serves) are made as ever, from views of the files.
"""

from __future__ import annotations

from functools import wraps
from importlib import import_module
from typing import TYPE_CHECKING, Any

import torch

from safetensors_streaming._native import release
from safetensors_streaming._upstream import calls
from safetensors_streaming.adapters._devices import gpu_of
from safetensors_streaming.adapters._weights import weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    from safetensors_streaming.adapters import Replacement

_library: Any = import_module("sglang.srt.model_loader.loader")
_default = _library.DefaultModelLoader
_all_weights = _default._get_all_weights  # noqa: SLF001 - what is replaced


def _gpu(loader: Any, model_config: Any) -> int | None:  # noqa: ANN401
    """The GPU to which a load can be streamed, or None where it is the library's to do."""
    config = loader.load_config
    plain = type(loader) is _default and config.load_format in {"auto", "safetensors"}
    draft = model_config.is_draft_model or config.draft_model_idx is not None
    if not plain or draft or _library.get_parallel().pp_size > 1:
        return None
    wishes = _library.get_model()
    wished = (
        wishes.weight_loader_disable_mmap,
        wishes.weight_loader_prefetch_checkpoints,
        wishes.weight_loader_drop_cache_after_load,
    )
    # A server on the CPU initialises no GPU.
    in_use = torch.cuda.is_initialized()  # type: ignore[no-untyped-call]
    return gpu_of("cuda") if in_use and not any(wished) else None


def _streamed(
    loader: Any,  # noqa: ANN401
    model_config: Any,  # noqa: ANN401
    model: Any,  # noqa: ANN401
    gpu: int,
) -> Iterator[tuple[str, torch.Tensor]]:
    try:
        for resolved in loader.resolve_model_weights(model_config, model):
            source = resolved.source
            if not resolved.use_safetensors:
                yield from loader._get_weights_iterator(source, resolved_source=resolved)  # noqa: SLF001
                continue
            calls.serve("sglang loader")
            ranks = _library.get_parallel()
            shared = ranks.tp_size * ranks.dp_size > 1
            for name, tensor in weights(resolved.weight_files, gpu, lambda _: False, shared=shared):
                yield source.prefix + name, tensor
    finally:
        release()


@wraps(_all_weights)
def _get_all_weights(
    self: Any,  # noqa: ANN401
    model_config: Any,  # noqa: ANN401
    model: Any,  # noqa: ANN401
) -> Iterator[tuple[str, torch.Tensor]]:
    gpu = _gpu(self, model_config)
    made: Iterator[tuple[str, torch.Tensor]] = (
        _all_weights(self, model_config, model)
        if gpu is None
        else _streamed(self, model_config, model, gpu)
    )
    return made


def replacements() -> list[Replacement]:
    """What is replaced by what."""
    return [(_all_weights, _get_all_weights, _default)]
