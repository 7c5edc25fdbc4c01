"""Is what an unquantized checkpoint says what transformers says? Greedy tokens of 50 prompts, side by side.

    python benchmarks/generate_same.py HF_DIR CHECKPOINT

In float32 both hold the checkpoint's weights, so every token should be the same; in the checkpoint's dtype both round,
each in places of its own, and part where two tokens are nearly as likely: the table says where, and by how much.
"""

from __future__ import annotations

import sys

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from enginesmith.convert.generate.flight import Flight, Request
from enginesmith.convert.generate.job import opened_any
from enginesmith.convert.generate.network import Network
from enginesmith.convert.sources.documents import built_in

PROMPTS, TOKENS, WORDS = 50, 32, 12


def prompts(tokenizer: object) -> list[list[int]]:
    """Beginnings of lines of Python's documentation, from 1 to 12 words long."""
    lines = [line.split() for line in built_in("pydoc-heldout").splitlines() if len(line.split()) >= WORDS]
    picked = lines[:: len(lines) // PROMPTS][:PROMPTS]
    return [tokenizer(" ".join(words[: 1 + n % WORDS]))["input_ids"] for n, words in enumerate(picked)]  # type: ignore[operator]


def ours(checkpoint: str, dtype: str | None, asked: list[list[int]]) -> list[list[int]]:
    network = Network(opened_any(checkpoint, dtype=dtype), torch.device("cpu"), max(map(len, asked)) + TOKENS)
    flight = Flight(network, 8)
    answers = [flight.add(Request(ids, TOKENS)) for ids in asked]
    while flight.busy:
        flight.step()
    return [answer.ids for answer in answers]


def main(model: str, checkpoint: str) -> None:
    asked = prompts(AutoTokenizer.from_pretrained(model))
    dtype = getattr(torch, opened_any(checkpoint).dtype_name)  # type: ignore[attr-defined]
    theirs = AutoModelForCausalLM.from_pretrained(model, dtype=dtype).eval()
    for name in ("float32", None):
        theirs = theirs.float() if name else theirs.to(dtype)
        made, equal, parted = ours(checkpoint, name, asked), 0, []
        for ids, answer in zip(asked, made, strict=True):
            whole = torch.tensor([ids])
            with torch.inference_mode():
                said = theirs.generate(
                    whole, attention_mask=torch.ones_like(whole), do_sample=False, max_new_tokens=TOKENS,
                    eos_token_id=None, pad_token_id=0,
                )[0, len(ids) :].tolist()  # fmt: skip
                equal += said == answer
                if said != answer:
                    at = next(n for n, (a, b) in enumerate(zip(said, answer, strict=True)) if a != b)
                    logits = theirs(torch.tensor([ids + said[:at]])).logits[0, -1].float()
                    parted.append((at, float(logits[said[at]] - logits[answer[at]])))
        print(f"{name or str(dtype).removeprefix('torch.')}: {equal} of {len(asked)} prompts, {TOKENS} tokens each")
        for at, margin in parted:
            print(f"  part at token {at}, where transformers' logits are {margin:.3g} apart")


if __name__ == "__main__":
    main(*sys.argv[1:])
