"""What class methods of diffusers make for callers who name no device: moved to that of `patch`.

As if the caller had called `.to(device)`; the weights are loaded there at once.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from safetensors_streaming._default import device_for_caller_of, device_named, moved_to

if TYPE_CHECKING:
    from safetensors_streaming.adapters import Replacement


def placed(owner: type, name: str) -> Replacement:
    """The class method of that name, and what takes its place."""
    original = vars(owner)[name]

    @wraps(original.__func__)
    def method(cls: type, *args: Any, **keywords: Any) -> Any:  # noqa: ANN401
        load = original.__get__(None, cls)
        named = any(keywords.get(wish) is not None for wish in ("device_map", "parallel_config"))
        default = "cpu" if named else device_for_caller_of("diffusers")
        inner: Any = device_named if named else moved_to
        outer = inner.set(True if named else None if default == "cpu" else default)
        try:
            made = load(*args, **keywords)
        finally:
            inner.reset(outer)
        # A model's loading information may come with it.
        model = made[0] if isinstance(made, tuple) else made
        if default != "cpu" and _can_be_moved(model):
            model.to(default)
        return made

    return original, classmethod(method), owner


def _can_be_moved(made: Any) -> bool:  # noqa: ANN401
    """Whether nothing of it is moved by hooks, or was placed by a quantiser."""
    parts = [made, *getattr(made, "components", {}).values()]
    return getattr(made, "hf_quantizer", None) is None and not any(
        hasattr(part, "_hf_hook") for part in parts
    )
