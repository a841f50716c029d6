#!/usr/bin/env bash
# Benchmark this machine: preparation, training and inference, one after another.
#   docker/run_benchmark.sh [NAME ...] [flags for each]
# NAME: pipeline, training, inference (default: those that `python -m benchmark --help` lists).
# Flags: see `python -m benchmark NAME --help`; --quick is a smoke test.
set -euo pipefail
# shellcheck source=docker/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"

listed=$("$python" -m benchmark --help)
listed=${listed#*\{} # {demo,pipeline,...} and the rest
listed=,${listed%%\}*},

names=()
while (($#)) && [[ $1 != -* ]]; do
  [[ $listed == *",$1,"* ]] || fail "there is no measurement $1; there are ${listed//,/ }"
  names+=("$1")
  shift
done
if ((${#names[@]} == 0)); then
  for name in pipeline training inference; do
    [[ $listed != *",$name,"* ]] || names+=("$name")
  done
fi
for name in "${names[@]}"; do
  echo "== python -m benchmark $name $*"
  "$python" -m benchmark "$name" "$@"
done
