"""How good logits are and how far from others, as `enginesmith verify` defines it; for the environments of readers."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

Run = Callable[[torch.Tensor], torch.Tensor]


def measured(run: Run, ids: torch.Tensor, reference: Path | None, save: Path | None) -> dict[str, float]:
    """Perplexity, and with a reference the mean KL(reference || these) in nats and the top-1 agreement.

    Args:
        run: a chunk's ids [tokens] to its logits [tokens, vocabulary].
        ids: int64 [chunks, tokens]; each chunk's first token is not predicted.
        reference: a folder that ``save`` named when the same ids were run before.
        save: where to keep the logits, a file a chunk.
    """
    nll = kl = same = 0.0
    if save:
        save.mkdir(parents=True, exist_ok=True)
    for number, chunk in enumerate(ids):
        logits = run(chunk).float()
        if save:
            save_file({"logits": logits.contiguous()}, save / f"{number}.safetensors")
        own = logits[:-1].log_softmax(-1)
        nll -= float(own.gather(1, chunk[1:, None]).double().sum())
        if reference:
            true = load_file(reference / f"{number}.safetensors")["logits"][:-1].log_softmax(-1)
            kl += float((true.exp() * (true - own)).sum(-1).double().sum())
            same += int((true.argmax(-1) == own.argmax(-1)).sum())
    count = ids[:, 1:].numel()
    found: dict[str, float] = {"tokens": count, "perplexity": math.exp(nll / count)}
    return found | ({"mean_kl": kl / count, "top1_agreement": same / count} if reference else {})
