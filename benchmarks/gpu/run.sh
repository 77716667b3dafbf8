#!/usr/bin/env bash
# The day with a GPU, in one command, from a bare checkout and without a network:
#
#     benchmarks/gpu/run.sh OUT [MINUTES] [PART,PART...]
#     benchmarks/gpu/run.sh --rehearse [OUT] [PART,PART...]
#
# OUT gets results.jsonl, log.txt and the report of the demo. README.md beside this file says more.
set -euo pipefail

here="$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)"
python="${PYTHON:-python3}"
scratch="$(mktemp -d)"
trap 'rm -rf "$scratch"' EXIT

usage() {
    sed -n '2,7s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2
    exit 2
}

rehearse=()
if [ "${1:-}" = --rehearse ]; then
    shift
    rehearse=(--rehearse)
    out="${1:-$scratch/out}"
    more=(${2:+"--parts=$2"})
else
    [ $# -ge 1 ] && [ $# -le 3 ] && [ "${1#-}" = "$1" ] || usage
    out="$1"
    more=("--minutes=${2:-12}" ${3:+"--parts=$3"})
fi
mkdir -p "$out"
out="$(cd "$out" && pwd)"

# Packages that are missing come from the wheels beside this file; what is installed stays as it is.
site="$("$python" "$here/packages.py" "$here/wheels" "$scratch/site")"
cd "$here/../.."
export PYTHONPATH="$PWD${site:+:$site}${PYTHONPATH:+:$PYTHONPATH}"
status=0
"$python" -m benchmarks.gpu.run "$out" "${more[@]}" ${rehearse[@]+"${rehearse[@]}"} || status=$?
exit "$status"
