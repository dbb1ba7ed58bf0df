"""The shape of the repository: which way imports go, how long scripts are, what lies at the top."""

import ast
import graphlib
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
