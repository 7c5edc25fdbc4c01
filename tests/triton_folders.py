"""Engine folders with nothing in their engines, and small tokenizers of the two kinds that matter."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

VOCABULARY = 600
CHAT = (
    "{% for m in messages %}[{{ m.role }}]{{ m.content }}\n{% endfor %}{% if add_generation_prompt %}[bot]{% endif %}"
)
# The last line makes a token of the end of one character and the beginning of the next.
CORPUS = [
    "the quick brown fox stops here",
    "\U0001f600\U0001f602 \u4f60\u597d\u4e16\u754c \u0645\u0631\u062d\u0628\u0627",
    "def f(x):\n    return x",
    "\u00e9\u00e0 \u0129\u00e1 \u0169\u00e2",
]
PIECES = [
    *("hello", " world", "stop", "the", "1234567", "'s", " n't", " .", "\\n", '"', "<b>&amp;</b>"),
    *("  ", "\t", "\n\n", "\r\n", "\u00a0", "\u3000", "\x01", "\x7f", "\x1b[0m", "\ufffd"),
    *("\u4f60\u597d", "\u4e16\u754c\u3002", "\u3053\u3093\u306b\u3061\u306f", "\u0928\u092e\u0938\u094d\u0924\u0947"),
    *("\u0645\u0631\u062d\u0628\u0627 \u0628\u0643", "\u05e9\u05dc\u05d5\u05dd", "\u200f", "\u200d", "\ufeff"),
    *("\U0001f600", "\U0001f468\u200d\U0001f469\u200d\U0001f467", "\U0001f1e9\U0001f1ea", "\U0001d54f", "\U0010ffff"),
    *("e\u0301", "\u00e9", "\u00e9\u00e0", "\u0129\u00e1", "def f(x):\n\treturn x**2\n"),
]


def write_engine(
    folder: Path, version: str = "0.16.0", ranks: int = 1, kv_cache: str | None = None, **changes: Any
) -> Path:
    """An engine folder; changes are of pretrained_config, build_config or plugin_config, whichever has the key."""
    pretrained: dict[str, Any] = {
        "architecture": "LlamaForCausalLM", "dtype": "float16", "logits_dtype": "float32", "vocab_size": VOCABULARY,
        "mapping": {"world_size": ranks, "tp_size": ranks, "pp_size": 1},
        "quantization": {"quant_algo": "W8A8_SQ_PER_CHANNEL", "kv_cache_quant_algo": kv_cache},
    }  # fmt: skip
    built: dict[str, Any] = {
        "max_batch_size": 8, "max_beam_width": 2, "max_input_len": 1024, "max_seq_len": 2048, "max_num_tokens": 8192,
        "gather_context_logits": False,
    }  # fmt: skip
    plugins: dict[str, Any] = {"use_paged_context_fmha": True, "gpt_attention_plugin": "float16"}
    for name, value in changes.items():
        next(section for section in (pretrained, built, plugins) if name in section)[name] = value
    folder.mkdir(parents=True)
    config = {"version": version, "pretrained_config": pretrained, "build_config": {**built, "plugin_config": plugins}}
    (folder / "config.json").write_text(json.dumps(config))
    for rank in range(ranks):
        (folder / f"rank{rank}.engine").write_bytes(b"not a real engine")
    return folder


def byte_level() -> PreTrainedTokenizerFast:
    """GPT-2's kind: bytes, merged across characters too, so that tokens begin and end inside of them."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    special = ["<|end|>", "<|pad|>"]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY - 10,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(CORPUS * 3, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=special[0], pad_token=special[1])


def sentencepiece() -> PreTrainedTokenizerFast:
    """Llama 2's kind: a space before the text, spaces as U+2581, unknown characters as bytes, BOS in front."""
    vocabulary = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), "\u2581"]
    vocabulary += [*"abcdefghijklmnopqrstuvwxyz.,!()<>:=*", "\u4f60", "\u597d"]
    merges = [("t", "h"), ("th", "e"), ("\u2581", "the"), ("s", "t"), ("o", "p"), ("st", "op"), ("\u2581", "stop")]
    merges += [("l", "l"), ("h", "e"), ("he", "ll"), ("hell", "o"), ("\u2581", "hello"), ("\u2581", "\u2581")]
    vocabulary += ["".join(merge) for merge in merges]
    model = models.BPE(
        vocab={token: i for i, token in enumerate(vocabulary)},
        merges=merges,
        unk_token="<unk>",
        byte_fallback=True,
        fuse_unk=True,
    )
    tokenizer = Tokenizer(model)
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    tokenizer.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in vocabulary[:3]])
    tokenizer.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


KINDS = {"byte_level": byte_level, "sentencepiece": sentencepiece}


def write_tokenizer(folder: Path, kind: str = "sentencepiece", chat: bool = False, bare: bool = False) -> Path:
    """A tokenizer's folder, with a chat template, or bare of special tokens, if asked."""
    tokenizer = KINDS[kind]()
    if bare:
        tokenizer.backend_tokenizer.post_processor = processors.Sequence([])
        tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer.backend_tokenizer)
    if chat:
        tokenizer.chat_template = CHAT
    tokenizer.save_pretrained(folder)
    return folder


def varied_strings(count: int, seed: int = 0) -> list[str]:
    """Strings of every kind that a tokenizer may stumble over, never empty, the same ones for the same seed."""
    draw = random.Random(seed)
    return ["".join(draw.choices(PIECES, k=draw.randint(1, 9))) for _ in range(count)]
