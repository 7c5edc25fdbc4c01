"""The recipe that tests change."""

from __future__ import annotations

from typing import Any

RECIPE: dict[str, Any] = {
    "model_dir": "hf",
    "output_dir": "release",
    "convert": {
        "quant": "W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN",
        "calib": "ids.safetensors",
        "calib_size": 8,
        "calib_seq_len": 24,
        "tp_size": 2,
    },
    "verify": {"text": "ids.safetensors", "seq_len": 24, "max_ppl_increase": 50},
    "build": {"gpu": "A100", "release": "1.2.1", "max_batch_size": 4, "max_input_len": 32},
    "triton": {"decoupled": True},
}
