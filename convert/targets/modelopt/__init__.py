"""ModelOpt's unified folders, which TensorRT-LLM's PyTorch backend and vLLM read."""
