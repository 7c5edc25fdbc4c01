#!/usr/bin/env bash
# From nothing to a verified INT8 checkpoint of a real model that speaks, with no model hub: about five minutes on two cores.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/environment.sh"

model=out/smollm2
checkpoint=out/smollm2-w8a8
mkdir -p out
rm -rf "$checkpoint"
python examples/smollm2.py "$model"
enginesmith convert --model_dir "$model" --output_dir "$checkpoint" \
    --quant W8A8_SQ_PER_CHANNEL_PER_TOKEN_PLUGIN
enginesmith verify "$checkpoint" --reference "$model" --max_ppl_increase 1.5
enginesmith generate "$checkpoint" --reference "$model" --chat --prompt "Why is the sky blue?" --max_tokens 60
