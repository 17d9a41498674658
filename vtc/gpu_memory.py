"""What memory the GPU has to give, as PyTorch tells it."""

from __future__ import annotations


def gpu_memory() -> int | None:
    """Free bytes of the first CUDA GPU that PyTorch sees; None where it sees none."""
    try:
        import torch
    except ImportError:
        return None
    if not torch.cuda.is_available():
        return None
    free, _ = torch.cuda.mem_get_info(0)
    return int(free)
