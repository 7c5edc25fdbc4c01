"""The ``enginesmith`` command: options, progress, tables and exit codes; no logic."""
