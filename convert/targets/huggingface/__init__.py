"""What the folders of living runtimes have in common: Hugging Face's names, shards with an index, whole models."""
