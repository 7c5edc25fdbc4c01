"""Seconds to the first token and tokens a second, of checkpoints and of transformers beside them, in one run.

    python benchmarks/generate.py HF_DIR CHECKPOINT...

Prompts of 64 tokens are continued by 64, at batch 1 and 8, greedily and without an end; contenders take turns, and the
median of their rounds counts. A batch's rate is of all its answers together, after their first tokens.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM

from enginesmith.convert.generate.flight import Flight, Request
from enginesmith.convert.generate.job import opened_any
from enginesmith.convert.generate.network import Network

PROMPT, ANSWER, ROUNDS = 64, 64, 5
Run = Callable[[torch.Tensor], tuple[float, float]]


def of_checkpoint(folder: str) -> Run:
    network = Network(opened_any(folder), torch.device("cpu"), PROMPT + ANSWER)

    def run(ids: torch.Tensor) -> tuple[float, float]:
        flight, started = Flight(network, len(ids)), time.perf_counter()
        answers = [flight.add(Request(row.tolist(), ANSWER)) for row in ids]
        while not all(answer.ids for answer in answers):
            flight.step()
        first, early = time.perf_counter(), sum(len(answer.ids) for answer in answers)
        while flight.busy:
            flight.step()
        made = sum(len(answer.ids) for answer in answers) - early
        return first - started, made / (time.perf_counter() - first)

    return run


def of_transformers(folder: str, dtype: torch.dtype) -> Run:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).eval()
    model.generation_config.eos_token_id = None

    def seconds(ids: torch.Tensor, tokens: int) -> float:
        started = time.perf_counter()
        mask = torch.ones_like(ids)
        model.generate(ids, attention_mask=mask, do_sample=False, max_new_tokens=tokens, pad_token_id=0)
        return time.perf_counter() - started

    def run(ids: torch.Tensor) -> tuple[float, float]:
        with torch.inference_mode():
            first = seconds(ids, 1)
            return first, len(ids) * (ANSWER - 1) / (seconds(ids, ANSWER) - first)

    return run


def main(model: str, *checkpoints: str) -> None:
    contenders = {Path(one).name: of_checkpoint(one) for one in checkpoints}
    contenders |= {f"transformers {d}": of_transformers(model, getattr(torch, d)) for d in ("bfloat16", "float32")}
    draw = torch.Generator().manual_seed(0)
    print("| | batch | first token | tokens/s |\n| --- | --- | --- | --- |")
    for batch in (1, 8):
        ids = torch.randint(1000, 20000, (batch, PROMPT), generator=draw)
        rounds: dict[str, list[tuple[float, float]]] = {name: [] for name in contenders}
        for _ in range(ROUNDS):
            for name, run in contenders.items():
                rounds[name].append(run(ids))
        for name, times in rounds.items():
            first, rate = (statistics.median(values) for values in zip(*times, strict=True))
            print(f"| {name} | {batch} | {first:.2f} s | {rate:.1f} |", flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
