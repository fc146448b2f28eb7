"""Devices as torch takes them."""

import torch


def gpu_of(device: str | int | torch.device | None, unnumbered: int | None = None) -> int | None:
    """The number of the GPU that a device is, or None.

    A device without a number is `unnumbered`, or the calling thread's current one.
    """
    if device is None or device == "disk" or torch.version.cuda is None:
        return None
    named = torch.device(device)
    if named.type != "cuda":
        return None
    if named.index is not None:
        return named.index
    return torch.cuda.current_device() if unnumbered is None else unnumbered
