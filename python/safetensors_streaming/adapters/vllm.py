"""vLLM: a loader for the load format "safetensors_streaming".

It is vLLM's own default loader but for where the tensors of safetensors files come from.
"""

from __future__ import annotations

import time
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Any

from safetensors_streaming._native import release
from safetensors_streaming._upstream import calls
from safetensors_streaming.adapters._devices import gpu_of
from safetensors_streaming.adapters._weights import weights

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

    from safetensors_streaming.adapters import Replacement

LOAD_FORMAT = "safetensors_streaming"

_loaders: Any = import_module("vllm.model_executor.model_loader")
_files: Any = import_module("vllm.model_executor.model_loader.weight_utils")
_experts: Any = import_module("vllm.model_executor.model_loader.ep_weight_filter")
_config: Any = import_module("vllm.config")
_platforms: Any = import_module("vllm.platforms")


class StreamingModelLoader(_loaders.DefaultModelLoader):  # type: ignore[misc]
    """vLLM's default loader, with our stream in place of its iterator."""

    counter_before_loading_weights: float

    def __init__(self, load_config: Any) -> None:  # noqa: ANN401
        """Take what the default loader takes for the load format "safetensors"."""
        as_safetensors = _config.utils.replace(load_config, load_format="safetensors")
        super().__init__(as_safetensors)
        self._is_draft = False

    def load_weights(self, model: Any, model_config: Any) -> None:  # noqa: ANN401
        """Load them as the default loader does; the memory that was read into is given back."""
        self._is_draft = model_config.runner_type == "draft"
        try:
            super().load_weights(model, model_config)
        finally:
            release()

    def _get_weights_iterator(self, source: Any) -> Iterator[tuple[str, torch.Tensor]]:  # noqa: ANN401
        if self._reads_in_parts():
            lazily: Iterator[tuple[str, torch.Tensor]] = super()._get_weights_iterator(source)
            return lazily
        calls.serve("vllm loader")
        files = self._files_of(source)
        if self.counter_before_loading_weights == 0.0:
            self.counter_before_loading_weights = time.perf_counter()
        return self._weights(files, source.prefix)

    def _weights(self, files: list[str], prefix: str) -> Iterator[tuple[str, torch.Tensor]]:
        def skip(name: str) -> bool:
            return bool(_experts.should_skip_weight(name, self.local_expert_ids))

        device = self.load_config.device or _platforms.current_platform.device_type
        gpu = gpu_of(device) if device.startswith("cuda") else None  # torch knows not all of vLLM's
        config = _config.get_current_vllm_config_or_none()
        shared = config is not None and config.parallel_config.world_size_across_dp > 1
        for name, tensor in weights(files, gpu, skip, shared=shared):
            yield prefix + name, tensor

    def _files_of(self, source: Any) -> list[str]:  # noqa: ANN401
        """The files of a source, chosen and ordered as the default loader does."""
        folder, files, _, index = self._prepare_weights(
            source.model_or_path,
            source.subfolder,
            source.revision,
            source.fall_back_to_pt,
            source.allow_patterns_overrides,
        )
        if self._encoder_only_lm_prefixes is not None:
            files = _files.filter_mm_encoder_only_safetensors_files(
                files,
                folder,
                index,
                self._encoder_only_lm_prefixes,
                weights_mapper=self._encoder_only_weights_mapper,
            )
            if not files:
                raise RuntimeError(f"no file of {source.model_or_path!r} is for the encoder")
        if source.is_unused_weight is not None:
            files = _files.filter_safetensors_files_by_weight_name(files, source.is_unused_weight)
        return sorted(files, key=_files._natural_sort_key)  # noqa: SLF001 - as the default loader

    def _reads_in_parts(self) -> bool:
        """Whether the default loader's views of the files are the better ones.

        A stage of a pipeline and a draft model take a part of the tensors that they see, and an
        engram that stays on the CPU may have no room on the GPU.
        """
        config = _config.get_current_vllm_config_or_none()
        stages = 1 if config is None else config.parallel_config.pipeline_parallel_size
        engram = getattr(config, "engram_config", None)
        strategy = self.load_config.safetensors_load_strategy
        on_cpu = engram is not None and engram.cpu_offload
        return stages > 1 or self._is_draft or on_cpu or strategy not in {None, "lazy"}


@cache
def _register() -> None:
    _loaders.register_model_loader(LOAD_FORMAT)(StreamingModelLoader)


def replacements() -> list[Replacement]:
    """Nothing is replaced: vLLM has a table for loaders of others."""
    _register()
    return []
