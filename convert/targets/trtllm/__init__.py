"""TensorRT-LLM checkpoints: names, packings, cuts over ranks, configuration; written, and read back."""
