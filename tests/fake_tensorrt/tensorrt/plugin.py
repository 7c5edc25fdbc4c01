"""A stand-in for ``tensorrt.plugin``: registers what it is given, as strictly, and evaluates symbolic integers.

It follows TensorRT 11's Python API. What would only fail there, once an engine is built, is not noticed here.
"""

import inspect
import typing

DEFINED = {}
# TensorRT takes int, float and bytes too; see ``registration`` for why these are not used.
ATTRIBUTES = (str, bool)


class SymInt32:
    """An int32 that is known once shapes are: a function of the sizes that have names."""

    def __init__(self, value):
        if not isinstance(value, (int, SymInt32)) and not callable(value):
            raise TypeError(f"{value!r} is no symbolic integer")
        self.of = (lambda sizes: value) if isinstance(value, int) else getattr(value, "of", value)

    def operation(self, other, function):
        other = SymInt32(other)
        return type(self)(lambda sizes: function(self.of(sizes), other.of(sizes)))

    def __mul__(self, other):
        return self.operation(other, lambda a, b: a * b)


class ShapeExpr(SymInt32):
    pass


class SymExprs:
    kind = SymInt32

    def __init__(self, length):
        self.held = [None] * length

    @classmethod
    def from_tuple(cls, values):
        made = cls(len(values))
        made.held = [value if isinstance(value, cls.kind) else cls.kind(value) for value in values]
        return made

    def __len__(self):
        return len(self.held)

    def __getitem__(self, index):
        return self.held[index]

    def values(self, sizes):
        return [one.of(sizes) for one in self.held]


class SymIntExprs(SymExprs):
    pass


class ShapeExprs(SymExprs):
    kind = ShapeExpr


class KernelLaunchParams:
    FIELDS = ("grid_x", "grid_y", "grid_z", "block_x", "block_y", "block_z", "shared_mem")

    def __init__(self):
        for field in self.FIELDS:
            setattr(self, field, 0 if field == "shared_mem" else 1)

    def __setattr__(self, name, value):
        if name not in self.FIELDS:
            raise AttributeError(name)
        self.__dict__[name] = SymInt32(value)

    def values(self, sizes):
        return {field: getattr(self, field).of(sizes) for field in self.FIELDS}


class Shape(tuple):
    """Sizes, -1 where a profile bounds them: ``max``."""

    @property
    def is_dynamic(self):
        return -1 in self


class TensorDesc:
    def __init__(self, shape_expr, dtype):
        self.shape_expr, self.dtype, self.known = shape_expr, dtype, None

    @property
    def shape(self):
        if self.known is None:
            raise ValueError("no shape is known yet")
        return self.known

    @property
    def is_dynamic(self):
        return self.shape.is_dynamic

    def like(self):
        return TensorDesc(self.shape_expr, self.dtype)


class AutoTuneCombination:
    def __init__(self, io_types=None, layouts=None, tactics=None):
        self.variants = [[one.strip() for one in kinds.split("|")] for kinds in io_types.split(",")]
        self.layouts, self.tactics = layouts, tactics

    def combinations(self):
        count = max(map(len, self.variants))
        assert all(len(kinds) in (1, count) for kinds in self.variants)
        return [tuple(kinds[i % len(kinds)] for kinds in self.variants) for i in range(count)]


def cdiv(first, second):
    if isinstance(first, int) and isinstance(second, int):
        raise ValueError("one of them has to be symbolic")
    return ShapeExpr(first).operation(second, lambda a, b: -(-a // b))


def from_shape_expr(shape_expr, dtype):
    return TensorDesc(ShapeExprs.from_tuple(tuple(shape_expr)), dtype)


class Definition:
    def __init__(self, function):
        parameters = inspect.signature(function).parameters
        self.describe, self.autotune, self.aot_impl = function, None, None
        self.tensors = [name for name, one in parameters.items() if issubclass(one.annotation, TensorDesc)]
        self.attributes = {name: one.annotation for name, one in parameters.items() if name not in self.tensors}
        assert list(parameters) == [*self.tensors, *self.attributes]
        assert all(one.default is inspect.Parameter.empty for one in parameters.values())
        assert all(kind in ATTRIBUTES for kind in self.attributes.values())
        assert not {"outputs", "stream", "tactic"} & set(self.attributes)
        returned = inspect.signature(function).return_annotation
        self.count = len(typing.get_args(returned)) or 1
        assert all(issubclass(one, TensorDesc) for one in typing.get_args(returned) or (returned,))

    def check(self, function, *last):
        """Tensors, attributes or some of them, and what comes last, annotated as they were registered."""
        signature = inspect.signature(function)
        passed = [name for name in self.attributes if name in signature.parameters]
        assert list(signature.parameters) == [*self.tensors, *passed, *last]
        assert all(signature.parameters[name].annotation is self.attributes[name] for name in passed)
        assert typing.get_origin(signature.parameters["outputs"].annotation) is tuple
        return passed, signature.return_annotation


def register(plugin_id):
    assert plugin_id.split("::")[0] not in ("", "trt", "tensorrt", "std")
    assert "." not in plugin_id

    def keep(function):
        assert plugin_id not in DEFINED
        DEFINED[plugin_id] = Definition(function)
        return function

    return keep


def autotune(plugin_id):
    def keep(function):
        definition = DEFINED[plugin_id]
        definition.tuned_by, returned = definition.check(function, "outputs")
        assert returned == list[AutoTuneCombination]
        definition.autotune = function
        return function

    return keep


def aot_impl(plugin_id):
    def keep(function):
        passed, returned = DEFINED[plugin_id].check(function, "outputs", "tactic")
        assert passed == list(DEFINED[plugin_id].attributes)  # all of them are passed, asked for or not
        name, code, params, integers = typing.get_args(returned)
        assert name is str
        assert code is str
        assert issubclass(params, KernelLaunchParams)
        assert issubclass(integers, SymExprs)
        DEFINED[plugin_id].aot_impl = function
        return function

    return keep
