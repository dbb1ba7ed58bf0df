"""What is declared, installed and imported agrees: requirements.txt, environment.yml, helper/environment.sh; and what
test.sh, .ci/run and the workflow run."""

import ast
import importlib
import os
import shutil
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

ROOT = Path(__file__).resolve().parent.parent
LINES = [line.split("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
REQUIREMENTS = [Requirement(line) for line in LINES if line]
# One figure, and clusters, whose scripts say how to install what they need; Pillow decodes where torchcodec is absent.
OPTIONAL = {"umap", "ray", "torchcodec"}
SHELLS = [shell for shell in ("dash", "bash") if shutil.which(shell)] or ["sh"]


def module_of(requirement):
    modules = {"scikit-learn": "sklearn", "PyYAML": "yaml", "pytest-xdist": "xdist", "pillow": "PIL"}
    return modules.get(requirement.name, requirement.name)


@pytest.mark.parametrize("requirement", REQUIREMENTS, ids=lambda requirement: requirement.name)
def test_a_requirement_is_installed_in_its_range_and_imports(requirement):
    assert requirement.specifier.contains(version(requirement.name), prereleases=True)
    importlib.import_module(module_of(requirement))


def test_conda_installs_the_same_requirements():
    environment = yaml.safe_load((ROOT / "environment.yml").read_text())
    assert environment["name"] == "topkd"
    python, pip, from_pip = environment["dependencies"]
    assert pip == "pip" and from_pip == {"pip": ["-r requirements.txt"]}
    pythons = Requirement(python)
    assert pythons.name == "python" and "3.10.0" in pythons.specifier and "3.9.18" not in pythons.specifier
    assert ".".join(map(str, sys.version_info[:3])) in pythons.specifier


def test_the_workflow_runs_what_continuous_integration_runs():
    workflow = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())
    assert set(workflow[True]) >= {"push", "pull_request"}  # YAML reads the key `on` as true
    job = workflow["jobs"]["test"]
    assert job["strategy"]["matrix"] == {"python": ["3.10", "3.12"]}
    actions = {step["uses"].split("@")[0]: step.get("with", {}) for step in job["steps"] if "uses" in step}
    python = {"python-version": "${{ matrix.python }}", "cache": "pip", "cache-dependency-path": "requirements.txt"}
    assert actions == {"actions/checkout": {}, "actions/setup-python": python}
    commands = [step["run"] for step in job["steps"] if "run" in step]
    assert commands == ["python -m pip install -r requirements.txt", "bash .ci/run"]


@pytest.mark.parametrize("status", [0, 1])
def test_ci_stops_at_the_first_complaint(tmp_path, status):
    """Linter, formatter, type checker, all tests, in this order; nothing is run after a failure."""
    (tmp_path / ".ci").mkdir()
    (tmp_path / "helper").mkdir()
    shutil.copy(ROOT / ".ci" / "run", tmp_path / ".ci")
    fail = "mypy" if status else "nothing"
    (tmp_path / "python").write_text(f'#!/bin/sh\necho "$@" >>calls\n[ "$2" != {fail} ]\n')
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "helper" / "environment.sh").write_text("PYTHON=$PWD/python\n")
    (tmp_path / "test.sh").write_text("echo test.sh $* >>calls\n")
    assert subprocess.run(["bash", ".ci/run"], cwd=tmp_path).returncode == status
    expected = ["-m ruff check .", "-m ruff format --check .", "-m mypy", "test.sh --all"]
    assert (tmp_path / "calls").read_text().splitlines() == expected[: 3 if status else 4]


@pytest.mark.parametrize(
    "given, expected",
    [
        ([], ["-m", "not slow"]),
        (["--all"], []),
        (["-k", "loader or fold", "-x"], ["-m", "not slow", "-k", "loader or fold", "-x"]),
        (["--all", "-x"], ["-x"]),
    ],
)
def test_the_arguments_of_test_sh_go_to_pytest(tmp_path, given, expected):
    (tmp_path / "helper").mkdir()
    shutil.copy(ROOT / "test.sh", tmp_path)
    (tmp_path / "python").write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    (tmp_path / "python").chmod(0o755)
    (tmp_path / "helper" / "environment.sh").write_text("PYTHON=$PWD/python\n")
    done = subprocess.run(["sh", str(tmp_path / "test.sh"), *given], capture_output=True, text=True, check=True)
    always = ["-m", "pytest", "-n", "auto", "--maxprocesses", "16", "--dist", "worksteal"]
    assert done.stdout.splitlines() == always + expected


def sources():
    return [*ROOT.glob("*.py"), *ROOT.glob("[!.]*/**/*.py")]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and not node.level:
            yield node.module.split(".")[0]


