"""``enable_reproducibility``: equal runs from equal code and data, as far as torch can."""

from __future__ import annotations

import os
import random

import torch

__all__ = ["enable_reproducibility"]


def enable_reproducibility(seed: int = 0) -> None:
    """Seeds random, numpy and torch and asks torch for deterministic algorithms; call it first in the training function."""
    # cuBLAS reads this when its first handle is made: https://docs.nvidia.com/cuda/cublas/#results-reproducibility
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    random.seed(seed)
    torch.manual_seed(seed)
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False
    try:
        import numpy as np
    except ModuleNotFoundError:  # torch runs without it
        return
    np.random.seed(seed)
