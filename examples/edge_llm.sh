#!/usr/bin/env bash
# INT8 for a Jetson: a Llama-family model, quantized here, as the ONNX of TensorRT Edge-LLM 0.11; no GPU until the device.
#
#     bash examples/edge_llm.sh [MODEL_DIR]        # SmolLM2-135M without one
#
# Edge-LLM computes FP16, INT8 and INT4 on a Jetson Orin, and no FP8. Another scheme: QUANT="W4A16_AWQ --group_size 64".
# Its exporter needs the model's chat template and versions of its own, hence a second environment, .venv-edge.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

model=${1:-out/smollm2}
folder=out/edge/folder
onnx=out/edge/onnx
mkdir -p out/edge
rm -rf "$folder" "$onnx"
if [ $# -eq 0 ]; then
    python examples/smollm2.py "$model"
fi
# shellcheck disable=SC2086  # options, not one word
enginesmith convert --model_dir "$model" --output_dir "$folder" --target edge --quant ${QUANT:-W8A8_SQ_PER_CHANNEL}

if [ ! -x .venv-edge/bin/tensorrt-edgellm-export ]; then
    python3 -m venv .venv-edge
    .venv-edge/bin/python -m pip install --quiet 'tensorrt-edgellm[export]==0.11.0' onnxruntime==1.32.0
fi
# Version 1 of the INT4 plugin is what Edge-LLM's known issues advise where version 2 costs accuracy.
.venv-edge/bin/tensorrt-edgellm-export "$folder" "$onnx" --int4-gemm-plugin-version 1 2>&1 | tee out/edge/export.log
# Whatever the exporter does not know it skips, and exits 0.
if ! grep --quiet 'Loaded [0-9]* tensors, skipped 0' out/edge/export.log; then
    echo "the exporter skipped tensors; see out/edge/export.log" >&2
    exit 1
fi

cat <<END

$onnx/llm is ready. To see what the graph computes on token ids (input_ids [chunks, tokens] in a safetensors file):
    .venv-edge/bin/python benchmarks/edge_onnx.py $folder IDS.safetensors --onnx $onnx
Copy $onnx to the device as onnx. There, in a clone of github.com/NVIDIA/TensorRT-Edge-LLM at v0.11.0, whose guide has the flags of each JetPack:
    cmake -S . -B build -DTRT_PACKAGE_DIR=/usr -DCUDA_CTK_VERSION=13.2 -DEMBEDDED_TARGET=jetson-orin \\
        -DCMAKE_TOOLCHAIN_FILE=cmake/aarch64_linux_toolchain.cmake -DENABLE_CUTE_DSL=ALL
    cmake --build build -j
    build/examples/llm/llm_build --onnxDir onnx/llm --engineDir engine --maxBatchSize 1 \\
        --maxInputLen 2048 --maxKVCacheCapacity 4096
    echo '{"requests": [{"messages": [{"role": "user", "content": "What is INT8?"}]}]}' > input.json
    build/examples/llm/llm_inference --engineDir engine --inputFile input.json --outputFile output.json
END
