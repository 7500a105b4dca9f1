#!/usr/bin/env bash
# `make demo`: one real training run from nothing to its history, in a cluster of its own under .orch/demo.
set -euo pipefail
cd "$(dirname "$0")/.."
export PATH="$PWD/.venv/bin:$PATH"
export ORCH_HOME="$PWD/.orch/demo"
mkdir -p "$ORCH_HOME"
chmod 700 "$ORCH_HOME"

run() {
  printf '\n$ %s\n' "$*"
  "$@"
}

# Whatever happens, Ctrl-C too, nothing is left running.
trap 'printf "\nStopping the demo'"'"'s cluster: orch down --force\n"; orch down --force' EXIT

echo "A cluster on this machine starts first (about 10 s), then two ranks learn to read handwritten digits (about 10 s)."
run orch submit jobs/digits.yaml --follow
run orch runs
run orch show digits

printf '\nThe history stays in %s. To look around: ORCH_HOME=%s .venv/bin/orch runs\n' "$ORCH_HOME" "$ORCH_HOME"
