"""Whole jobs over a model: a conversion, a comparison."""
