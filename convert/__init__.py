"""Hugging Face folder in, TensorRT-LLM checkpoint out; and a runtime that executes what was written.

Rooms, each of which imports only those named before it:

    files         what lies on a disk: JSON, tensors, staging, options' bounds
    models        families, dimensions, what a layer computes
    numbers       arithmetic on tensors: ranges, smoothing, AWQ, GPTQ, FP8, QoQ, rounding; knows no model
    sources       Hugging Face folders, those that are quantized already, texts
    readers       living runtimes as readers of a folder: right, refused, or misread
    statistics    what is gathered of a layer's inputs
    quantize      which scheme each linear has, and what each scheme makes of a layer
    targets       how a target names, cuts, packs and writes it, and reads it back; one file a format
    prove         the written integers executed beside the source
    job           a conversion, a comparison
"""
