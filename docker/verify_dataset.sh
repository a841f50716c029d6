#!/usr/bin/env bash
# Verify a data set: GroupLens' archive by its checksum, the prepared folder by its spec and all its rows.
#   docker/verify_dataset.sh [NAME] [RAW] [CACHE]
# NAME, RAW, CACHE: as for docker/prepare_dataset.sh. A missing archive or folder is skipped; one of them must exist.
# The exit status is 0 if everything checked is valid, else 2.
set -euo pipefail
# shellcheck source=docker/common.sh
source "$(dirname -- "${BASH_SOURCE[0]}")/common.sh"
help_if_asked "$@"
read_places "$@"
((${#further[@]} == 0)) || fail "expected [NAME] [RAW] [CACHE], got ${further[*]}"

# As published by GroupLens next to each archive (NAME.zip.md5).
declare -A md5=(
  [ml-100k]=0e33842e24a9c977be4e0107933c0723
  [ml-1m]=c4d9eecfca2ab87c1945afe126590906
  [ml-10m]=ce571fd55effeba0271552578f2648bd
  [ml-20m]=cd245b17a1ae2cc31bb14903e1204af3
  [ml-25m]=6b51fb2759a8657d3bfcbfc42b592ada
  [ml-32m]=d472be332d4daa821edc399621853b57
)

archive=
for place in "$raw/$name.zip" "$raw.zip"; do
  if [[ -f $place ]]; then
    archive=$place
    break
  fi
done
[[ $archive || -d $cache ]] || fail "neither $raw/$name.zip nor the folder $cache exists; pass RAW and CACHE"

if [[ ! $archive ]]; then
  echo "$name: there is no $name.zip with a checksum to compare"
elif [[ ! ${md5[$name]:-} ]]; then
  echo "$archive: no known checksum"
else
  found=$(md5sum <"$archive")
  [[ ${found%% *} == "${md5[$name]}" ]] ||
    fail "$archive: expected md5 ${md5[$name]}, found ${found%% *}; download it again"
  echo "$archive: PASSED, its md5 is GroupLens'"
fi

if [[ ! -d $cache ]]; then
  echo "$cache: not prepared yet (docker/prepare_dataset.sh)"
else
  "$python" -m preprocessing --check "$cache"
  echo "$cache: PASSED"
fi
