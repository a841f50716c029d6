#!/usr/bin/env bash
# Prepare a data set for training: the reference's script, with its arguments.
#   docker/prepare_dataset.sh [NAME] [RAW] [CACHE] [further flags of python -m preprocessing]
# NAME:  ml-20m (default), ml-1m, or any other: a folder with ratings.csv (header with user_id, item_id, timestamp).
# RAW:   folder of the raw data or of its zip (default /data/NAME).
# CACHE: the prepared folder to write (default /data/cache/NAME); an existing one is kept.
set -euo pipefail
# shellcheck source=docker/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"
read_places "$@"

if [[ -f $cache/stats.json ]]; then
  echo "$cache is prepared already; remove it to prepare it again"
  exit 0
fi

# The first of these that exists; if none does, python -m preprocessing reports it.
input=$raw
for place in "$raw"/ratings.{csv,dat} "$raw/$name"/ratings.{csv,dat} "$raw/$name.zip" "$raw.zip"; do
  if [[ -f $place ]]; then
    case $place in
      *.zip) input=$place ;;
      *) input=$(dirname -- "$place") ;;
    esac
    break
  fi
done
exec "$python" -m preprocessing --input "$input" --output "$cache" "${further[@]}"
