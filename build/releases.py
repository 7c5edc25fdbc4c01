"""TensorRT-LLM releases that build engines: versions, containers, GPU generations."""

from __future__ import annotations

import re
from dataclasses import dataclass

from ..convert.errors import InputError
from ..convert.targets.trtllm.releases import number
from ..plugins.identity import Generations


@dataclass(frozen=True)
class Release:
    """One release.

    Attributes:
        tensorrt: the TensorRT it is built on; engines load in no other.
        build_image: NVIDIA's container with trtllm-build.
        serve_image: NVIDIA's Triton container with the same release.
        gpus: the GPU generations that its wheels have kernels for.
        paged_context: paged and FP8 context attention are on unless said otherwise, and where a KV cache rules them
            out they are switched off rather than refused.
        tokens_per_block: tokens in a block of the KV cache unless said otherwise.
    """

    version: str
    tensorrt: str
    build_image: str
    serve_image: str
    gpus: Generations
    paged_context: bool = True
    tokens_per_block: int = 32


TRITON = "nvcr.io/nvidia/tritonserver:{}-trtllm-python-py3"
CONTAINER = "nvcr.io/nvidia/tensorrt-llm/release:{}"
# 80 A100, 86 A10, 89 L4, 90 H100, 100 B200, 103 B300, 120 RTX 50 and RTX PRO, 121 GB10. No kernels for 75 (T4):
# 0.14 was the last release that supported it.
HOPPER: Generations = ((80, 80), (86, 86), (89, 90))
BLACKWELL: Generations = (*HOPPER, (100, 100), (120, 120))
LATER_BLACKWELL: Generations = (*BLACKWELL, (103, 103), (121, 121))


def in_triton(version: str, tensorrt: str, tag: str, gpus: Generations, paged_context: bool, block: int) -> Release:
    """A release that only NVIDIA's Triton container has."""
    image = TRITON.format(tag)
    return Release(version, tensorrt, image, image, gpus, paged_context, block)


def in_both(version: str, tensorrt: str, tag: str, gpus: Generations) -> Release:
    """A release with a container of its own beside the Triton one."""
    return Release(version, tensorrt, CONTAINER.format(version), TRITON.format(tag), gpus)


RELEASES = (
    in_triton("0.16.0", "10.7.0", "24.12", HOPPER, False, 64),
    in_triton("0.17.0", "10.8.0", "25.01", BLACKWELL, False, 64),
    in_triton("0.18.0", "10.9.0", "25.03", BLACKWELL, False, 64),
    in_triton("0.18.2", "10.9.0", "25.04", BLACKWELL, False, 64),
    in_triton("0.19.0", "10.9.0", "25.05", BLACKWELL, True, 32),
    in_both("0.20.0", "10.10.0", "25.07", BLACKWELL),
    in_both("0.21.0", "10.11.0", "25.08", BLACKWELL),
    in_both("1.0.0", "10.11.0", "25.10", LATER_BLACKWELL),
    in_both("1.1.0", "10.13.3", "26.02", LATER_BLACKWELL),
    in_both("1.2.0", "10.14.1", "26.03", LATER_BLACKWELL),
    in_both("1.2.1", "10.14.1", "26.07", LATER_BLACKWELL),
)
LATEST = RELEASES[-1].version


def find(version: str) -> Release:
    """A release by its version, or by the first numbers of it ("1.2": the newest 1.2).

    Raises:
        InputError: a version that does not build engines.
    """
    plain = re.fullmatch(r"\d+(\.\d+)*(\.post\d+)?", version)
    wanted = number(version) if plain else ()
    matches = [release for release in RELEASES if wanted and number(release.version)[: len(wanted)] == wanted]
    if not matches:
        known = ", ".join(release.version for release in RELEASES)
        later = number(version) > number(LATEST)
        why = " (1.2.1 is the last stable release with the engine backend)" if later else ""
        raise InputError(f"--release {version} is not a release that engines are planned for{why}; use one of: {known}")
    return matches[-1]
