"""The shape of the repository: which way imports go, how long scripts are, and that documented commands exist."""

import ast
import graphlib
import importlib
import itertools
import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MAY_IMPORT = {
    "models": set(),
    "distiller_zoo": set(),
    "dataset": set(),
    "ripsnet": set(),
    "helper": {"models", "distiller_zoo", "dataset", "ripsnet"},
}
SCRIPTS = [path.stem for path in sorted(ROOT.glob("*.py"))]
TOP_LEVEL = set(
    """README.md environment.yml requirements.txt pyproject.toml LICENSE demo.sh test.sh train_teacher.sh
    train_student.sh train_teacher.py generate_PCD_PI.py train_ripsnet.py train_student.py evaluate.py reproduce.py
    make_tables.py visualize.py models distiller_zoo dataset ripsnet helper save_t_models data results tests
    benchmarks""".split()
)
DOCUMENTS = ["README.md", *sorted(path.name for path in ROOT.glob("*.sh")), *(f"{name}.py" for name in SCRIPTS)]


def sources(*folders):
    return [path for folder in folders for path in sorted((ROOT / folder).glob("*.py"))]


def imports(path):
    """Dotted names of the project's modules that a file imports, wherever in it."""
    package = [path.parent.name] if path.parent != ROOT else []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = ".".join([*(package if node.level else []), *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            is_module = (ROOT / Path(*parts[:2])).with_suffix(".py").is_file()
            if parts[0] in (*MAY_IMPORT, *SCRIPTS):
                yield ".".join(parts[:2]) if is_module else parts[0]


def test_imports_go_from_scripts_to_helper_to_the_rest():
    for package, allowed in MAY_IMPORT.items():
        for path in sources(package):
            found = {name.split(".")[0] for name in imports(path)} - {package}
            assert found <= allowed, f"{path.relative_to(ROOT)} imports {found - allowed}"


def test_no_module_imports_itself_by_a_detour():
    graph = {}
    for path in sources(".", *MAY_IMPORT):
        name = path.stem if path.parent == ROOT else f"{path.parent.name}.{path.stem}".removesuffix(".__init__")
        graph[name] = set(imports(path)) - {name}
    assert {"helper.loop", "dataset"} <= graph["helper.distillation"] | graph["helper.data"]  # the graph is not empty
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_read_in_one_sitting(name):
    lines = (ROOT / f"{name}.py").read_text().splitlines()
    assert len(lines) <= 280
    assert lines[-2:] == ['if __name__ == "__main__":', "    run(main, get_args_parser())"]


def test_files_are_never_unpickled():
    for path in sources(".", *MAY_IMPORT, "tests", "benchmarks"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "torch.load":
                options = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
                assert options.get("weights_only") == "True", f"{path.relative_to(ROOT)}:{node.lineno}"


def test_nothing_else_lies_at_the_top():
    if not (shutil.which("git") and (ROOT / ".git").exists()):
        pytest.skip("not a git checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    names = {name.split("/")[0] for name in listed.split("\0") if name and not name.startswith(".")}
    assert names <= TOP_LEVEL, names - TOP_LEVEL


def commands(text):
    """(script, [options]) of the commands in a text: every .py that Python runs or options follow."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        for python, script, rest in re.findall(r'(python3? +|PYTHON"? +)?(?:\.\./)*([\w/]+)\.py\b([^#|;&`]*)', line):
            options = re.findall(r"(?<=[\s'\[])(--?[a-zA-Z]\w*)", rest)
            if python or options:
                yield script, options


def documented(name):
    """Where a file says what to run: a script in its docstring, README and the shell scripts anywhere."""
    text = (ROOT / name).read_text()
    return ast.get_docstring(ast.parse(text)) if name.endswith(".py") else text


def options_of(parser):
    """The options of a parser and of the commands below it."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action.choices, dict):
            yield from itertools.chain(*map(options_of, action.choices.values()))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documented_commands_exist(name):
    if not (ROOT / name).exists():
        pytest.skip(f"there is no {name} yet")
    found = list(commands(documented(name)))
    assert found or name == "test.sh", f"{name} runs no script"
    for script, options in found:
        assert (ROOT / f"{script}.py").is_file(), f"{name}: python {script}.py"
        if script not in SCRIPTS:
            continue
        unknown = set(options) - set(options_of(importlib.import_module(script).get_args_parser()))
        assert not unknown, f"{name}: python {script}.py {unknown}"


def test_commands_are_read_as_a_shell_reads_them():
    text = 'x; "$PYTHON" ../a.py --one "$X" \\\n   --two=3 -d 5 # --three\npython b/c.py | tee --app\nstage d.py -r -1'
    assert list(commands(text)) == [("a", ["--one", "--two", "-d"]), ("b/c", []), ("d", ["-r"])]
