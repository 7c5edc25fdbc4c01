"""What runs inside Triton: each file is copied into a repository, ``tokenization`` beside every model that uses it."""
