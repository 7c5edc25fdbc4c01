"""An engine folder and a tokenizer folder in, a Triton model repository out: complete, every value written out."""

from __future__ import annotations

import shlex
import shutil
import stat
from dataclasses import replace
from pathlib import Path, PurePosixPath

from ...convert import tokens
from ...convert.errors import InputError
from ...convert.files.apart import check_apart
from ...convert.files.disk import is_there
from ...convert.files.staging import Staging
from ...convert.sources.special_tokens import SpecialTokens, special_tokens
from ...convert.sources.tokenizer import tokenizer_files
from ..engine_folder import EngineFolder
from .configs import TOKENIZER, Plan, absolute
from .launch import docker_command, launch_script, serve_image
from .options import TritonOptions, check_bounds, check_options, engine_of, settled
from .pbtxt import write
from .tokenizer import check_chat, compared, largest_id, open_tokenizer, open_with_transformers

MODELS, TOKENS = Path(__file__).parent / "models", Path(tokens.__file__).parent
# Of a tokenizer's folder: the file that needs no transformers, and the folder of chat templates beside the usual one.
TOKENIZER_JSON, TEMPLATES = "tokenizer.json", "additional_chat_templates"


def generate(options: TritonOptions) -> Path:
    """Write the repository; its folder appears when it is complete.

    Returns:
        the repository.

    Raises:
        InputError: as of prepare and write_repository.
    """
    return write_repository(prepare(options))


def prepare(options: TritonOptions) -> Plan:
    """Everything decided, nothing written.

    Raises:
        InputError: an option that the engine cannot serve, or an engine or tokenizer that cannot be read.
    """
    check_paths_apart(options)
    engine = engine_of(options)
    options = settled(options, engine)
    check_bounds(options)
    check_options(options, engine)
    return Plan(options, engine, *check_tokenizer(options, engine))


def write_repository(plan: Plan) -> Path:
    """Write what was planned.

    Raises:
        InputError: the folder exists or cannot be written.
    """
    options, engine = plan.options, plan.engine
    with Staging(options.output_dir) as staging:
        for name, config in plan.configs().items():
            version = staging.folder / name / "1"
            version.mkdir(parents=True)
            (version.parent / "config.pbtxt").write_text(write(config), encoding="utf-8")
        for name, files in plan.sources().items():
            for file, source in files.items():
                folder = MODELS if (MODELS / source).is_file() else TOKENS
                shutil.copyfile(folder / source, staging.folder / name / "1" / file)
        for name in ("ensemble", "tensorrt_llm"):
            (staging.folder / name / "1" / ".keep").touch()  # Triton wants the folder; git and archives drop empty ones
        if options.self_contained:
            copied = checkpoint_files(engine) if options.preview else engine_files(engine)
            copy_files(copied, staging.folder / "tensorrt_llm" / "1")
        if options.self_contained or plan.rewritten:
            write_tokenizer(Path(options.tokenizer_dir), staging.folder / TOKENIZER, plan.rewritten)
        shutil.copyfile(MODELS / "client.py", staging.folder / "try.py")
        shutil.copyfile(MODELS / "local_server.py", staging.folder / "local_server.py")
        script = staging.folder / "launch.sh"
        script.write_text(launch_script(engine.world_size, engine.version, options.preview), encoding="utf-8")
        script.chmod(script.stat().st_mode | stat.S_IXUSR | stat.S_IXGRP | stat.S_IXOTH)
        staging.commit()
    return staging.final


def check_paths_apart(options: TritonOptions) -> None:
    """Raise InputError if the repository would be made in what it is made from."""
    reads = {
        "--preview" if options.preview else "--engine_dir": options.engine_dir,
        "--tokenizer_dir": options.tokenizer_dir,
    }
    check_apart(reads, {"--output_dir": options.output_dir})


def start_command(options: TritonOptions) -> str:
    """The command that serves the repository made from these options."""
    repository = absolute(options.output_dir)
    if options.preview:
        place = options.mount_dir if options.self_contained else repository
        return f"bash {shlex.quote(f'{place}/launch.sh')}"
    image = serve_image(EngineFolder(options.engine_dir).version)
    if options.self_contained:
        mount = options.mount_dir
        return docker_command(image, {repository: mount}, str(PurePosixPath(mount) / "launch.sh"))
    folders = (repository, absolute(options.engine_dir), absolute(options.tokenizer_dir))
    return docker_command(image, {folder: folder for folder in folders}, f"{repository}/launch.sh")


def check_tokenizer(options: TritonOptions, engine: EngineFolder) -> tuple[SpecialTokens, bool]:
    """The special tokens to serve with, and whether the repository must hold the tokenizer rewritten.

    Raises:
        InputError: a tokenizer that does not load or does not fit the engine, or a chat template that does not render.
    """
    folder = Path(options.tokenizer_dir)
    tokenizer = open_with_transformers(folder, "--tokenizer_dir")
    if (largest := largest_id(tokenizer)) >= engine.vocab_size:
        raise InputError(
            f"--tokenizer_dir: {options.tokenizer_dir} has token id {largest}, the engine a vocabulary of "
            f"{engine.vocab_size}; take the tokenizer of the engine's model"
        )
    if options.chat:
        check_chat(tokenizer, options.tokenizer_dir)
    special, rewritten, note = special_tokens(tokenizer, folder, engine.vocab_size), False, ""
    if not is_there(folder / TOKENIZER_JSON):
        rewritten = getattr(tokenizer, "backend_tokenizer", None) is not None
        made = "the repository holds one, made by transformers" if rewritten else "every instance imports transformers"
        note = f"{folder} has no {TOKENIZER_JSON}; {made}"
    elif differs := compared(folder, tokenizer, "--tokenizer_dir"):
        rewritten = True
        note = (
            f"transformers reads {folder} otherwise than it is written ({differs}); the repository holds what it reads"
        )
    return replace(special, notes=[*special.notes, *([note] if note else [])]), rewritten


def write_tokenizer(source: Path, folder: Path, rewritten: bool) -> None:
    """A tokenizer's own files, or what transformers makes of them.

    Raises:
        InputError: a server would not read there what transformers does.
    """
    files = [*tokenizer_files(source), source / "config.json"]
    if not rewritten:
        copy_files([path for path in files if path.is_file()], folder)
        if (source / TEMPLATES).is_dir():
            shutil.copytree(source / TEMPLATES, folder / TEMPLATES)
        open_tokenizer(folder, "--self_contained")
        return
    tokenizer = open_with_transformers(source, "--tokenizer_dir")
    tokenizer.save_pretrained(folder)
    if differs := compared(folder, tokenizer, "--tokenizer_dir"):
        raise InputError(f"--tokenizer_dir: {source}: no server would read it as transformers does ({differs})")


def engine_files(engine: EngineFolder) -> list[Path]:
    """What the server reads of an engine folder."""
    extras = [*sorted(engine.folder.glob("rank*_managed_weights.safetensors")), engine.folder / "quant_cfg.json"]
    ranks = [engine.folder / f"rank{rank}.engine" for rank in range(engine.world_size)]
    return [engine.folder / "config.json", *ranks, *(path for path in extras if path.is_file())]


def checkpoint_files(engine: EngineFolder) -> list[Path]:
    """What a preview reads of a checkpoint."""
    return [path for path in sorted(engine.folder.iterdir()) if path.suffix in (".json", ".safetensors")]


def copy_files(files: list[Path], folder: Path) -> None:
    folder.mkdir(exist_ok=True)
    for path in files:
        shutil.copyfile(path, folder / path.name)
