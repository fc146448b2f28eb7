"""Libraries that know where each tensor goes before they ask for it: one file each, one table.

A library opens files for the CPU also where the weights go to a GPU, which it knows one level up.
Its adapter reads that plan; everything else stays the library's. `patch()` installs an adapter when
its library is imported, in the versions that it was checked with; in others the library is served
as any caller is.
"""

from collections.abc import Callable
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from safetensors_streaming.adapters._versions import release

#: A function of the library's and what takes its place; where it is a method, and the class.
Replacement = tuple[Any, Any] | tuple[Any, Any, type]


@dataclass(frozen=True)
class Adapter:
    """What is known of a library.

    Attributes:
        library: The name it is imported by.
        module: The module after whose import the adapter can be installed.
        since: The first version that it was checked with.
        before: The first version that it was not checked with any more.
        replacements: What the adapter replaces, called once the module is there.
    """

    library: str
    module: str
    since: str
    before: str
    replacements: Callable[[], list[Replacement]]

    def obstacle(self) -> str | None:
        """Why the installed version is not adapted to, or None."""
        installed: str = import_module(self.library).__version__  # however it was distributed
        if release(self.since) <= release(installed) < release(self.before):
            return None
        return f"{installed} is not among {self.since} <= version < {self.before}"


def _of(name: str) -> Callable[[], list[Replacement]]:
    def replacements() -> list[Replacement]:
        made: list[Replacement] = import_module(f"{__name__}.{name}").replacements()
        return made

    return replacements


ADAPTERS = (
    Adapter("transformers", "transformers.modeling_utils", "5.17", "5.25", _of("transformers")),
    Adapter(
        "transformers", "transformers.pipelines", "5.17", "5.25", _of("transformers_pipelines")
    ),
    Adapter("diffusers", "diffusers.models.modeling_utils", "0.42", "0.43", _of("diffusers")),
    Adapter(
        "diffusers",
        "diffusers.pipelines.pipeline_utils",
        "0.42",
        "0.43",
        _of("diffusers_pipelines"),
    ),
    Adapter(
        "sentence_transformers",
        "sentence_transformers.base.model",
        "6.2",
        "6.3",
        _of("sentence_transformers"),
    ),
    Adapter("vllm", "vllm.model_executor.model_loader", "0.32", "0.34", _of("vllm")),
    Adapter("sglang", "sglang.srt.model_loader.loader", "0.5.23", "0.5.24", _of("sglang")),
)
