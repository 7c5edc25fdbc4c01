"""Folders whose weights are quantized already, one file a tool's format."""
