"""Generation: a quantized model in memory, prompts in flight, tokens out; above it, text."""
