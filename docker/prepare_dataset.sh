#!/usr/bin/env bash
# Prepare a data set for training: the reference's script, with its arguments.
#   docker/prepare_dataset.sh [NAME] [RAW] [CACHE] [further flags of python -m preprocessing]
# NAME:  ml-20m (default), ml-1m, or any other: a folder with ratings.csv (header with user_id, item_id, timestamp).
# RAW:   folder of the raw data or of its zip (default /data/NAME).
# CACHE: the prepared folder to write (default /data/cache/NAME); one that is there already is kept.
set -euo pipefail

name=${1:-ml-20m}
raw=$(realpath -m -- "${2:-/data/$name}")
cache=$(realpath -m -- "${3:-/data/cache/$name}")
shift $(($# < 3 ? $# : 3))
cd "$(dirname "${BASH_SOURCE[0]}")/.."

if [[ -f $cache/stats.json ]]; then
  echo "$cache is prepared already; remove it to prepare it again"
  exit 0
fi
input=$raw
for zip in "$raw/$name.zip" "$raw.zip"; do
  if [[ -f $zip && ! -f $raw/ratings.csv && ! -f $raw/ratings.dat ]]; then
    input=$zip
  fi
done
exec "${PYTHON:-python}" -m preprocessing --input "$input" --output "$cache" "$@"
