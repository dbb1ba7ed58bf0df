# Sets PYTHON to an interpreter that satisfies requirements.txt. To be sourced in the repository's folder, under set -eu.
# It is the first that does of $PYTHON, python and python3; failing these that of .venv, which is made or repaired.

environment_say() {
    echo "environment: $*" >&2
}

# Prints what the interpreter $1 offers, with status 0, or what it lacks. Versions come from the installed metadata, but
# only an import tells whether compiled packages fit together.
environment_report() {
    "$1" - 2>&1 <<'PY'
import platform
import sys

try:
    from importlib.metadata import version

    from packaging.requirements import Requirement

    with open("requirements.txt") as lines:
        wanted = [Requirement(text) for text in (line.split("#")[0].strip() for line in lines) if text]
    for package in wanted:
        found = version(package.name)
        if not package.specifier.contains(found, prereleases=True):
            sys.exit(f"{package.name} {found} is not {package.specifier}")
    import gudhi, matplotlib, scipy, sklearn, tensorboard, torch, torchvision, tqdm
except Exception as error:
    sys.exit(f"{type(error).__name__}: {' '.join(str(error).split())}")
print(f"Python {platform.python_version()}, torch {torch.__version__}")
PY
}

environment_active() {
    for candidate in ${PYTHON:+"$PYTHON"} python python3; do
        path=$(command -v "$candidate") || continue
        if report=$(environment_report "$path"); then
            PYTHON=$path
            return 0
        fi
        environment_say "$path is not usable: $(echo "$report" | tail -n 1)"
    done
    return 1
}

environment_base() {
    for base in ${PYTHON:+"$PYTHON"} python3 python; do
        if "$base" -c 'import ensurepip, sys, venv; sys.exit(sys.version_info < (3, 10))' 2>/dev/null; then
            return 0
        fi
    done
    environment_say "no Python >= 3.10 with venv (Debian: python3-venv) on the PATH; name one: PYTHON=/path/to/python sh $0"
    exit 1
}

# .venv/incomplete stands while packages are installed: what an interrupted installation leaves can look complete.
environment_venv() {
    venv=$PWD/.venv
    if [ -e "$venv/incomplete" ] || ! report=$(environment_report "$venv/bin/python"); then
        # An intact environment that only lacks a package, or has an old one, is kept: others may be in it.
        if [ -e "$venv/incomplete" ] || ! "$venv/bin/python" -m pip --version >/dev/null 2>&1; then
            environment_base
            environment_say "making .venv with $(command -v "$base")"
            "$base" -m venv --clear "$venv"
        fi
        : >"$venv/incomplete"
        environment_say "installing requirements.txt into .venv (a few minutes; about 6 GB with CUDA)"
        "$venv/bin/python" -m pip install -r requirements.txt
        if ! report=$(environment_report "$venv/bin/python"); then
            environment_say ".venv is not usable (the next run makes it again): $(echo "$report" | tail -n 1)"
            exit 1
        fi
        rm "$venv/incomplete"
    fi
    PYTHON=$venv/bin/python
}

if [ -n "${PYTHON:-}" ] && ! command -v "$PYTHON" >/dev/null; then
    environment_say "PYTHON=$PYTHON: no such program; give its whole path, or leave it out"
    exit 2
fi
# Not `active || venv`: set -e is off in the operands of ||, and a failed installation has to end the script.
if ! environment_active; then
    environment_venv
fi
case $PYTHON in
    /*) ;;
    *) PYTHON=$PWD/$PYTHON ;; # demo.sh changes the folder
esac
export PYTHON
environment_say "$PYTHON ($(echo "$report" | tail -n 1))"
