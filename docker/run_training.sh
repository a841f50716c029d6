#!/usr/bin/env bash
# Train as the reference's containers do: python train.py --amp --gpus 8, followed by the flags given here.
#   docker/run_training.sh [flags of train.py; python train.py --help lists them]
# A --gpus or --device flag replaces --gpus 8 (docker/run_training.sh --device cpu).
set -euo pipefail
# shellcheck source=docker/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"

devices=(--gpus 8)
for flag in "$@"; do
  case $flag in
    --gpus | --gpus=* | --device | --device=*) devices=() ;;
  esac
done
exec "$python" "$root/train.py" --amp "${devices[@]}" "$@"
