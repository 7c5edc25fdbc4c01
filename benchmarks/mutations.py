"""What ``mutants.py`` changes in a file: a check that is dropped, or one operation that becomes another.

A kind of mutation names every change that it can make in a file (``keys``), makes one (``changed``), and puts marks
into a file by which a run tells which tests reach a change (``marked``; ``place`` is a change's mark).
"""

from __future__ import annotations

import ast
import copy
from collections.abc import Iterator
from typing import Any

HIT = "__place_reached__"
REPORTS = ("problems", "reasons", "failures", "found")
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.Div, ast.Div: ast.Mult, ast.Pow: ast.Mult, ast.FloorDiv: ast.Mult,
    ast.Mod: ast.Mult, ast.BitAnd: ast.BitOr, ast.BitOr: ast.BitAnd, ast.LShift: ast.RShift, ast.RShift: ast.LShift,
}  # fmt: skip
COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE, ast.LtE: ast.Lt, ast.Gt: ast.GtE, ast.GtE: ast.Gt, ast.Eq: ast.NotEq, ast.NotEq: ast.Eq,
    ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
}  # fmt: skip
# Methods without which a value is the same kind of value.
LEFT_OUT = (
    "abs",
    "clamp",
    "clamp_",
    "clamp_min",
    "clamp_max",
    "round",
    "round_",
    "t",
    "contiguous",
    "sqrt",
    "log",
    "exp",
)


# (where, the node that holds it, in which field, at which place of it, what stands there instead)
Change = tuple[str, ast.AST, str, int | None, ast.AST]


def hit(place: str, node: ast.AST) -> ast.stmt:
    """A statement that notes that it was reached."""
    return ast.copy_location(ast.parse(f"__import__('builtins').{HIT}({place!r})").body[0], node)


class Checks:
    """A statement that refuses (``raise``, but not the bare one) or that reports (a problem or a reason added to a
    list, a fault yielded). Dropped, a ``raise`` does nothing; in an ``except`` clause the first error is raised."""

    @staticmethod
    def is_check(node: ast.AST) -> bool:
        if isinstance(node, ast.Raise):
            return node.exc is not None
        if isinstance(node, ast.AugAssign):
            return isinstance(node.target, ast.Name) and node.target.id in REPORTS
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Call):
            function = node.value.func
            named = isinstance(function, ast.Attribute) and isinstance(function.value, ast.Name)
            return named and function.attr == "append" and function.value.id in REPORTS
        return isinstance(node, ast.Expr) and isinstance(node.value, ast.Yield) and "warnings" not in ast.dump(node)

    def keys(self, tree: ast.Module, name: str) -> list[str]:
        return [f"{name}:{node.lineno}" for node in ast.walk(tree) if self.is_check(node)]  # type: ignore[attr-defined]

    def place(self, key: str) -> str:
        return key

    def marked(self, tree: ast.Module, name: str) -> ast.Module:
        return _Checks(name, None).visit(tree)

    def changed(self, tree: ast.Module, name: str, key: str) -> ast.Module:
        return _Checks(name, key).visit(tree)


class _Checks(ast.NodeTransformer):
    """Marks every check of a file, or drops one."""

    def __init__(self, name: str, dropped: str | None):
        self.name, self.dropped, self.handlers = name, dropped, 0

    def visit_ExceptHandler(self, node: ast.ExceptHandler) -> ast.AST:
        self.handlers += 1
        self.generic_visit(node)
        self.handlers -= 1
        return node

    def visit(self, node: ast.AST) -> Any:
        if not Checks.is_check(node):
            return self.generic_visit(node)
        key = f"{self.name}:{node.lineno}"  # type: ignore[attr-defined]
        if self.dropped is None:
            return [hit(key, node), node]
        if key != self.dropped:
            return node
        instead: ast.stmt = ast.Raise() if self.handlers and isinstance(node, ast.Raise) else ast.Pass()
        return ast.copy_location(instead, node)


class Arithmetic:
    """An operator or a comparison that becomes another, a condition turned round, a number one larger, a method such as
    ``clamp`` left out; inside functions, not in what is said to people."""

    def keys(self, tree: ast.Module, name: str) -> list[str]:
        return [f"{name}:{where}" for where, *_ in self._changes(tree)]

    def place(self, key: str) -> str:
        return f"{key.partition(':')[0]}:{key.rpartition('@')[2]}"

    def marked(self, tree: ast.Module, name: str) -> ast.Module:
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef):
                node.body.insert(0, hit(f"{name}:{node.lineno}", node.body[0]))
        return tree

    def changed(self, tree: ast.Module, name: str, key: str) -> ast.Module:
        for where, holder, field, index, new in self._changes(tree):
            if f"{name}:{where}" == key:
                if index is None:
                    setattr(holder, field, new)
                else:
                    getattr(holder, field)[index] = new
                break
        return tree

    def _changes(self, tree: ast.Module) -> Iterator[Change]:
        for function in (node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)):
            for statement in function.body:
                yield from self._inside(statement, function)

    def _inside(self, holder: ast.AST, function: ast.FunctionDef) -> Iterator[Change]:
        if isinstance(holder, (ast.FunctionDef, ast.Raise, ast.JoinedStr, ast.Assert)):
            return
        for field, value in ast.iter_fields(holder):
            for index, node in enumerate(value) if isinstance(value, list) else [(None, value)]:
                if not isinstance(node, ast.AST) or field in ("annotation", "returns"):
                    continue
                new = other(node)
                if new is not None:
                    where = f"{span(node)}:{type(node).__name__}@{function.lineno}"
                    yield where, holder, field, index, ast.copy_location(new, node)
                yield from self._inside(node, function)


def span(node: Any) -> str:
    """Where an expression begins and ends: a * b / c begins where a * b does."""
    end = "" if node.end_lineno == node.lineno else f"{node.end_lineno}:"
    return f"{node.lineno}:{node.col_offset}-{end}{node.end_col_offset}"


def other(node: ast.AST) -> ast.AST | None:
    """What stands instead of an expression; None where there is nothing to change."""
    new: Any = copy.copy(node)
    if isinstance(node, (ast.BinOp, ast.AugAssign)) and type(node.op) in OPERATORS:
        new.op = OPERATORS[type(node.op)]()
    elif isinstance(node, ast.Compare):
        new.ops = [COMPARISONS[type(node.ops[0])](), *node.ops[1:]]
    elif isinstance(node, ast.BoolOp):
        new.op = ast.Or() if isinstance(node.op, ast.And) else ast.And()
    elif isinstance(node, ast.IfExp):
        new.body, new.orelse = node.orelse, node.body
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.Not)):
        new = copy.copy(node.operand)
    elif isinstance(node, ast.Constant) and type(node.value) in (int, float):
        new.value = node.value + 1
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        new.value = not node.value
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in LEFT_OUT:
        new = copy.copy(node.func.value)
    else:
        return None
    return new


KINDS = {"checks": Checks(), "arithmetic": Arithmetic()}
