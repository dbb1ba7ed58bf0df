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


# The rooms of helper/, from the ground up: each may import those before it, and the files of its own folder.
ROOMS = """errors settings distributed files data networks training clouds student experiments report""".split()
BESIDE = {"cli": {"errors", "settings", "distributed"}}  # for the scripts alone


def sources(*folders):
    """The files in these folders, at any depth; of the top folder the scripts alone."""
    found = []
    for folder in folders:
        found += sorted((ROOT / folder).glob("*.py") if folder == "." else (ROOT / folder).rglob("*.py"))
    return found


def name_of(path):
    """helper/files/run.py -> 'helper.files.run'."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path):
    """Dotted names of the project's modules that a file imports, wherever in it, but for the type checker."""
    package = list(path.relative_to(ROOT).parts[:-1])
    tree = ast.parse(path.read_text())
    for node in tree.body:
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            node.body = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            outer = package[: len(package) - node.level + 1] if node.level else []
            base = ".".join([*outer, *filter(None, [node.module])])
            names = [f"{base}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            if parts[0] not in (*MAY_IMPORT, *SCRIPTS):
                continue
            while parts and not ((ROOT / Path(*parts)).with_suffix(".py").is_file() or (ROOT / Path(*parts)).is_dir()):
                parts.pop()
            yield ".".join(parts)


def test_imports_go_from_scripts_to_helper_to_the_rest():
    for package, allowed in MAY_IMPORT.items():
        for path in sources(package):
            found = {name.split(".")[0] for name in imports(path)} - {package}
            assert found <= allowed, f"{path.relative_to(ROOT)} imports {found - allowed}"


def test_imports_between_the_rooms_of_helper_go_down():
    seen = set()
    for path in sources("helper"):
        room = Path(*path.relative_to(ROOT / "helper").parts[:1]).stem
        if room == "__init__":
            continue
        below = BESIDE[room] if room in BESIDE else set(ROOMS[: ROOMS.index(room)])
        found = {name.split(".")[1] for name in imports(path) if name.startswith("helper.")} - {room}
        assert found <= below, f"{path.relative_to(ROOT)} imports {found - below}"
        seen |= found
    assert {"settings", "files", "training", "clouds"} <= seen
    assert not list(imports(ROOT / "helper" / "errors.py"))


def test_the_ground_floor_of_helper_is_small():
    assert len([path for path in (ROOT / "helper").iterdir() if path.is_file()]) <= 8


def test_no_module_imports_itself_by_a_detour():
    graph = {name_of(path): set(imports(path)) - {name_of(path)} for path in sources(".", *MAY_IMPORT)}
    assert {"dataset", "helper.errors", "helper.settings"} <= graph["helper.data"]  # the graph is not empty
    packages = {name for name in graph if (ROOT / name.replace(".", "/")).is_dir()}
    for name in graph:  # what a file takes from its own package is a file of it, which is in the graph itself
        graph[name] -= {package for package in packages if name.startswith(f"{package}.")}
    graphlib.TopologicalSorter(graph).prepare()  # raises CycleError


def names_in(path):
    """Every name and attribute that stands in a file, and every parameter."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Name):
            yield node.id
        elif isinstance(node, ast.Attribute):
            yield node.attr
        elif isinstance(node, ast.arg):
            yield node.arg


def test_the_command_line_is_known_to_scripts_and_cli_alone():
    for path in sources("helper"):
        if path.parent.name != "cli":
            found = {"Namespace", "argparse", "ArgumentParser"} & set(names_in(path))
            assert not found or path.name == "checkpoint.py", f"{path}: {found}"  # which may find one in a file
            parameters = {node.arg for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.arg)}
            assert "args" not in parameters, path


@pytest.mark.parametrize("name", SCRIPTS)
def test_a_script_is_read_in_one_sitting(name):
    lines = (ROOT / f"{name}.py").read_text().splitlines()
    assert len(lines) <= 280
    assert lines[-2] == 'if __name__ == "__main__":'
    assert lines[-1] in ("    run(main, get_args_parser)", "    run(main, get_args_parser, several=True)")
    first = next(line for line in lines if line.startswith(("import", "from")))
    assert first == "import helper.cli.early  # noqa: F401"


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
