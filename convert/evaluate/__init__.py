"""Evaluation: the tasks of lm-evaluation-harness, answered by a folder's own arithmetic, its float source beside it."""
