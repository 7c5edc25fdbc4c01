"""How functions become PyTorch operators that check what they are given."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from typing import Any

import torch

from .operator_arguments import RULES, Rule, check, check_devices, check_there, readable


def operator(
    name: str, fake: Callable[..., Any], rules: dict[str, Rule] = RULES, mutates: tuple[str, ...] = ()
) -> Callable[[Callable[..., Any]], Any]:
    """Register a function.

    Args:
        fake: makes what it returns, without numbers, of the same arguments.
        rules: what its arguments may be, and others'.
        mutates: those that it writes into.
    """

    def register(function: Callable[..., Any]) -> Any:
        parameters = signature(function).parameters
        defaults = {name: one.default for name, one in parameters.items()}
        tensors = [name for name, one in parameters.items() if one.annotation == "Tensor"]
        assert defaults.keys() <= rules.keys()

        @wraps(function)
        def checked(*arguments: Any, **named: Any) -> Any:
            given = defaults | dict(zip(defaults, arguments, strict=False)) | named
            check_there(given, tensors, rules)
            check_devices(given.values())
            check(given, rules)
            return function(**{name: readable(name, value) for name, value in given.items()})

        def shaped(*arguments: Any, **named: Any) -> Any:
            check_devices((*arguments, *named.values()))
            return fake(*arguments, **named)

        schema = torch.library.infer_schema(function, mutates_args=mutates)
        made = torch.library.custom_op(f"enginesmith::{name}", checked, mutates_args=mutates, schema=schema)
        made.register_fake(shaped)
        return made

    return register
