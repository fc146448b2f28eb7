"""Devices as torch takes them."""

import torch


def gpu_of(device: str | int | torch.device | None) -> int | None:
    """The number of the GPU that a device is, or None; "cuda" is torch's current one."""
    if device is None or device == "disk" or torch.version.cuda is None:
        return None
    named = torch.device(device)
    if named.type != "cuda":
        return None
    return torch.cuda.current_device() if named.index is None else named.index
