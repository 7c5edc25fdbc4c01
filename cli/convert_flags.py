"""Options that convert and compare share."""

from __future__ import annotations

from ..convert.job.options import ConvertOptions
from ..plugins.weight_only_groupwise_quant_matmul import GROUP_SIZES
from .options import DEVICES, option_of

kv_cache = option_of(ConvertOptions, "kv_cache", help="Quantize the KV cache.")
group_size = option_of(
    ConvertOptions,
    "group_size",
    metavar="|".join(str(size) for size in (32, *GROUP_SIZES)),
    help="Input channels that share a scale, for AWQ and GPTQ; 64 where 128 does not divide the model's sizes; "
    "32 for compressed-tensors.  "
    "[default: 128, or what a quantized folder has]",
)
dtype = option_of(ConvertOptions, "dtype", help="The engine's dtype; auto is the source's, float32 becoming float16.")
calib_size = option_of(ConvertOptions, "calib_size", help="Calibration sequences.")
calib_seq_len = option_of(ConvertOptions, "calib_seq_len", "--calib_max_seq_length", help="Tokens in each.")
device = option_of(ConvertOptions, "device", metavar=DEVICES, help="Where to compute.")
seed = option_of(ConvertOptions, "seed", help="Draws the tokens that searches look at.")