def test_every_third_party_import_is_a_direct_requirement():
    folders = {path.name for path in ROOT.iterdir() if path.is_dir()} | {path.parent.name for path in sources()}
    own = {path.stem for path in sources()} | folders
    known = sys.stdlib_module_names | own | OPTIONAL | {module_of(requirement) for requirement in REQUIREMENTS}
    undeclared = {path.name: set(imported(path)) - known for path in sources()}
    assert {name: modules for name, modules in undeclared.items() if modules} == {}


def source_environment(shell, folder, **variables):
    """What a script that sources helper/environment.sh finds in PYTHON: (exit status, PYTHON, messages)."""
    script = 'set -eu; . helper/environment.sh; echo "$PYTHON"'
    done = subprocess.run(
        [shell, "-c", script], cwd=folder, env={**os.environ, **variables}, capture_output=True, text=True
    )
    return done.returncode, done.stdout.splitlines(), done.stderr.splitlines()


@pytest.mark.slow
def test_the_active_environment_is_taken():
    status, python, messages = source_environment(SHELLS[0], ROOT, PYTHON=sys.executable)
    assert (status, python) == (0, [sys.executable]), messages
    assert len(messages) == 1 and messages[0].startswith(f"environment: {sys.executable} (Python 3.")


# Stands in for every interpreter: outside .venv one without packages; in .venv one that satisfies the requirements as
# soon as pip has run to its end. It writes down what was asked of it.
FAKE_PYTHON = """#!/bin/sh
here=$(dirname "$0")
case "$*" in
    -) cat >/dev/null; [ -e "$here/satisfied" ] && echo "Python 3.11" || { echo "no torch"; exit 1; } ;;
    "-m venv --clear "*)
        echo venv >>log; rm -rf "$4"; mkdir -p "$4/bin"; cp "$0" "$4/bin/python" ;;
    "-m pip --version") [ ! -e "$here/broken" ] ;;
    "-m pip install -r requirements.txt") echo pip >>log; [ -z "${NO_NETWORK:-}" ] && : >"$here/satisfied" ;;
    -c*) [ -z "${OLD_PYTHON:-}" ] ;;
    *) echo "unexpected: $*" >&2; exit 99 ;;
esac
"""


@pytest.fixture(params=SHELLS)
def checkout(request, tmp_path):
    """A folder with helper/environment.sh where only python3 is on the PATH, a fake; source() answers as above."""
    (tmp_path / "helper").mkdir()
    shutil.copy(ROOT / "helper" / "environment.sh", tmp_path / "helper")
    tools = tmp_path / "tools"
    tools.mkdir()
    for tool in ("cat", "cp", "dirname", "mkdir", "rm", "sh", "tail"):
        (tools / tool).symlink_to(shutil.which(tool))
    (tools / "python3").write_text(FAKE_PYTHON)
    (tools / "python3").chmod(0o755)
    shell, venv = shutil.which(request.param), tmp_path / ".venv"

    class Checkout:
        python = [str(venv / "bin" / "python")]
        folder = tmp_path

        @staticmethod
        def source(**variables):
            (tmp_path / "log").write_text("")
            status, python, messages = source_environment(shell, tmp_path, PATH=str(tools), PYTHON="", **variables)
            return status, python, (tmp_path / "log").read_text().split(), messages

    return Checkout


def test_an_environment_is_made_once(checkout):
    assert checkout.source()[:3] == (0, checkout.python, ["venv", "pip"])
    assert checkout.source()[:3] == (0, checkout.python, [])
    assert not (checkout.folder / ".venv" / "incomplete").exists()


def test_an_interrupted_installation_is_made_anew(checkout):
    status, python, log, _ = checkout.source(NO_NETWORK="1")
    assert status != 0 and python == [] and log == ["venv", "pip"]
    (checkout.folder / ".venv" / "bin" / "satisfied").touch()  # it looks complete
    assert checkout.source()[:3] == (0, checkout.python, ["venv", "pip"])


def test_an_environment_that_lacks_a_package_is_completed(checkout):
    checkout.source()
    (checkout.folder / ".venv" / "bin" / "satisfied").unlink()
    assert checkout.source()[:3] == (0, checkout.python, ["pip"])


def test_an_environment_that_does_not_run_is_made_anew(checkout):
    checkout.source()
    (checkout.folder / ".venv" / "bin" / "satisfied").unlink()
    (checkout.folder / ".venv" / "bin" / "broken").touch()
    assert checkout.source()[:3] == (0, checkout.python, ["venv", "pip"])


def test_a_python_that_is_not_there_is_one_line():
    status, python, messages = source_environment(SHELLS[0], ROOT, PYTHON="env/bin/python")
    assert status == 2 and python == []
    assert messages == ["environment: PYTHON=env/bin/python: no such program; give its whole path, or leave it out"]


def test_an_old_python_is_refused_in_one_line(checkout):
    status, python, log, messages = checkout.source(OLD_PYTHON="1")
    assert status == 1 and python == [] and log == []
    assert messages[-1].startswith("environment: no Python >= 3.10 with venv") and len(messages) == 2
    assert not (checkout.folder / ".venv").exists()
