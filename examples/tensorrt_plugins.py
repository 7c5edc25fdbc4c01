"""A norm that quantizes and a SmoothQuant linear as plugins of TensorRT: build an engine, run it, compare.

    pip install 'tensorrt>=10.9' triton
    python examples/tensorrt_plugins.py [ENGINE_FILE]

The engine carries both kernels, compiled for the GPU that is there; whoever runs it needs neither this package nor
Python. Outputs are compared with the references in PyTorch, to the bit. TensorRT was not at hand when this was
written: it was never run.
"""

from __future__ import annotations

import sys
from pathlib import Path

import torch

try:
    import tensorrt as trt
    import tensorrt.plugin as trtp
    import triton  # noqa: F401  compiles the kernels
except ImportError as error:
    raise SystemExit(f"{error}: pip install 'tensorrt>=10.9' triton") from None

import enginesmith.plugins.tensorrt.registration  # noqa: F401  registers the plugins
from enginesmith.plugins import rmsnorm_quantization, smooth_quant_gemm

CHANNELS, OUT, EPS = 4096, 6144, "1e-5"
# Least, usual and most tokens: one profile generates, the other reads prompts; tactics are chosen for each.
PROFILES = ((1, 1, 4), (5, 1024, 4096))
LOGGER = trt.Logger(trt.Logger.WARNING)


def drawn_weights() -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    return {
        "norm": (1 + torch.randn(CHANNELS, generator=draw) / 8).half(),
        "weight": torch.randint(-127, 128, (OUT, CHANNELS), dtype=torch.int8, generator=draw),
        "per_channel": torch.rand((1, OUT), generator=draw) * 1e-2,
    }


def build(weights: dict[str, torch.Tensor]) -> trt.IHostMemory:
    """x, float16 [tokens, channels] -> y, float16 [tokens, out]; one engine for any number of tokens."""
    builder = trt.Builder(LOGGER)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    constants = {name: add_constant(network, value) for name, value in weights.items()}
    x = network.add_input("x", trt.float16, (-1, CHANNELS))
    plugins = trtp.op.enginesmith
    norm = network.add_plugin(plugins.rmsnorm_quantization(x, constants["norm"], eps=EPS), aot=True)
    product = network.add_plugin(
        plugins.smooth_quant_gemm(
            norm.get_output(0),
            constants["weight"],
            norm.get_output(1),
            constants["per_channel"],
            per_token=True,
            per_channel=True,
            dtype="float16",
        ),
        aot=True,
    )
    product.get_output(0).name = "y"
    network.mark_output(product.get_output(0))
    config = builder.create_builder_config()
    for bounds in PROFILES:
        profile = builder.create_optimization_profile()
        profile.set_shape("x", *((tokens, CHANNELS) for tokens in bounds))
        config.add_optimization_profile(profile)
    engine = builder.build_serialized_network(network, config)
    if engine is None:
        raise SystemExit("TensorRT built no engine; what it logged says why")
    return engine


def add_constant(network: trt.INetworkDefinition, value: torch.Tensor) -> trt.ITensor:
    """A weight, which has to live until the engine is built."""
    return network.add_constant(tuple(value.shape), trt.Weights(value.numpy())).get_output(0)


def run(context: trt.IExecutionContext, x: torch.Tensor) -> torch.Tensor:
    """Of the current profile."""
    y = torch.empty((len(x), OUT), dtype=torch.float16, device="cuda")
    context.set_input_shape("x", tuple(x.shape))
    context.set_tensor_address("x", x.data_ptr())
    context.set_tensor_address("y", y.data_ptr())
    if not context.execute_async_v3(torch.cuda.current_stream().cuda_stream):
        raise SystemExit("TensorRT did not run the engine; what it logged says why")
    return y


def reference(x: torch.Tensor, weights: dict[str, torch.Tensor]) -> torch.Tensor:
    normed = rmsnorm_quantization.reference(x, weights["norm"], float(EPS), kind="int8")
    assert normed.scale is not None
    scales = normed.scale, weights["per_channel"]
    return smooth_quant_gemm.reference(normed.y_or_q, weights["weight"], *scales, torch.float16)


def main() -> None:
    if not torch.cuda.is_available():
        raise SystemExit("PyTorch finds no GPU: the engine is built on the one that runs it")
    weights = drawn_weights()
    serialized = build(weights)
    if sys.argv[1:]:
        Path(sys.argv[1]).write_bytes(bytes(serialized))
    engine = trt.Runtime(LOGGER).deserialize_cuda_engine(serialized)
    context = engine.create_execution_context()
    for index, bounds in enumerate(PROFILES):
        context.set_optimization_profile_async(index, torch.cuda.current_stream().cuda_stream)
        for tokens in bounds:
            x = torch.randn((tokens, CHANNELS), generator=torch.Generator().manual_seed(tokens)).half()
            same = torch.equal(run(context, x.cuda()).cpu(), reference(x, weights))
            print(f"{tokens} tokens: {'equal to the bit' if same else 'DIFFERENT'}")


if __name__ == "__main__":
    main()
