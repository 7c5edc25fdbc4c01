"""Living runtimes as readers of a folder: who reads it right, who refuses it, who would misread it without a word."""
