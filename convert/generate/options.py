"""How text is generated, and how the speed of that is measured."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import InputError
from ..files.bounds import Options, bounded
from .sampling import Sampling

# A temperature below takes the most likely token.
COLD = 1e-4


@dataclass(frozen=True)
class GenerateOptions(Options):
    """How prompts are continued.

    Attributes:
        max_tokens: of each answer.
        temperature, top_k, top_p: of sampling; the most likely token each time where none is given, or the first is 0.
        repetition_penalty, presence_penalty, frequency_penalty: of tokens that are there already.
        seed: of sampling; each prompt draws from it anew.
        stop: texts before which an answer ends.
        chat: prompts go through the tokenizer's chat template.
        batch: prompts that are continued at once.
        device: "auto", or a torch device.
        reader: whose arithmetic a quantized Hugging Face folder is executed with, as for verify.
        dtype: values between operations are in the checkpoint's, or in float32, in which an unquantized one computes
            what its source does.
    """

    max_tokens: int = bounded(128, least=1)
    temperature: float | None = bounded(None, least=0, most=1e4)
    top_k: int | None = bounded(None, least=1)
    top_p: float | None = bounded(None, above=0, most=1)
    repetition_penalty: float = bounded(1.0, least=1e-3, most=1e3)
    presence_penalty: float = bounded(0.0, least=-1e6, most=1e6)
    frequency_penalty: float = bounded(0.0, least=-1e6, most=1e6)
    seed: int = bounded(0, least=0, most=2**63 - 1)
    stop: tuple[str, ...] = ()
    chat: bool = False
    batch: int = bounded(8, least=1, most=1024)
    device: str = "auto"
    reader: str = bounded("kernels", words=("kernels", "transformers", "edge"))
    dtype: str = bounded("checkpoint", words=("checkpoint", "float32"))

    @property
    def sampling(self) -> Sampling:
        """How tokens are chosen."""
        chosen = (self.temperature, self.top_k, self.top_p)
        cold = self.temperature is not None and self.temperature < COLD
        greedy = cold or chosen == (None, None, None)
        return Sampling(
            temperature=1.0 if cold or self.temperature is None else self.temperature,
            top_k=1 if greedy else self.top_k or 0,
            top_p=1.0 if self.top_p is None else self.top_p,
            seed=self.seed,
            repetition=self.repetition_penalty,
            presence=self.presence_penalty,
            frequency=self.frequency_penalty,
        )

    def check(self) -> None:
        """Raise InputError for what makes no sense together."""
        if self.temperature == 0 and (self.top_k not in (None, 1) or self.top_p is not None):
            raise InputError("--temperature 0 takes the most likely token; leave --top_k and --top_p out")


@dataclass(frozen=True)
class BenchOptions(Options):
    """What is measured.

    Attributes:
        prompt_tokens: of each sequence.
        new_tokens: that continue each, one after the other.
        batch: sequences at once.
        repeats: of reading the prompt, and of continuing it; the median counts.
        device: "auto", or a torch device.
    """

    prompt_tokens: int = bounded(1024, least=1)
    new_tokens: int = bounded(64, least=1)
    batch: int = bounded(1, least=1, most=1024)
    repeats: int = bounded(3, least=1, most=100)
    device: str = "auto"
