"""Plugins for TensorRT itself: three of TensorRT-LLM's, as quickly deployable ones whose kernels engines carry.

``registration``, once imported, makes them known to TensorRT; it alone needs TensorRT. ``launches`` says how each is
launched, ``entries`` are the kernels with their parameters in TensorRT's order, and ``ahead`` compiles them.
"""
