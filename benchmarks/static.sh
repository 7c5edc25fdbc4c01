#!/usr/bin/env bash
# What GPTQ's rounding and --float_budget bring to static SmoothQuant: perplexity, KL and the share of weights in float.
#
#     bash benchmarks/static.sh MODEL_DIR WORK_DIR [more options of convert ...]
set -euo pipefail
model=$1
work=$2
shift 2
mkdir -p "$work"

row() {
    local name=$1
    shift
    enginesmith convert --model_dir "$model" --output_dir "$work/$name" --quant W8A8_SQ_PER_CHANNEL --json "$@" > "$work/$name.json"
    enginesmith verify "$work/$name" --reference "$model" --json > "$work/$name.verify.json" || true
    python - "$name" "$work/$name.json" "$work/$name.verify.json" << 'END'
import json, sys

name, made, verified = sys.argv[1], *(json.load(open(path)) for path in sys.argv[2:])
accuracy, budget = verified["accuracy"], made["float_budget"]
share = 100 * sum(part["weights"] for part in budget["in_float"]) / budget["weights"] if budget else 0
print(f"{name:16} {accuracy['perplexity']:.3f}  KL {accuracy['mean_kl']:.4f}  {share:.2f} % in float")
END
}

row nearest "$@"
row gptq --rounding gptq "$@"
for percent in 1 2 3 5; do
    row "budget-$percent" --float_budget "$percent" "$@"
    row "budget-$percent-gptq" --float_budget "$percent" --rounding gptq "$@"
done
