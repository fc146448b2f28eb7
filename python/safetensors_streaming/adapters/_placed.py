"""What class methods of diffusers make for callers who name no device: moved to that of `patch`.

As if the caller had called `.to(device)`; the weights are loaded there at once.
"""

from __future__ import annotations

from functools import wraps
from typing import TYPE_CHECKING, Any

from safetensors_streaming._default import device_for_caller_of, moved_to

if TYPE_CHECKING:
    from safetensors_streaming.adapters import Replacement


def placed(owner: type, name: str) -> Replacement:
    """The class method of that name, and what takes its place."""
    original = vars(owner)[name]

    @wraps(original.__func__)
    def method(cls: type, *args: Any, **keywords: Any) -> Any:  # noqa: ANN401
        load = original.__get__(None, cls)
        named = keywords.get("device_map") is not None
        default = "cpu" if named else device_for_caller_of("diffusers")
        if default == "cpu":
            return load(*args, **keywords)
        outer = moved_to.set(default)
        try:
            made = load(*args, **keywords)
        finally:
            moved_to.reset(outer)
        # A model's loading information may come with it.
        model = made[0] if isinstance(made, tuple) else made
        if getattr(model, "hf_quantizer", None) is None:  # a quantiser has placed its model
            model.to(default)
        return made

    return original, classmethod(method), owner
