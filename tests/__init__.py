"""Without a GPU, Triton computes kernels with NumPy: it has to know before anything imports it."""

import importlib.util
import os

import torch

from . import interpreting

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")
    if importlib.util.find_spec("triton") is not None:
        interpreting.mend()
