"""PyTorch and NumPy, imported when they are first used: tables and build plans need none of them."""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as numpy
    import torch as torch
else:

    class _Lazy:
        def __init__(self, name: str):
            self._name, self._module = name, None

        def __getattr__(self, name: str) -> Any:
            if self._module is None:
                self._module = import_module(self._name)
            return getattr(self._module, name)

    numpy, torch = _Lazy("numpy"), _Lazy("torch")
