"""The Python files of a model: there, compiling, with what they import and the parameters they ask for; never run."""

from __future__ import annotations

import ast
import re
import warnings
from pathlib import Path

from .repository import Model, read_text

SOURCE_LIMIT = 4 * 2**20
# Modules that lie beside a model.py: ours, and that of NVIDIA's BLS model.
OURS = "tokenization"
HELPERS = (OURS, "loading", "chat", "stopping", "engine_inputs", "lib")
NEEDED_PARAMETER = re.compile(r'\bvalues\["(\w+)"\]')


def source_problems(model: Model, version: Path, repository: Path) -> list[str]:
    """What would keep Triton's Python backend from loading a version of a model."""
    path = version / (model.config.default_model_filename or "model.py")
    name = f"{model.name}/{version.name}/{path.name}"
    text, tree, problem = read_source(path, name, repository)
    if text is None or tree is None:
        return [problem]
    problems = [] if "TritonPythonModel" in text else [f"{name}: has no class TritonPythonModel"]
    imported = imports(tree)
    for helper in sorted(imported.intersection(HELPERS)):
        places = (version, model.folder)  # where Triton looks, in this order
        if any((place / helper).is_dir() for place in places):
            continue
        file = next((place / f"{helper}.py" for place in places if (place / f"{helper}.py").exists()), None)
        file = file or version / f"{helper}.py"
        _, _, problem = read_source(file, str(file.relative_to(repository)), repository)
        problems += [f"{problem}; {path.name} imports it"] if problem else []
    if OURS in imported:
        problems += [
            f"{model.name}: parameter {parameter} is missing or empty"
            for parameter in dict.fromkeys(NEEDED_PARAMETER.findall(text))
            if model.parameter(parameter) is None
        ]
    return problems


def read_source(path: Path, name: str, repository: Path) -> tuple[str | None, ast.Module | None, str]:
    """A file's text and syntax tree, or None and what is wrong with it."""
    text, problem = read_text(path, repository, SOURCE_LIMIT)
    if text is None:
        return None, None, f"{name}: {problem}"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            compile(text, name, "exec", dont_inherit=True)
            return text, ast.parse(text), ""
    except SyntaxError as error:
        return None, None, f"{name}: line {error.lineno} is not Python ({error.msg})"
    except (ValueError, RecursionError, MemoryError) as error:
        return None, None, f"{name}: does not compile ({str(error) or type(error).__name__})"


def imports(tree: ast.Module) -> set[str]:
    """The modules that a file imports whenever it is loaded, by the first part of their names."""
    plain = [alias.name for node in tree.body if isinstance(node, ast.Import) for alias in node.names]
    taken = [node.module or "" for node in tree.body if isinstance(node, ast.ImportFrom) and not node.level]
    return {name.split(".")[0] for name in (*plain, *taken)}
