"""Ranks that are executed side by side compute what all of them put together do; here in threads that sum by hand.

In float32 the order of sums is all that differs. In an engine's dtype a rank's product is rounded before it is summed,
and where an input is quantized per token the scale is of the rank's own channels.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from enginesmith.convert.errors import InputError
from enginesmith.convert.generate.sampling import Sampling
from enginesmith.convert.models.families import FAMILIES
from enginesmith.convert.models.pieces import COLUMNS
from enginesmith.convert.peers import ALONE, Peers
from enginesmith.convert.prove.encoders import EncoderAccuracy
from enginesmith.convert.prove.execution import Accuracy
from enginesmith.convert.prove.proven import ProvenCheckpoint, opened
from enginesmith.convert.prove.verify import measure
from enginesmith.convert.targets.trtllm.formats import SCHEMES, format_of
from enginesmith.convert.targets.trtllm.ranks import cut

from .family_models import converted
from .generating import CPU, answered, computed_anew, prompts
from .side_by_side import together
from .target_folders import made

Models = Callable[[str], Path]

LLAMA, QWEN2, GPT2, BERT = "Llama, Yi, DeepSeek-LLM, SmolLM", "Qwen2, Qwen2.5", "GPT-2", "BERT"
IDS = [5, 9, 33, 2, 70, 14, 14, 3, 88, 61, 7, 20]
WHOLE = [family.title for family in FAMILIES if family.mixture is None and family.task is None]
PER_TOKEN = [name for name, scheme in SCHEMES.items() if scheme.activations and not scheme.static]
OTHERS = [None, *(name for name in SCHEMES if name not in PER_TOKEN)]
# Root mean square, of the deviation of logits.
REORDERED, ROUNDED, REQUANTIZED = 2e-6, 0.03, 0.1


def apart(folder: Path, size: int, dtype: str | None = None) -> float:
    """How far logits of ranks are from those of all put together, of their deviation; each rank has the same."""
    whole = computed_anew(ProvenCheckpoint(folder, dtype), IDS)
    first, *others = together(size, lambda peers: computed_anew(ProvenCheckpoint(folder, dtype, peers), IDS))
    assert all(torch.equal(first, other) for other in others)
    return float((first - whole).square().mean().sqrt() / whole.std())


@pytest.mark.parametrize("quant", OTHERS)
def test_every_format(quant: str | None, models: Models, tmp_path: Path) -> None:
    converted(models(LLAMA), tmp_path / "ck", quant=quant, tp_size=2, kv_cache="INT8" if quant else None)
    assert apart(tmp_path / "ck", 2, "float32") < REORDERED
    assert 0 < apart(tmp_path / "ck", 2) < ROUNDED


@pytest.mark.parametrize("quant", PER_TOKEN)
def test_scales_per_token_are_a_ranks_own(quant: str, models: Models, tmp_path: Path) -> None:
    """What row-parallel linears make is the sum of what ranks make of their channels, each with its own scales."""
    proven = converted(models(LLAMA), tmp_path / "ck", quant=quant, tp_size=2)
    assert apart(tmp_path / "ck", 2) < REQUANTIZED
    model, layer, specs = proven.model, proven.executed(0, CPU), proven.tensors(0)
    for linear in (linear for linear in model.family.linears if linear.cut == COLUMNS):
        group = model.family.group_of(linear.name)
        form = format_of(proven.precision.executed(0)[group.name], proven.engine)
        draw = torch.Generator().manual_seed(0)
        x = torch.randn(6, model.dimension(linear.in_features), generator=draw).half()

        def by_hand(rank: int, linear: Any = linear, form: Any = form, x: torch.Tensor = x) -> torch.Tensor:
            own = {
                name.removeprefix(f"{linear.name}."): cut(tensor, specs[name], model, proven.mapping, rank)
                for name, tensor in layer.tensors.items()
                if name.startswith(f"{linear.name}.")
            }
            made: torch.Tensor = form.product(own, form.rounding(None).of(x.chunk(2, 1)[rank], form.divisor(own)))
            return made

        def executed(peers: Peers, name: str = linear.name, group: Any = group, x: torch.Tensor = x) -> torch.Tensor:
            own = ProvenCheckpoint(tmp_path / "ck", None, peers).executed(0, CPU)
            return own.product(name, own.rounding(group).of(x.chunk(2, 1)[peers.rank], own.divisor(name)))

        for y in together(2, executed):
            assert torch.equal(y, by_hand(0) + by_hand(1))


@pytest.mark.parametrize("title", WHOLE)
def test_every_family(title: str, models: Models, tmp_path: Path) -> None:
    """Heads, slopes, windows, biases and norms of heads are each rank's own."""
    converted(models(title), tmp_path / "ck", tp_size=2)
    assert apart(tmp_path / "ck", 2, "float32") < REORDERED


