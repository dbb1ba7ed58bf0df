#!/bin/sh
# Runs the tests side by side, a process a core with one thread each, in an environment it makes if there is none.
#   sh test.sh                the fast ones
#   sh test.sh --all          all of them
#   sh test.sh -k loader -x   whatever follows goes to pytest
#   sh test.sh -n 0 --pdb     in this process
set -eu
cd "$(dirname "$0")"
. helper/environment.sh

if [ "${1:-}" = --all ]; then
    shift
    export TOPKD_REHEARSAL=1 # tests/test_cuda.py runs on the CPU where there is no GPU
else
    set -- -m "not slow" "$@"
fi
exec "$PYTHON" -m pytest -n auto --maxprocesses 16 --dist worksteal "$@"
