"""Hugging Face folder in, TensorRT-LLM checkpoint out; and a runtime that executes what was written.

Read in this order: ``converter`` (the pass), ``source`` and ``model`` (what goes in), ``architectures`` and ``layout``
(what makes a layer, and how it is cut), ``calibrate`` (statistics), ``smoothing``, ``smoothquant``, ``ranges``,
``rounding``, ``rotation`` (the arithmetic), ``checkpoint`` (files), ``joined``, ``runtime``, ``verify`` (the proof).
"""
