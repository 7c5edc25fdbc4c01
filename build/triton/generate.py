"""An engine folder and a tokenizer folder in, a Triton model repository out: complete, every value written out."""

from __future__ import annotations

import shlex
import shutil
import stat
from pathlib import Path, PurePosixPath

from ...convert import tokens
from ...convert.errors import InputError
from ...convert.files.apart import check_apart
from ...convert.files.staging import Staging
from ...convert.sources.special_tokens import SpecialTokens, special_tokens
from ...convert.sources.tokenizer import tokenizer_files
from ..engine_folder import EngineFolder
from .configs import Plan, absolute
from .launch import docker_command, launch_script, serve_image
from .options import TritonOptions, check_bounds, check_options, engine_of, settled
from .pbtxt import write
from .tokenizer import check_chat, largest_id, open_tokenizer

MODELS, TOKENS = Path(__file__).parent / "models", Path(tokens.__file__).parent


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
    return Plan(options, engine, check_tokenizer(options, engine))


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
            files = checkpoint_files(engine) if options.preview else engine_files(engine)
            copy_files(files, staging.folder / "tensorrt_llm" / "1")
            tokenizer = staging.folder / "preprocessing" / "1" / "tokenizer"
            folder = Path(options.tokenizer_dir)
            beside = [*tokenizer_files(folder), folder / "config.json"]
            copy_files([path for path in beside if path.is_file()], tokenizer)
            open_tokenizer(tokenizer, "--self_contained")
        shutil.copyfile(MODELS / "client.py", staging.folder / "try.py")
        script = staging.folder / "launch.sh"
        script.write_text(launch_script(engine.world_size, engine.version), encoding="utf-8")
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
        return f"bash {shlex.quote(f'{repository}/launch.sh')}"
    image = serve_image(EngineFolder(options.engine_dir).version)
    if options.self_contained:
        mount = options.mount_dir
        return docker_command(image, {repository: mount}, str(PurePosixPath(mount) / "launch.sh"))
    folders = (repository, absolute(options.engine_dir), absolute(options.tokenizer_dir))
    return docker_command(image, {folder: folder for folder in folders}, f"{repository}/launch.sh")


def check_tokenizer(options: TritonOptions, engine: EngineFolder) -> SpecialTokens:
    """The special tokens to serve with.

    Raises:
        InputError: a tokenizer that does not load or does not fit the engine, or a chat template that does not render.
    """
    folder = Path(options.tokenizer_dir)
    tokenizer = open_tokenizer(folder, "--tokenizer_dir")
    if (largest := largest_id(tokenizer)) >= engine.vocab_size:
        raise InputError(
            f"--tokenizer_dir: {options.tokenizer_dir} has token id {largest}, the engine a vocabulary of "
            f"{engine.vocab_size}; take the tokenizer of the engine's model"
        )
    if options.chat:
        check_chat(tokenizer, options.tokenizer_dir)
    return special_tokens(tokenizer, folder, engine.vocab_size)


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
