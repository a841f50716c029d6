# shellcheck shell=bash disable=SC2034 # its variables are for the scripts that source it
# Sourced by the scripts in this folder: --help, errors, and this project's modules from any working directory.

root=$(realpath -- "$(dirname -- "${BASH_SOURCE[0]}")/..")
python=${PYTHON:-python}
# In the image the modules are installed; a checkout needs the path.
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

# If the first argument asks for help, print the header comment of the script.
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

# Parses [NAME] [RAW] [CACHE] before the first flag, see prepare_dataset.sh: sets name, raw, cache, and `further`, the
# arguments after them.
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
