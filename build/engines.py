"""Building a plan's engines on this machine: whole or not at all, finished ranks kept for the next try."""

from __future__ import annotations

from importlib import metadata, util
from pathlib import Path
from typing import Any

from ..convert.errors import InputError
from ..convert.files.disk import MANIFEST, read_json, sha256
from ..convert.files.staging import Staging
from . import build_engine
from .engine_folder import EngineFolder
from .gpus import Present, present
from .plan import Plan
from .script import write_plan


def installed_release() -> str | None:
    """The version of the TensorRT-LLM that is installed here, or None."""
    if util.find_spec("tensorrt_llm") is None:
        return None
    try:
        return metadata.version("tensorrt_llm")
    except metadata.PackageNotFoundError:
        return None


def build(plan: Plan, output: Path) -> bool:
    """Build every rank into a new engine folder; False if one failed.

    Raises:
        InputError: this machine is not the plan's target, or the checkpoint is not the one that was converted.
    """
    check_here(plan, present())
    plan.checkpoint.check_manifest(every_file=True)
    with Staging(output, resume=True) as staging:
        planned = staging.folder / "plan"
        planned.mkdir(exist_ok=True)
        write_plan(plan, planned, output / "plan")
        code = build_engine.build_all(planned, plan.checkpoint.folder, staging.folder, plan.run("workers"))
        if code == build_engine.BUILT:
            staging.commit()
    return code == build_engine.BUILT


def is_of(engine: Path, planned: Path) -> bool:
    """Whether an engine folder, made here or elsewhere, was built by this plan, and is as it was built."""
    if not (engine / MANIFEST).is_file():
        return False
    try:
        manifest = read_json(engine / MANIFEST)
        same = manifest.get("plan_digest") == build_engine.digest(read_json(planned / "plan.json"))
        return same and not changed_files(EngineFolder(engine), manifest)
    except (InputError, OSError):
        return False


def changed_files(engine: EngineFolder, manifest: dict[str, Any]) -> list[str]:
    """Files that are not the ones that were built."""
    ranks = manifest.get("ranks")
    entries = [entry for entry in ranks if isinstance(entry, dict)] if isinstance(ranks, list) else []
    recorded = {f"rank{entry.get('rank')}.engine": entry.get("sha256") for entry in entries}
    recorded["config.json"] = manifest.get("config")
    names = ["config.json", *(f"rank{rank}.engine" for rank in range(engine.world_size))]
    return [
        f"{name}: differs from the one {MANIFEST} recorded"
        for name in names
        if sha256(engine.folder / name) != recorded.get(name)
    ]


def check_here(plan: Plan, gpus: list[Present]) -> None:
    """Raise InputError unless this machine has the plan's release and kind of GPU."""
    installed = installed_release()
    if installed is None:
        raise InputError("TensorRT-LLM is not installed here")
    if not build_engine.same_release(installed, plan.release.version):
        raise InputError(f"--release {plan.release.version}: TensorRT-LLM {installed} is installed here; plan for it")
    others = [here.gpu for here in gpus if here.gpu.sm != plan.gpu.sm]
    if gpus and others:
        raise InputError(
            f"--gpu {plan.gpu.name} (SM {plan.gpu.sm}): this machine has {others[0].name} (SM {others[0].sm}); "
            "an engine is built on the kind of GPU that it runs on"
        )
