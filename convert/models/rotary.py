"""The rotary embedding: frequencies of every type, and the tables of cos and sin that they make.

    plain     f_i = base^(-2i/d)
    linear    f_i / factor
    dynamic   plain, for no sequence is longer than the model's positions
    llama3    f_i / factor for long wavelengths, f_i for short ones, a mean of both between (Llama 3.1's own code)
    yarn      the same with bounds counted in rotations, and cos and sin times an attention factor
    longrope  f_i / s_i, or f_i / l_i in sequences beyond the original length, and cos and sin times a factor of their
              own, which engines have in their tables (Ding et al. 2024, "LongRoPE")

Peng et al. 2023, "YaRN: Efficient Context Window Extension of Large Language Models", section 3.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

from ...plugins.lazy import torch
from .model import Model
from .pieces import INTERLEAVED
from .rope import table_scale

Change = Callable[["torch.Tensor"], "torch.Tensor"]


def rotary_frequencies(model: Model) -> tuple[torch.Tensor, float]:
    """Inverse frequencies of the rotary embedding, float32 [rotary_dim / 2], and what cos and sin are multiplied by;
    zeros, which turn nothing, for a family without."""
    if not model.family.rotary:
        return torch.zeros(model.head_size // 2), 1.0
    scaling, size = model.rotary_scaling or {"rope_type": "default"}, model.rotary_dim
    plain = 1.0 / powers(model.rotary_base, size)
    kind = scaling["rope_type"]
    if kind == "linear":
        return plain / scaling["factor"], 1.0
    if kind == "llama3":
        return llama3(plain, scaling), 1.0
    if kind == "yarn":
        return yarn(model.rotary_base, size, scaling), model.attention_scaling
    return plain, 1.0


def powers(base: float, size: int) -> torch.Tensor:
    """base^(2i/d), float32 [d / 2]."""
    exponents: torch.Tensor = torch.arange(0, size, 2, dtype=torch.float32) / size
    return torch.pow(base, exponents)


def llama3(plain: torch.Tensor, scaling: dict[str, Any]) -> torch.Tensor:
    """Frequencies whose wavelength is long against the original context are divided by the factor."""
    factor, low, high = scaling["factor"], scaling["low_freq_factor"], scaling["high_freq_factor"]
    context = scaling["original_max_position_embeddings"]
    wavelength = 2 * math.pi / plain
    divided = torch.where(wavelength > context / low, plain / factor, plain)
    share = (context / wavelength - low) / (high - low)
    between = ~(wavelength < context / high) & ~(wavelength > context / low)
    return torch.where(between, (1 - share) * divided / factor + share * divided, divided)


def yarn(base: float, size: int, scaling: dict[str, Any]) -> torch.Tensor:
    """Frequencies that turn often within the original context stay, those that hardly turn are divided by the factor,
    on a ramp between."""
    context = scaling["original_max_position_embeddings"]

    def dimension(rotations: float) -> float:
        """The channel pair that turns so often within the original context."""
        return (size * math.log(context / (rotations * 2 * math.pi))) / (2 * math.log(base))

    first, last = dimension(scaling.get("beta_fast") or 32), dimension(scaling.get("beta_slow") or 1)
    if scaling.get("truncate", True):
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, size - 1)
    last = last + 0.001 if first == last else last
    ramp = ((torch.arange(size // 2, dtype=torch.float32) - first) / (last - first)).clamp(0, 1)
    kept, pairs = 1 - ramp, powers(base, size)
    blended: torch.Tensor = 1.0 / (scaling["factor"] * pairs) * (1 - kept) + 1.0 / pairs * kept
    return blended


class Turns:
    """cos and sin of every layer's rotary embedding, float32 [tokens, rotary_dim], each where its channel is.

    Args:
        frequencies: ``rotary_frequencies``, or those of a checkpoint's table.
        tokens: sequence length.
        change: what is done to both.
    """

    def __init__(self, model: Model, frequencies: torch.Tensor, tokens: int, change: Change):
        self.model, scaling = model, model.rotary_scaling
        scale = table_scale(scaling, model.max_position_embeddings)
        if scaling is not None and scaling["rope_type"] == "longrope":
            longer = tokens > scaling["original_max_position_embeddings"]
            frequencies = frequencies / torch.tensor(scaling["long_factor" if longer else "short_factor"])
        self.whole = tuple(change(table * scale) for table in rotary_tables(model, frequencies, tokens))
        self.windowed = self.whole
        if model.local_base is not None:
            own = 1.0 / powers(model.local_base, model.rotary_dim)
            self.windowed = tuple(change(table) for table in rotary_tables(model, own, tokens))

    def of(self, layer: int) -> tuple[torch.Tensor, torch.Tensor]:
        """cos, sin."""
        cos, sin = self.whole if self.model.window_of(layer) is None else self.windowed
        return cos, sin


def rotary_tables(model: Model, frequencies: torch.Tensor, tokens: int) -> tuple[torch.Tensor, torch.Tensor]:
    """cos and sin of positions times frequencies, float32 [tokens, rotary_dim] each."""
    angles = torch.outer(torch.arange(tokens, device=frequencies.device).float(), frequencies)
    interleaved = model.family.positions == INTERLEAVED
    angles = angles.repeat_interleave(2, -1) if interleaved else torch.cat((angles, angles), -1)
    return angles.cos(), angles.sin()


def with_scaled_queries(tensors: dict[str, torch.Tensor], model: Model, times: float) -> dict[str, torch.Tensor]:
    """A layer's tensors with larger queries: by logical linear, or by the norm behind them where there is one."""
    if times == 1:
        return tensors
    norms = model.family.query_key_norms
    tensor = model.family.attention[0] if norms is None else norms[0].tensor
    names = (f"{tensor}.{kind}" for kind in ("weight", "bias"))
    return tensors | {name: tensors[name].float() * times for name in names if name in tensors}