@pytest.mark.parametrize("title", [LLAMA, QWEN2, "BLOOM, BLOOMZ"])
def test_more_ranks_than_kv_heads(title: str, models: Models, tmp_path: Path) -> None:
    converted(models(title), tmp_path / "ck", quant="W8A16", tp_size=4)
    assert apart(tmp_path / "ck", 4, "float32") < REORDERED


@pytest.mark.parametrize(("title", "quant"), [(QWEN2, "W4A16_AWQ"), (GPT2, "W8A8_SQ_PER_CHANNEL"), (GPT2, "W4A16_AWQ")])
def test_biases_are_added_once(title: str, quant: str, models: Models, tmp_path: Path) -> None:
    """By the plugin of a rank, or behind the sum."""
    converted(models(title), tmp_path / "ck", quant=quant, tp_size=2)
    assert apart(tmp_path / "ck", 2, "float32") < REORDERED


@pytest.mark.parametrize("sampling", [Sampling(), Sampling(top_k=0, temperature=1.5, seed=3)], ids=["likely", "drawn"])
@pytest.mark.parametrize(
    ("title", "quant", "kv_cache"),
    [
        (LLAMA, None, None),
        (LLAMA, "W8A8_SQ_PER_TENSOR_PLUGIN", "INT8"),
        (QWEN2, "W4A16_AWQ", "FP8"),
        (GPT2, "W8A16", None),
    ],
)
def test_the_same_text(
    title: str, quant: str | None, kv_cache: str | None, sampling: Sampling, models: Models, tmp_path: Path
) -> None:
    folder = converted(models(title), tmp_path / "ck", quant=quant, kv_cache=kv_cache, tp_size=2).folder
    asked = prompts(102)

    def text(peers: Peers = ALONE) -> list[list[int]]:
        proven = ProvenCheckpoint(folder, "float32", peers)
        return [answer.ids for answer in answered(proven, asked, sampling=sampling)]

    assert together(2, text) == [text()] * 2


@pytest.mark.parametrize(("title", "quant"), [(LLAMA, "W4A16"), (BERT, "W8A16"), ("BERT, question answering", None)])
def test_the_same_figures(title: str, quant: str | None, models: Models, tmp_path: Path) -> None:
    model, folder = models(title), tmp_path / "ck"
    converted(model, folder, quant=quant, tp_size=2)

    def figures(peers: Peers = ALONE) -> Accuracy | EncoderAccuracy:
        return measure(opened(folder, peers=peers), model, str(model.parent / "ids.safetensors"), 4, 24, "cpu")

    whole, (first, second) = figures(), together(2, figures)
    assert vars(first) == vars(second)
    assert first.own_figures == pytest.approx(whole.own_figures, rel=2e-3)
    assert first.layer_errors == pytest.approx(whole.layer_errors, rel=0.05, abs=1e-3)
    assert (first.few_tokens_error is None) == (whole.few_tokens_error is None)
    if first.few_tokens_error is not None:  # of shorter sums
        assert first.few_tokens_error == pytest.approx(whole.few_tokens_error, rel=0.3)


def test_all_know_what_one_sees(models: Models, tmp_path: Path) -> None:
    """A value beyond the dtype on one rank."""
    folder = converted(models(LLAMA), tmp_path / "ck", tp_size=2).folder

    def seen(peers: Peers) -> str | None:
        runtime = ProvenCheckpoint(folder, None, peers).runtime(8, CPU)
        runtime.held("the first", torch.ones(3))
        runtime.held("the second", torch.full((3,), 1.0 if peers.rank == 0 else torch.inf))
        return runtime.beyond()

    assert together(2, seen) == ["the second"] * 2


@pytest.mark.parametrize(
    ("title", "options", "processes", "reason"),
    [
        (
            LLAMA,
            {"tp_size": 2},
            4,
            "tp_size is 2, but there are 4 processes .* --nproc_per_node 2, or start one process",
        ),
        (LLAMA, {}, 2, r"tp_size is 1, but there are 2 processes \(WORLD_SIZE\); start one process, without torchrun"),
        (LLAMA, {"pp_size": 2}, 2, "stages of pp_size 2 are not executed by a process each; start one process"),
        ("Mixtral", {"tp_size": 2}, 2, "ranks with experts are not executed by a process each; start one process"),
    ],
)
def test_what_processes_cannot_execute(
    title: str, options: dict[str, int], processes: int, reason: str, models: Models, tmp_path: Path
) -> None:
    folder = converted(models(title), tmp_path / "ck", **options).folder
    with pytest.raises(InputError, match=reason):
        opened(folder, peers=Peers(processes, 1))


def test_folders_without_ranks(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="only ranks of a TensorRT-LLM checkpoint are executed by 2 processes"):
        opened(made("compressed-tensors", "FP8", tmp_path), peers=Peers(2, 0))
