"""TensorRT-LLM's plugins: one file each, with its identity and, in PyTorch, what it computes.

This is the ground floor: it imports no other part of the package. ``convert`` writes the tensors that a
plugin reads, ``build`` enables it, and the checkpoint runtime executes a checkpoint by calling the
references here. Activations are in the engine's dtype (float16 or bfloat16) wherever the engine stores
them, so rounding happens where the engine rounds; arithmetic between two stores is float32, but where a
kernel's is not (``few_tokens``). Integers, scales and dequantized weights are the kernels' to the bit; the
order in which matrix units sum floats is not known, so outputs may differ by the last bit.
"""
