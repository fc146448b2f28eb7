"""What vLLM and SGLang call at the start of each of their processes, by the package's entry points.

They call it several times, also before they fork: nothing but `patch()` is done here, which is made
for that. The adapter installs itself when the engine imports its loaders.
"""

import logging

from safetensors_streaming._patch import patch
from safetensors_streaming.adapters import ADAPTERS

_logger = logging.getLogger(__name__)


def vllm() -> None:
    """Entry point of the group `vllm.general_plugins`."""
    _install("vllm", "the load format 'safetensors_streaming' is not registered")


def sglang() -> None:
    """Entry point of the group `sglang.srt.plugins`."""
    _install("sglang", "weights for GPUs are not streamed")


def _install(library: str, otherwise: str) -> None:
    patch()
    for adapter in ADAPTERS:
        if adapter.library == library and (obstacle := adapter.obstacle()):
            _logger.warning("%s %s: %s; all else is served", library, obstacle, otherwise)
