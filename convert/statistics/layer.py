"""What calibration learns of one decoder layer: one set of statistics per linear input.

Every algorithm reads the same statistics; none asks for another forward pass.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch

from ..numbers.inputs import InputStatistics
from .wanted import Wanted


@dataclass
class LayerStatistics:
    """Statistics of one decoder layer.

    Attributes:
        inputs: by group name.
        output_amax: the largest |output| of each linear's channels, float32 [out], by Hugging Face part; empty unless
            asked for.
        stream_amax: the largest |hidden state| that each norm reads, by TensorRT-LLM name; empty unless asked for.
        key_amax: float32 [kv_size], of the keys after the rotary embedding; None unless asked for.
        value_amax: float32 [kv_size], of the values; None unless asked for.
        query_amax: float32 [query_size], of the queries before the rotary embedding; None unless asked for.
        hidden_amax: the largest |hidden state| behind the layer.
        tokens: how many each expert's input had, by group name; empty without experts.
    """

    inputs: dict[str, InputStatistics]
    output_amax: dict[str, torch.Tensor] = field(default_factory=dict)
    stream_amax: dict[str, float] = field(default_factory=dict)
    key_amax: torch.Tensor | None = None
    value_amax: torch.Tensor | None = None
    query_amax: torch.Tensor | None = None
    hidden_amax: float = 0.0
    tokens: dict[str, int] = field(default_factory=dict)

    def only(self, wanted: Wanted) -> LayerStatistics:
        """What one algorithm wants of statistics that were gathered for several: the same as if gathered for it."""
        inputs = self.inputs if wanted.inputs else {}
        if not wanted.gram:
            inputs = {name: replace(of, gram=None) for name, of in inputs.items()}
        if not wanted.magnitude:
            inputs = {name: replace(of, magnitude=None) for name, of in inputs.items()}
        seen = replace(self, inputs=inputs)
        if not wanted.outputs:
            seen = replace(seen, output_amax={}, stream_amax={})
        return seen if wanted.cache else replace(seen, key_amax=None, value_amax=None, query_amax=None)
