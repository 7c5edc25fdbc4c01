"""transformers as fast as it goes: a prompt read and continued with scaled dot product attention, eager and compiled.

python benchmarks/transformers_decode.py MODEL_DIR [--prompt_tokens N] [--new_tokens N]

Compiled is a static cache and torch.compile(mode="reduce-overhead"), whose decoding is a CUDA graph.
"""

from __future__ import annotations

import argparse
import time
from statistics import median
from typing import Any

import torch
from transformers import AutoModelForCausalLM, StaticCache


def seconds(work: Any) -> float:
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


@torch.inference_mode()
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model")
    parser.add_argument("--prompt_tokens", type=int, default=2048)
    parser.add_argument("--new_tokens", type=int, default=64)
    args = parser.parse_args()
    model: Any = AutoModelForCausalLM.from_pretrained(
        args.model, dtype=torch.float16, attn_implementation="sdpa", local_files_only=True
    ).cuda()
    ids = torch.randint(1000, (1, args.prompt_tokens), device="cuda")
    read = median(seconds(lambda: model(ids, use_cache=True, logits_to_keep=1)) for _ in range(5))
    print(f"eager: prompt {args.prompt_tokens / read:,.0f} tokens/s", flush=True)
    longest = args.prompt_tokens + 4 * args.new_tokens
    cache = StaticCache(config=model.config, max_cache_len=longest)
    step = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)

    def decode(tokens: int) -> None:
        following = ids[:, :1]
        for _ in range(tokens):
            made = step(following.clone(), past_key_values=cache, use_cache=True)
            following = made.logits[:, -1].argmax(-1, keepdim=True)
            following.tolist()

    model(ids, past_key_values=cache, use_cache=True, logits_to_keep=1)
    decode(8)
    said = median(seconds(lambda: decode(args.new_tokens)) for _ in range(3))
    print(f"compiled, static cache: answer {args.new_tokens / said:.1f} tokens/s", flush=True)


if __name__ == "__main__":
    main()
