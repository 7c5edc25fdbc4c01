"""An engine folder becomes a Triton model repository; any repository is checked before a server starts.

Read in this order: ``options`` (what can be chosen), ``generate``, ``configs`` (the configuration of every model),
``tensors`` (what goes in and out of them), ``special_tokens`` (what ends an answer), ``pbtxt`` (how it is written),
``launch`` (how it is started), ``models`` (what runs inside Triton), ``check`` (what can be wrong), with ``repository``
and ``tokenizer`` (reading files that are not trusted; ``bounded`` for what is run), ``server_rules`` and
``backend_rules`` (what tritonserver and TensorRT-LLM's backend refuse), ``parameters`` (the keys that models know),
``source`` (Python models), ``ensemble`` (Triton's rules for what flows between models) and ``chain`` (what must agree
between them).
"""
