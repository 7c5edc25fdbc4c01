"""Models as data: families, dimensions, rotary embeddings, and what a layer computes."""
