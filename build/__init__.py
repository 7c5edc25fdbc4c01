"""Checkpoint to build plan to engine to Triton model repository. Nothing lives here yet."""
