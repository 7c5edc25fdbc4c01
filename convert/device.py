"""Where calibration runs, and in which dtype."""

from __future__ import annotations

from ..plugins.float_product import multiplies_bfloat16
from ..plugins.lazy import torch
from .errors import InputError

FITTING = "use auto, cpu, cuda or cuda:N"
# What PyTorch knows by name, whether it is here or not; it says itself what it makes of these.
TYPES = (
    "cpu", "cuda", "fpga", "hip", "hpu", "ideep", "ipu", "lazy", "maia", "meta", "mkldnn", "mps", "mtia", "opencl",
    "opengl", "privateuseone", "ve", "vulkan", "xla", "xpu",
)  # fmt: skip


def check_device(name: str) -> None:
    """``pick_device``'s refusals; PyTorch is asked only about what it may know.

    Raises:
        InputError: the device does not exist here.
    """
    if name.partition(":")[0] not in ("auto", *TYPES):
        raise no_device(name)
    if name not in ("auto", "cpu"):
        pick_device(name)


def no_device(name: str) -> InputError:
    return InputError(f"--device: {name!r} is no device; {FITTING}")


def pick_device(name: str) -> torch.device:
    """ "auto" is the GPU when there is one; otherwise a torch device name. One of several GPUs becomes the current one,
    on which kernels and graphs are launched.

    Raises:
        InputError: the device does not exist here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError:
        raise no_device(name) from None
    if device.type == "cuda" and not torch.cuda.is_available():
        raise InputError(f"--device {name}: torch finds no CUDA device; use --device cpu")
    if device.type == "cuda" and device.index is not None:
        if device.index >= torch.cuda.device_count():
            raise InputError(f"--device {name}: torch finds {torch.cuda.device_count()} CUDA devices, from cuda:0 on")
        torch.cuda.set_device(device)
    if str(device) != "cpu" and device.type != "cuda":
        raise InputError(f"--device: {name!r} is not supported; {FITTING}")
    return device


def fast_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the hardware multiplies it natively (any recent GPU, AMX, AVX512-BF16), else float32."""
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported() else torch.float16
    return torch.bfloat16 if multiplies_bfloat16() else torch.float32
