#!/usr/bin/env bash
# Lint, types and every test, in an environment of its own. pytest's summary comes last.
set -euo pipefail
source "$(dirname "${BASH_SOURCE[0]}")/../examples/environment.sh"

ruff check .
ruff format --check .
rm -rf .build-cache  # of another checkout: deleted modules would be in the wheel
wheels=$(mktemp -d)
trap 'rm -rf "$wheels"' EXIT
# Types are checked on the installed wheel: the source folders map into one package.
pip wheel --quiet --no-deps --wheel-dir "$wheels" .
pip install --quiet --no-deps --target "$wheels/site" "$wheels"/*.whl
(cd "$wheels/site" && mypy --config-file "$root/pyproject.toml" -p enginesmith)
# A tritonserver for the tests that ask one, and the NumPy that it knows; without it they are skipped and say why.
if [ ! -d .tritonserver/pytriton ]; then
    python -m pip install --quiet --target .tritonserver --no-deps nvidia-pytriton==0.7.0 numpy==1.26.4 || true
fi
# lm-evaluation-harness, 450 MB with what it needs, for the tests that ask it; without it they are skipped and say why.
python -m pip install --quiet --constraint examples/constraints.txt --editable '.[evaluate]' || true
python -m pytest -n 2 --dist loadfile "$@"  # two processes, each file in one of them
