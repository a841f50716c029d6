# shellcheck shell=bash disable=SC2034 # its variables are for the scripts that source it
# Sourced by the scripts beside it: --help, mistakes, and this project's modules from wherever the user stands.

root=$(realpath -- "$(dirname -- "${BASH_SOURCE[0]}")/..")
python=${PYTHON:-python}
# What is installed in the image needs no path; a checkout does.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

# Where the first argument asks for help: show the comment at the head of the script.
help_if_asked() {
  if [[ ${1:-} == --help || ${1:-} == -h ]]; then
    sed -n '2,${/^#/!q;s/^# \{0,1\}//p}' "$0"
    exit 0
  fi
}

fail() {
  echo "error: $1" >&2
  exit 2
}

# [NAME] [RAW] [CACHE] before the first flag, as prepare_dataset.sh explains them: sets name, raw, cache, and
# `further`, the arguments behind them.
read_places() {
  local places=()
  while (($#)) && [[ $1 != -* ]]; do
    places+=("$1")
    shift
  done
  ((${#places[@]} <= 3)) || fail "expected [NAME] [RAW] [CACHE] and then flags, got ${places[*]}"
  name=${places[0]:-ml-20m}
  [[ $name != */* ]] || fail "NAME is the name of a data set (ml-20m), got the path $name; RAW and CACHE follow it"
  raw=$(realpath -m -- "${places[1]:-/data/$name}")
  cache=$(realpath -m -- "${places[2]:-/data/cache/$name}")
  further=("$@")
}
