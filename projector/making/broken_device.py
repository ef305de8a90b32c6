"""Whether this process's GPU still works; loads no torch where nothing else has."""

import sys


class DeviceBrokenError(RuntimeError):
    """A GPU that fails at whatever it is asked until its process ends, as after an illegal memory access."""


def device_is_broken() -> bool:
    """Whether this process's GPU, where it has used one, no longer does even the simplest thing."""
    torch = sys.modules.get("torch")  # a process without it has used no GPU
    if torch is None or not torch.cuda.is_initialized():
        return False
    try:
        torch.zeros(1, device="cuda").item()
    except torch.OutOfMemoryError:
        return False
    except RuntimeError:
        return True
    return False
