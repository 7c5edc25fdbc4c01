"""Hugging Face folder in, TensorRT-LLM checkpoint out; and a runtime that executes what was written.

Read in this order: ``convert_options`` and ``converter`` (the pass), ``source``, ``model`` and ``readymade`` (what
goes in), ``architectures``, ``scheme``, ``precision``, ``quant_config``, ``layout`` and ``storage`` (what makes a
layer, how each part of it is quantized, and how it is cut and stored), ``calibration``, ``calibrate``, ``gram`` and
``statistics_file`` (statistics), ``quantizer``, ``quantize`` and ``layer`` (one layer), ``smoothquant``,
``groupwise`` and ``direct`` (the schemes), ``smoothing``, ``awq``, ``gptq``, ``qserve``, ``fp8``, ``ranges``,
``rounding``, ``rotation`` (the arithmetic), ``packing`` and ``repack`` (integers as others store them),
``checkpoint`` (files), ``joined``, ``runtime``, ``execution``, ``verify``, ``compare`` (the proof).
"""
