"""Text and token ids: programs that import nothing of the package, for they are copied into Triton repositories too."""
