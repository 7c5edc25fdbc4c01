"""How a conversion or a comparison tells where it is."""

from __future__ import annotations

from collections.abc import Callable

# (layer, phase, tokens done in that layer)
OnProgress = Callable[[int, str, int], None]
