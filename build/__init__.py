"""Checkpoint to build plan to engine to Triton model repository.

Read in this order: ``plan`` (what is decided and refused), ``checkpoint_folder``, ``releases``, ``gpus``,
``algorithms``, ``flags``, ``build_config``, ``memory``, ``network`` (what it is decided from), ``script`` and
``build_engine`` (the plan as files, built anywhere), ``engines``, ``engine_folder``, ``check_engine`` (engines here),
``triton`` (serving), ``recipe`` and ``pipeline`` (all of it in one run).
"""
