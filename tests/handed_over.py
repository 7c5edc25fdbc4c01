"""What the plugins hand over to TensorRT, as JSON: a process of its own, where Triton compiles and does not interpret.

python handed_over.py SM...
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "fake_tensorrt"))

import tensorrt as trt
import tensorrt.plugin as trtp
import triton

from enginesmith.plugins.tensorrt import ahead, registration

TOKENS = [1, 3, 16, 17, 300]
WRITTEN = {trt.int8: "INT8", trt.float32: "FP32", trt.float16: "FP16", trt.bfloat16: "BF16"}
IN, OUT = 512, 1040


def cases() -> list[tuple[str, list[Any], dict[str, Any], int]]:
    """A plugin, its inputs as sizes and types, attributes, and the most tokens of the profile."""
    found: list[tuple[str, list[Any], dict[str, Any], int]] = []
    for dtype, floats in (("float16", trt.float16), ("bfloat16", trt.bfloat16)):
        scales = [(("tokens", 1), trt.float32), ((1, OUT), trt.float32)]
        inputs = [(("tokens", IN), trt.int8), ((OUT, IN), trt.int8), *scales]
        how = {"per_token": True, "per_channel": True, "dtype": dtype}
        found += [("smooth_quant_gemm", inputs, how, most) for most in ((4, 300) if dtype == "float16" else (4,))]
        x, weight = (("tokens", IN), floats), ((IN,), floats)
        found.append(("rmsnorm_quantization", [x, weight], {"eps": "1e-5"}, 300))
        found.append(("add_rmsnorm_quantization", [x, x, weight], {"eps": "1e-5"}, 300))
        found.append(("quantize_per_token", [(("batch", "tokens", IN), floats)], {}, 300))
    return found


def described(sizes: tuple[Any, ...], dtype: Any) -> Any:
    symbols = [(lambda known, name=one: known[name]) if isinstance(one, str) else one for one in sizes]
    return trtp.from_shape_expr(symbols, dtype=dtype)


def profiled(descriptor: Any, sizes: tuple[Any, ...], most: int) -> None:
    """Let it be known what a profile says: at most two sequences of at most so many tokens."""
    most_of = {"tokens": most, "batch": 2}
    descriptor.known = trtp.Shape(-1 if isinstance(one, str) else one for one in sizes)
    descriptor.known.max = tuple(most_of.get(one, one) for one in sizes)


def built(name: str, inputs: list[Any], attributes: dict[str, Any], most: int, sm: int) -> list[dict[str, Any]]:
    """As TensorRT builds a layer: what it returns, types and tactics, and a kernel for each of these."""
    definition = trtp.DEFINED[f"enginesmith::{name}"]
    descriptors = [described(*one) for one in inputs]
    outputs = definition.describe(*descriptors, **attributes)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    assert len(outputs) == definition.count
    for descriptor, (sizes, _) in zip(descriptors, inputs, strict=True):
        profiled(descriptor, sizes, most)
    some = [attributes[one] for one in definition.tuned_by]
    (combination,) = definition.autotune(*descriptors, *some, outputs)
    assert tuple(WRITTEN[one.dtype] for one in (*descriptors, *outputs)) in combination.combinations()
    assert combination.layouts == "LINEAR"
    registration.compute_capability = lambda device=0: sm
    registration.torch.cuda.current_device = lambda: 0
    known = [{"tokens": tokens, "batch": 2} for tokens in TOKENS if tokens <= most]
    made = []
    for tactic in combination.tactics or [0]:
        entry, ptx, params, integers = definition.aot_impl(*descriptors, *attributes.values(), outputs, tactic)
        assemble(ptx, sm)
        made.append(
            {
                "plugin": name,
                "sm": sm,
                "tactic": tactic,
                "attributes": attributes,
                "inputs": len(inputs),
                "outputs": [[one.shape_expr.values(known[-1]), WRITTEN[one.dtype]] for one in outputs],
                "sizes": known,
                "name": entry,
                "ptx": ptx,
                "parameters": ahead.entry_of(ptx)[1],
                "params": [params.values(one) for one in known],
                "integers": [integers.values(one) for one in known],
            }
        )
    return made


def assemble(ptx: str, sm: int) -> None:
    """Have NVIDIA's assembler read it."""
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(ptx)
        machine = f"sm_{sm}a" if sm == 90 else f"sm_{sm}"
        command = [triton.knobs.nvidia.ptxas.path, f"-arch={machine}", "kernel.ptx", "-o", "kernel.cubin"]
        subprocess.run(command, cwd=folder, check=True)


if __name__ == "__main__":
    generations = [int(one) for one in sys.argv[1:]]
    print(json.dumps([one for sm in generations for case in cases() for one in built(*case, sm)]))
