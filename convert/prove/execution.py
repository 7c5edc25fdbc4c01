"""A quantized model and its float32 source, executed side by side on held-out text, layer by layer."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

import torch
from torch.nn import functional

from ...plugins import few_tokens
from ..models.encoder_head import EncoderHead
from ..models.ends import Embedding, Head
from ..models.forward import LayerForward
from ..models.rotation import Rotation
from ..sources.folder import Source
from ..sources.text import check_length, read_tokens
from ..targets.trtllm.formats.base import Activation, Format
from .encoders import EncoderAccuracy, compare_scores
from .engine_layer import EngineLayer, ExecutedLayer, Tensors
from .layers import computed
from .proven import Proven
from .runtime import Runtime

Scores = Callable[[torch.Tensor], torch.Tensor]
# Tokens whose logits are compared at once: what is made of them on the way is as large as they are.
COMPARED = 128
# Tokens that go through a layer at once on a GPU; a CPU takes one sequence after the other.
TOKENS = 4096
# Output rows of a linear that its rounding error is measured on, at most.
SAMPLED_ROWS = 256


@dataclass
class Accuracy:
    """What the checkpoint computes beside the source model, on held-out text.

    Attributes:
        tokens: predicted tokens.
        perplexity, reference_perplexity: exp of the mean negative log-likelihood per token.
        kl: mean over tokens of KL(source || checkpoint), in nats.
        top1: share of tokens for which both give the same most likely token.
        layer_errors: after each layer, ||hidden - source's|| / ||source's||, over all tokens.
        beyond: the first value that the engine's dtype could not hold; None where it held all.
        few_tokens_error, many_tokens_error: root mean square over the weight-only linears of ``rounding_errors``, if
            there are any.
    """

    tokens: int
    perplexity: float
    reference_perplexity: float
    kl: float
    top1: float
    layer_errors: list[float] = field(default_factory=list)
    beyond: str | None = None
    few_tokens_error: float | None = None
    many_tokens_error: float | None = None

    @property
    def increase_percent(self) -> float:
        return 100 * (self.perplexity / self.reference_perplexity - 1)

    @property
    def own_figures(self) -> dict[str, float]:
        """What encoders have not, by the names that JSON has for it."""
        return {
            "perplexity": self.perplexity,
            "reference_perplexity": self.reference_perplexity,
            "ppl_increase_percent": self.increase_percent,
        }


def at_once(hidden: torch.Tensor) -> int:
    """Sequences of [sequences, tokens, hidden_size] that go through a layer together."""
    return 1 if hidden.device.type == "cpu" else max(TOKENS // hidden.shape[1], 1)


class Reference:
    """The source model in float32.

    Attributes:
        ids: int64 [chunks, tokens].
        hidden: float32 [chunks, tokens, hidden_size].
    """

    def __init__(self, source: Source, ids: torch.Tensor, device: torch.device):
        self.source, self.ids, self.device = source, ids, device
        self.forward = LayerForward(source.model, ids.shape[1], torch.float32, device)
        self.hidden = source.embedding(device).map(torch.Tensor.float)(ids.to(device))

    def layer(self, index: int, tensors: Tensors) -> None:
        """Advance by one layer, of which these are the Hugging Face tensors."""
        self.forward.load(index, tensors)
        for piece in self.hidden.split(at_once(self.hidden)):
            piece.copy_(self.forward(piece))

    def head(self) -> Head:
        """What stands behind the last layer, in float32."""
        return self.source.head(self.device).map(lambda tensor: tensor.float().to(self.device))


class Execution:
    """A quantized model on the same text.

    Args:
        embedding: in the engine's dtype.
        rotation: of its residual stream, or None.

    Attributes:
        hidden: [chunks, tokens, hidden_size], in the engine's dtype.
        errors: one number a layer, as in ``Accuracy.layer_errors``.
        beyond: as in ``Accuracy.beyond``.
        roundings: ``rounding_errors`` of each weight-only linear, on the first sequence.
    """

    def __init__(self, runtime: Runtime, ids: torch.Tensor, embedding: Embedding, rotation: Rotation | None):
        self.runtime, self.rotation = runtime, rotation
        self.hidden = embedding.to(runtime.device)(ids.to(runtime.device))
        self.errors: list[float] = []
        self.beyond: str | None = None
        self.roundings: list[tuple[float, float]] = []

    def layer(self, layer: ExecutedLayer, reference: torch.Tensor) -> None:
        """Advance by one layer, on the runtime's device; reference: the source's hidden states behind it."""
        sums, watched = list[torch.Tensor](), self.watching(layer)
        pieces = (hidden.split(at_once(self.hidden)) for hidden in (self.hidden, reference))
        for own, wanted in zip(*pieces, strict=True):
            own.copy_(computed(self.runtime, len(self.errors), watched, own))
            ours = own.float() if self.rotation is None else self.rotation.restore(own)
            sums.append(torch.stack([(ours - wanted).square().sum(), wanted.square().sum()]).double())
            watched = layer
        self.look_for_overflow(f"layer {len(self.errors)}")
        difference, energy = torch.stack(sums).sum(0).tolist()
        self.errors.append(math.sqrt(difference / energy) if energy else 0.0)

    def look_for_overflow(self, where: str) -> None:
        """Remember the first value that the engine's dtype does not hold."""
        first = self.runtime.beyond()
        if first is not None and self.beyond is None:
            self.beyond = f"{where}: {first} is beyond {str(self.runtime.dtype).removeprefix('torch.')}"

    def watching(self, layer: ExecutedLayer) -> ExecutedLayer:
        """A layer whose weight-only linears are measured while it is executed."""
        return replace(layer, watch=self.measure_rounding) if isinstance(layer, EngineLayer) else layer

    def measure_rounding(self, name: str, own: Tensors, form: Format, read: Activation) -> None:
        if form.weight_only:
            family = self.runtime.model.family
            specs = form.tensors(family.linear(name), family.group_of(name))
            axes = {suffix: spec.axes.index("out") for suffix, spec in specs.items() if "out" in spec.axes}
            self.roundings.append(rounding_errors(form, own, axes, read.x))

    def accuracy(self, reference: Reference, head: Head) -> Accuracy:
        """Behind the last layer: the distance of what both predict; head is this model's."""
        device, (chunks, length) = self.runtime.device, reference.ids.shape
        head = replace(head.map(lambda tensor: tensor.to(device)), weight=head.weight.to(device).float())
        true_head, totals = reference.head(), torch.zeros(4, dtype=torch.float64)
        wanted, got = (head.weight.new_empty(length, len(head.weight)) for _ in range(2))
        for chunk in range(chunks):
            true_head.logits(true_head.normed(reference.hidden[chunk]), wanted)
            self.runtime.logits(self.hidden[chunk], head, got)
            pieces = (x.split(COMPARED) for x in (wanted[:-1], got[:-1], reference.ids[chunk, 1:].to(device)))
            for piece in zip(*pieces, strict=True):
                totals += compare_logits(*piece).cpu()
        self.look_for_overflow("behind the last layer")
        count = chunks * (length - 1)
        nll, our_nll, kl, same = (totals / count).tolist()
        perplexities = exponential(our_nll), exponential(nll)
        return Accuracy(count, *perplexities, kl, same, self.errors, self.beyond, *self.rounding)

    def encoder_accuracy(self, reference: Reference, head: EncoderHead) -> EncoderAccuracy:
        """``accuracy`` of an encoder: the distance of hidden states, and of what is predicted of them."""
        device, task = self.runtime.device, head.model.task
        head, true_head = (one.map(lambda *of: of[-1].to(device)) for one in (head, reference.source.encoder_head()))
        predicts = bool(task.projections) and head.model.num_labels > 1
        return self.distances(reference, task.of_first_token, true_head if predicts else None, head)

    def class_accuracy(self, reference: Reference, head: Head) -> EncoderAccuracy:
        """``accuracy`` of what gives a class for every sequence, by its last token."""
        own = head.map(lambda tensor: tensor.to(self.runtime.device).float())
        true_head = reference.head()

        def scores(of: Head, hidden: torch.Tensor) -> torch.Tensor:
            return of.logits(of.normed(hidden[:, -1]))

        return self.distances(reference, True, partial(scores, true_head), partial(scores, own))

    def distances(self, reference: Reference, of_classes: bool, true: Scores | None, ours: Scores) -> EncoderAccuracy:
        """The distance of hidden states, and of scores where there are some."""
        cosines, compared = list[torch.Tensor](), list[torch.Tensor]()
        for wanted, got in zip(reference.hidden.split(1), self.hidden.split(1), strict=True):
            cosines.append(functional.cosine_similarity(wanted, got.float(), -1).double().mean())
            scores = self.runtime.held("a score", ours(got)).float()
            if true is not None:
                compared.append(compare_scores(of_classes, true(wanted), scores))
        self.look_for_overflow("behind the last layer")
        kl, top1 = torch.stack(compared).mean(0).tolist() if compared else (None, None)
        cosine, distance = float(torch.stack(cosines).mean()), self.errors[-1]
        count = reference.ids.numel()
        return EncoderAccuracy(count, distance, cosine, kl, top1, self.errors, self.beyond, *self.rounding)

    @property
    def rounding(self) -> tuple[float | None, float | None]:
        """Root mean squares of what weight-only kernels lose with few tokens and with many."""
        if not self.roundings:
            return None, None
        errors, peers = torch.tensor(self.roundings, dtype=torch.float64), self.runtime.peers
        squares = errors.square().mean(0).to(self.runtime.device)
        few, many = (peers.sum(squares) / peers.size).sqrt().tolist()
        return few, many


