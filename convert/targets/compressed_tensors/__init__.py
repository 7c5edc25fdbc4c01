"""compressed-tensors, which vLLM, SGLang and transformers read."""
