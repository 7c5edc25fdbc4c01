"""An engine folder becomes a Triton model repository; any repository is checked before a server starts.

Read in this order: ``generate`` (options, and the configuration of every model), ``tensors`` (what goes in and out of
them), ``pbtxt`` (how it is written), ``models`` (what runs inside Triton), ``check`` (what can be wrong), with
``ensemble`` (Triton's rules for what flows between models) and ``repository`` (reading files that are not trusted).
"""