@torch.inference_mode()
def side_by_side(
    checkpoint: Proven,
    source: Source,
    ids: torch.Tensor,
    device: torch.device,
    on_progress: Callable[[int, str], None],
) -> Accuracy | EncoderAccuracy:
    """Run a checkpoint and its source model over the same tokens."""
    reference = Reference(source, ids, device)
    runtime = checkpoint.runtime(ids.shape[1], device)
    ours = Execution(runtime, ids, checkpoint.embedding(), checkpoint.rotation())
    for index in range(source.model.num_hidden_layers):
        on_progress(index, "layer")
        reference.layer(index, source.layer(index, device))
        ours.layer(checkpoint.executed(index, device), reference.hidden)
    on_progress(source.model.num_hidden_layers, "logits")
    if source.model.family.task is not None:
        return ours.encoder_accuracy(reference, checkpoint.encoder_head())
    if source.model.family.classifies:
        return ours.class_accuracy(reference, checkpoint.head(device))
    return ours.accuracy(reference, checkpoint.head(device))


def rounding_errors(form: Format, own: Tensors, axes: dict[str, int], x: torch.Tensor) -> tuple[float, float]:
    """How far a weight-only linear's output is from the exact product of its input and its integers.

    Args:
        own: its tensors by suffix; some output rows are taken, evenly.
        axes: the axis of output rows in those that have one.
        x: [tokens, in] in the engine's dtype, of which the last are taken.

    Returns:
        ||y - exact|| / ||exact|| of the kernel for few tokens, and of the one for many.
    """
    rows = torch.arange(0, len(own["weight"]), -(-len(own["weight"]) // SAMPLED_ROWS), device=x.device)
    own = {
        suffix: tensor.index_select(axes[suffix], rows) if suffix in axes else tensor
        for suffix, tensor in own.items()
        if suffix != "bias"
    }
    x = x[-few_tokens.MOST_TOKENS :]
    exact, few, many = (
        form.product(own, Activation(read))[: len(x)].float()
        for read in (x.float(), x, x.repeat(few_tokens.MOST_TOKENS + 1, 1))
    )
    energy = float(exact.norm()) or 1.0
    return float((few - exact).norm()) / energy, float((many - exact).norm()) / energy


def held_out(source: Source, text: str, chunks: int, length: int) -> torch.Tensor:
    """Token ids to measure on, int64 [chunks, tokens].

    Raises:
        InputError: the text cannot be used, or the sequences are longer than the model's.
    """
    check_length(source.model, length, "--seq_len")
    return read_tokens(text, source.folder, chunks, length, source.model.vocab_size, "--text").ids


def exponential(nll: float) -> float:
    """e to the mean negative log-likelihood; infinite where that leaves float64."""
    return math.exp(nll) if nll < 700 else math.inf


def compare_logits(wanted: torch.Tensor, got: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Sums over predicted tokens: both negative log-likelihoods, KL(wanted || got), and equal most likely tokens.
    Logits are [tokens, vocab_size], targets [tokens]; returns float64 [4]."""
    p, q = functional.log_softmax(wanted, -1), functional.log_softmax(got, -1)
    target = targets[:, None]
    return torch.stack(
        [
            -p.gather(1, target).sum(dtype=torch.float64),
            -q.gather(1, target).sum(dtype=torch.float64),
            (p.exp() * (p - q)).sum(dtype=torch.float64),
            (p.argmax(-1) == q.argmax(-1)).sum(dtype=torch.float64),
        ]
    )
