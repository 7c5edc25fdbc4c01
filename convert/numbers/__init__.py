"""Arithmetic on tensors: ranges, smoothing, AWQ, GPTQ, FP8, QoQ, rounding. Nothing here knows a model or a target."""
