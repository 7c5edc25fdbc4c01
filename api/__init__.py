"""enginesmith as a library: what the commands do, as functions that a release pipeline calls.

    import enginesmith as es

    done = es.convert(es.ConvertOptions("model", "checkpoint", quant="W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN"))
    verdict = es.verify(done.folder, reference="model", options=es.VerifyOptions(max_ppl_increase=1.0))
    if not verdict.ok:
        raise SystemExit("\\n".join(verdict.failures))
    es.write_plan(es.plan(done.folder, es.BuildOptions(gpu="A100", flags={"max_input_len": 2048})), "engine-plan")

Every function raises ``InputError`` for what it cannot use, with one readable line; a check that fails is no exception
but a result. PyTorch is loaded by what computes, not by what plans.
"""

from __future__ import annotations

from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from .build.build_options import BuildOptions
from .build.triton.options import TritonOptions
from .convert.errors import InputError
from .convert.evaluate.options import EvaluateOptions
from .convert.generate.options import BenchOptions, GenerateOptions
from .convert.job.options import ConvertOptions
from .convert.prove.options import VerifyOptions
from .convert.readers.check import CheckedFolder
from .jobs import (
    CheckedEngine,
    Verdict,
    bench,
    check,
    check_engine,
    check_repository,
    compare,
    evaluate,
    families,
    generate,
    plan,
    read_prompts,
    run,
    triton,
    verify,
    write_plan,
)

if TYPE_CHECKING:
    from .jobs import build, convert, plugins

__all__ = [
    "BenchOptions",
    "BuildOptions",
    "CheckedEngine",
    "CheckedFolder",
    "ConvertOptions",
    "EvaluateOptions",
    "GenerateOptions",
    "InputError",
    "TritonOptions",
    "Verdict",
    "VerifyOptions",
    "bench",
    "build",
    "check",
    "check_engine",
    "check_repository",
    "compare",
    "convert",
    "evaluate",
    "families",
    "generate",
    "plan",
    "plugins",
    "read_prompts",
    "run",
    "triton",
    "verify",
    "write_plan",
]


class Job(ModuleType):
    """A package that can be called as the function of its name in ``jobs``."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        return getattr(import_module(".jobs", __name__), self.__name__.rpartition(".")[2])(*given, **named)


for _name in ("build", "convert", "plugins"):
    import_module(f".{_name}", __name__).__class__ = Job
