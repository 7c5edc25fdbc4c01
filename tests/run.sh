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
python -m pytest "$@"
