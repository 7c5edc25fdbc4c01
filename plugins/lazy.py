"""PyTorch and NumPy, imported when they are first used: tables and build plans need none of them."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as numpy
    import torch as torch
else:

    class _Lazy:
        def __init__(self, name: str):
            self._name = name

        def __getattr__(self, name: str) -> Any:
            from importlib import import_module

            return getattr(import_module(self._name), name)

    numpy, torch = _Lazy("numpy"), _Lazy("torch")
