"""The configuration of every model in a repository, every value written out."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from pathlib import PurePosixPath

from ...convert.sources.special_tokens import SpecialTokens
from ..engine_folder import EngineFolder
from . import tensors
from .options import LOGITS_TYPES, PROMPT_TYPES, TritonOptions
from .pbtxt import Message, Word

# Where the tokenizer lies in a repository that holds it.
TOKENIZER = "preprocessing/1/tokenizer"
# Files of the model that stands in for an engine.
PREVIEW = {"model.py": "preview.py", "engine_inputs.py": "engine_inputs.py"}
# Rows of one request; the engine itself batches across requests, so more brings nothing.
USUAL_BATCH = 64
# Each is a process that holds the tokenizer.
USUAL_INSTANCES, USUAL_BLS_INSTANCES = 4, 8
# From this release on the prompt embedding table has the model's type.
PROMPT_TYPE_SINCE = (0, 20)
# A prompt of more bytes is refused before it is tokenized, which takes about a second for each million.
LEAST_PROMPT_BYTES, BYTES_OF_A_TOKEN = 2**16, 16
# What else one request may ask of preprocessing: words and bytes of all stop, bad and bias words, and time.
LIMITS = {"max_words": 1024, "max_word_bytes": 2**16, "max_seconds": 30}


class Plan:
    """The configuration of every model in a repository.

    Args:
        rewritten: the repository holds the tokenizer as transformers writes it, not the folder's own files.
    """

    def __init__(self, options: TritonOptions, engine: EngineFolder, special: SpecialTokens, rewritten: bool):
        self.options, self.engine, self.special, self.rewritten = options, engine, special, rewritten
        self.batch = options.max_batch_size or min(engine.max_batch_size, USUAL_BATCH)
        self.bls = options.decoupled if options.bls is None else options.bls
        repository = PurePosixPath(options.mount_dir if options.self_contained else absolute(options.output_dir))
        inside = options.self_contained or rewritten
        self.engine_dir = str(repository / "tensorrt_llm/1") if options.self_contained else absolute(options.engine_dir)
        self.tokenizer_dir = str(repository / TOKENIZER) if inside else absolute(options.tokenizer_dir)
        self.steps = tensors.ensemble_steps(engine.release)

    def sources(self) -> dict[str, dict[str, str]]:
        """Python model -> file in its version's folder -> the file of ``models`` that it is."""
        sources = {
            "preprocessing": {"model.py": "preprocessing.py", "chat.py": "chat.py"},
            "postprocessing": {"model.py": "postprocessing.py"},
            **({"tensorrt_llm_bls": {"model.py": "bls.py", "stopping.py": "stopping.py"}} if self.bls else {}),
        }
        helpers = {name: name for name in ("tokenization.py", "loading.py")}
        preview = {"tensorrt_llm": PREVIEW} if self.options.preview else {}
        return {name: files | helpers for name, files in sources.items()} | preview

    def configs(self) -> dict[str, Message]:
        """Model -> its config.pbtxt."""
        models = [self.ensemble(), self.preprocessing(), self.tensorrt_llm(), self.postprocessing()]
        return {str(model["name"]): model for model in models + ([self.tensorrt_llm_bls()] if self.bls else [])}

    def ensemble(self) -> Message:
        return {
            "name": "ensemble",
            "platform": "ensemble",
            "max_batch_size": self.batch,
            **self.face(tensors.TEXT_INPUTS, tensors.TEXT_OUTPUTS),
            "ensemble_scheduling": {
                "step": [
                    {
                        "model_name": step.model,
                        "model_version": -1,
                        "input_map": [{"key": name, "value": source} for name, source in step.inputs.items()],
                        "output_map": [{"key": name, "value": target} for name, target in step.outputs.items()],
                    }
                    for step in self.steps
                ]
            },
        }

    def preprocessing(self) -> Message:
        return {
            **self.python_model("preprocessing", self.options.preprocessing_instances, USUAL_INSTANCES),
            "dynamic_batching": self.queue(),
            **self.face(tensors.PREPROCESSING_INPUTS, tensors.PREPROCESSING_OUTPUTS),
            "parameters": parameters(
                tokenizer_dir=self.tokenizer_dir,
                vocab_size=self.engine.vocab_size,
                end_ids=",".join(map(str, self.special.end_ids)) or None,
                pad_id=self.special.pad_id,
                add_special_tokens=self.options.add_special_tokens,
                chat=self.options.chat,
                max_prompt_bytes=max(LEAST_PROMPT_BYTES, BYTES_OF_A_TOKEN * self.engine.max_input_len),
                **LIMITS,
            ),
        }

    def postprocessing(self) -> Message:
        return {
            **self.python_model("postprocessing", self.options.postprocessing_instances, USUAL_INSTANCES),
            "dynamic_batching": {},
            **self.face(tensors.POSTPROCESSING_INPUTS, tensors.POSTPROCESSING_OUTPUTS),
            "parameters": parameters(
                tokenizer_dir=self.tokenizer_dir,
                skip_special_tokens=self.options.skip_special_tokens,
                decoupled=self.options.decoupled,
            ),
        }

    def tensorrt_llm(self) -> Message:
        options = self.options
        return {
            "name": "tensorrt_llm",
            "backend": "python" if options.preview else "tensorrtllm",
            "max_batch_size": self.batch,
            "model_transaction_policy": {"decoupled": options.decoupled},
            "dynamic_batching": self.queue(),
            **self.face(tensors.ENGINE_INPUTS, tensors.ENGINE_OUTPUTS),
            # The backend places the engine on GPUs itself.
            "instance_group": [{"count": 1, "kind": Word("KIND_CPU")}],
            "parameters": parameters(
                FORCE_CPU_ONLY_INPUT_TENSORS="no",
                executor_worker_path="/opt/tritonserver/backends/tensorrtllm/trtllmExecutorWorker",
                gpt_model_type="inflight_fused_batching",
                gpt_model_path=self.engine_dir,
                max_beam_width=self.engine.max_beam_width,
                batch_scheduler_policy=options.batch_scheduler_policy,
                kv_cache_free_gpu_mem_fraction=options.kv_cache_free_gpu_mem_fraction,
                max_tokens_in_paged_kv_cache=options.max_tokens_in_paged_kv_cache,
                max_attention_window_size=options.max_attention_window_size or self.engine.windows(),
                enable_kv_cache_reuse=options.enable_kv_cache_reuse,
                enable_chunked_context=options.enable_chunked_context,
                exclude_input_in_output=options.exclude_input_in_output,
                **(self.limits() if options.preview else {}),
            ),
        }

    def limits(self) -> dict[str, int | str]:
        """What an engine knows of itself, and a preview is told."""
        engine = self.engine
        return {
            "preview_release": engine.version,
            "max_input_len": engine.max_input_len,
            "max_seq_len": engine.max_seq_len,
            "max_batch_size": self.batch,
        }

    def tensorrt_llm_bls(self) -> Message:
        first_two = [{"model": step.model, "inputs": step.inputs, "outputs": step.outputs} for step in self.steps[:2]]
        return {
            **self.python_model("tensorrt_llm_bls", self.options.bls_instances, USUAL_BLS_INSTANCES),
            "model_transaction_policy": {"decoupled": self.options.decoupled},
            **self.face(tensors.TEXT_INPUTS, tensors.TEXT_OUTPUTS),
            "parameters": parameters(
                tokenizer_dir=self.tokenizer_dir,
                skip_special_tokens=self.options.skip_special_tokens,
                exclude_input_in_output=self.options.exclude_input_in_output,
                tensorrt_llm_model_name="tensorrt_llm",
                steps=json.dumps(first_two),
            ),
        }

    def python_model(self, name: str, instances: int | None, usual: int) -> Message:
        count = instances or min(self.batch, usual)
        return {
            "name": name,
            "backend": "python",
            "max_batch_size": self.batch,
            "instance_group": [{"count": count, "kind": Word("KIND_CPU")}],
        }

    def queue(self) -> Message:
        return {
            "preferred_batch_size": [self.batch],
            "max_queue_delay_microseconds": self.options.max_queue_delay,
            "default_queue_policy": {"max_queue_size": 0},
        }

    def face(self, inputs: Iterable[tensors.Tensor], outputs: Iterable[tensors.Tensor]) -> Message:
        """A model's inputs and outputs as its engine's release has them."""
        prompt = PROMPT_TYPES[self.engine.dtype] if self.engine.release >= PROMPT_TYPE_SINCE else "FP16"
        logits = LOGITS_TYPES[self.engine.logits_dtype]
        types = (self.engine.release, logits, prompt)
        return {
            "input": [input_field(tensor) for tensor in tensors.of_release(inputs, *types)],
            "output": [tensor_field(tensor) for tensor in tensors.of_release(outputs, *types)],
        }


def tensor_field(tensor: tensors.Tensor) -> Message:
    return {"name": tensor.name, "data_type": Word(f"TYPE_{tensor.dtype}"), "dims": list(tensor.dims)}


def input_field(tensor: tensors.Tensor) -> Message:
    return {
        **tensor_field(tensor),
        **({"reshape": {"shape": []}} if tensor.squeezed else {}),
        **({"allow_ragged_batch": True} if tensor.ragged else {}),
        **({"optional": True} if tensor.optional else {}),
    }


def parameters(**values: str | float | bool | None) -> list[Message]:
    """Triton's parameters are strings, whatever they mean; None is left out."""
    given = {name: value for name, value in values.items() if value is not None}
    texts = {name: str(value).lower() if isinstance(value, bool) else str(value) for name, value in given.items()}
    return [{"key": name, "value": {"string_value": text}} for name, text in texts.items()]


def absolute(folder: str) -> str:
    return os.path.abspath(folder)
