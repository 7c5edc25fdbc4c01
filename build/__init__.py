"""Checkpoint to build plan to engine to Triton model repository: ``engine_folder``, ``triton``."""
