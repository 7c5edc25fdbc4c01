"""An engine folder becomes a Triton model repository; any repository is checked before a server starts.

Read in this order: ``generate`` (options, and the configuration of every model), ``tensors`` (what goes in and out of
them), ``pbtxt`` (how it is written), ``launch`` (how it is started), ``models`` (what runs inside Triton), ``check``
(what can be wrong), with ``repository`` and ``tokenizer`` (reading files that are not trusted), ``source`` (Python
models), ``ensemble`` (Triton's rules for what flows between models) and ``chain`` (what must agree between them).
"""
