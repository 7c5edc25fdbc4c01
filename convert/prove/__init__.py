"""The proof: what was written is executed beside its source."""
