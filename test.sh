#!/bin/sh
# Runs the tests, in an environment it makes if there is none.
#   sh test.sh                the fast ones
#   sh test.sh --all          all of them
#   sh test.sh -k loader -x   whatever follows goes to pytest
set -eu
cd "$(dirname "$0")"
. helper/environment.sh

if [ "${1:-}" = --all ]; then
    shift
    exec "$PYTHON" -m pytest "$@"
fi
exec "$PYTHON" -m pytest -m "not slow" "$@"
