#!/usr/bin/env bash
# Measure this machine: preparing, training, inference, one after the other.
#   docker/run_benchmark.sh [NAME ...] [flags for each of them]
# NAME: pipeline, training, inference; by default those of them that `python -m benchmark --help` lists.
# Flags: what `python -m benchmark NAME --help` lists, such as --quick to see that all works.
set -euo pipefail
# shellcheck source=docker/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"

listed=$("$python" -m benchmark --help)
listed=${listed#*\{} # {demo,pipeline,...} and more behind it
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
