#!/usr/bin/env bash
# Train as the reference's containers do: python train.py --amp --gpus 8, and the flags given here after it.
#   docker/run_training.sh [flags of train.py]
# A --gpus or --device among them takes the place of --gpus 8 (docker/run_training.sh --device cpu).
set -euo pipefail

devices=(--gpus 8)
for flag in "$@"; do
  case $flag in
    --gpus | --gpus=* | --device | --device=*) devices=() ;;
  esac
done
root=$(realpath -- "$(dirname -- "${BASH_SOURCE[0]}")/..")
exec "${PYTHON:-python}" "$root/train.py" --amp "${devices[@]}" "$@"
