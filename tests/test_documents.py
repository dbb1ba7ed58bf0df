"""The README files, scripts' docstrings and shell scripts: links lead somewhere, commands exist, snippets run, and the
numbers in the text are those of the rows."""

import ast
import csv
import importlib
import itertools
import json
import re
import statistics
import textwrap
from pathlib import Path

import pytest
import scipy.stats
import torch

import models
from distiller_zoo import distiller_dict

ROOT = Path(__file__).resolve().parent.parent
FOLDERS = ("models", "distiller_zoo", "dataset", "ripsnet", "helper", "results", "save_t_models", "tests", "benchmarks")
README = [
    str(path.relative_to(ROOT))
    for path in [ROOT / "README.md", *(path for folder in FOLDERS for path in sorted((ROOT / folder).rglob("*.md")))]
    if path.name == "README.md"
]
SCRIPTS = [path.stem for path in sorted(ROOT.glob("*.py"))]
DOCUMENTS = [*README, *sorted(path.name for path in ROOT.glob("*.sh")), *(f"{name}.py" for name in SCRIPTS)]
WITHOUT_COMMANDS = {"test.sh", "tests/published/README.md"}
LARGEST_README = 16 * 1024  # bytes: a page that a reader finishes


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def test_all_readmes_are_found():
    assert {"README.md", "results/README.md", "results/figures/README.md", "benchmarks/README.md"} < set(README)


def test_the_readme_is_a_page_that_a_reader_finishes():
    assert len(read("README.md").encode()) <= LARGEST_README


# Links and paths


def prose(text):
    """A document without its blocks of code and HTML comments."""
    return re.sub(r"^    .*$|<!--.*?-->", "", text, flags=re.MULTILINE)


def anchors(text):
    """The anchors of a document's headings, as GitHub makes them: lower case, no punctuation, hyphens for spaces."""
    headings = re.findall(r"^#+ (.*)$", prose(text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def links(text):
    return re.findall(r"\]\(([^)\s]+)\)", prose(text))


@pytest.mark.parametrize("name", README)
def test_links_lead_to_files_and_headings(name):
    for link in links(read(name)):
        if re.match("https?://", link):
            continue
        path, _, anchor = link.partition("#")
        target = (ROOT / name).parent / path if path else ROOT / name
        assert target.exists(), f"{name}: {link}"
        if anchor:
            assert anchor in anchors(target.read_text(encoding="utf-8")), f"{name}: {link}"


def test_every_readme_of_the_project_is_reached_from_the_first():
    reached, waiting = set(), ["README.md"]
    while waiting:
        name = waiting.pop()
        reached.add(name)
        targets = [((ROOT / name).parent / link.split("#")[0]).resolve() for link in links(read(name))]
        names = {str(path.relative_to(ROOT)) for path in targets if path.name == "README.md"}
        waiting.extend(names - reached)
    assert reached == set(README) - {"tests/published/README.md"}


def test_anchors_are_those_of_github():
    text = "# Two words\n## `pi`: images\n### ResNet-20 (61 %) > B_c\n    # in code\n"
    assert anchors(text) == {"two-words", "pi-images", "resnet-20-61---b_c"}


@pytest.mark.parametrize("name", README)
def test_files_that_are_named_exist(name):
    """Paths in backticks, from the repository's folder or the document's, but for what a run will write."""
    for path in re.findall(r"`((?:\w[\w.-]*/)+(?:[\w-]+\.\w+)?)`", prose(read(name))):
        if not path.startswith(("save_s_models/", "first_stage/", "data/")):
            assert any((folder / path).exists() for folder in (ROOT, (ROOT / name).parent)), f"{name}: {path}"


def test_figures_and_their_numbers_are_shown():
    shown = {link for link in links(read("results/figures/README.md")) if link.endswith(".png")}
    shown |= {Path(link).name for link in links(read("results/README.md")) if link.endswith(".png")}
    assert shown == {path.name for path in (ROOT / "results" / "figures").glob("*.png")}


# Commands


def commands(text):
    """(script, [options]) of the commands in a text: every .py that Python runs or options follow, and python -m."""
    for line in re.sub(r"\\\n\s*", " ", text).splitlines():
        line = re.sub(r"-m (benchmarks)\.(\w+)", r"\1/\2.py", line)
        for python, script, rest in re.findall(r'(python3? +|PYTHON"? +)?(?:\.\./)*([\w/]+)\.py\b([^#|;&`]*)', line):
            options = re.findall(r"(?<=[\s'\[])(--?[a-zA-Z]\w*)", rest)
            if python or options:
                yield script, options


def documented(name):
    """Where a file says what to run: a script in its docstring, a README and the shell scripts anywhere."""
    return ast.get_docstring(ast.parse(read(name))) if name.endswith(".py") else read(name)


def options_of(parser):
    """The options of a parser and of the commands below it."""
    for action in parser._actions:
        yield from action.option_strings
        if isinstance(action.choices, dict):
            yield from itertools.chain(*map(options_of, action.choices.values()))


def known_options(script):
    if script in SCRIPTS:
        return set(options_of(importlib.import_module(script).get_args_parser()))
    module = importlib.import_module(script.replace("/", "."))
    if hasattr(module, "get_args_parser"):
        return set(options_of(module.get_args_parser()))
    return set(re.findall(r'add_argument\(\s*"(--?\w+)"', read(f"{script}.py")))


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documented_commands_exist(name):
    found = list(commands(documented(name)))
    assert found or name in WITHOUT_COMMANDS, f"{name} runs no script"
    for script, options in found:
        assert (ROOT / f"{script}.py").is_file(), f"{name}: python {script}.py"
        if script not in SCRIPTS and not script.startswith("benchmarks/"):
            continue
        unknown = set(options) - known_options(script)
        assert not unknown, f"{name}: python {script}.py {unknown}"


@pytest.mark.parametrize("name", README)
def test_documented_shell_scripts_exist(name):
    for script in re.findall(r"\bsh (\w+\.sh)\b", read(name)):
        assert (ROOT / script).is_file(), f"{name}: sh {script}"


def test_commands_are_read_as_a_shell_reads_them():
    text = 'x; "$PYTHON" ../a.py --one "$X" \\\n   --two=3 -d 5 # --three\npython b/c.py | tee --app\nstage d.py -r -1'
    assert list(commands(text)) == [("a", ["--one", "--two", "-d"]), ("b/c", []), ("d", ["-r"])]
    assert list(commands("python -m benchmarks.memory --output x")) == [("benchmarks/memory", ["--output"])]


def test_every_method_is_listed():
    page = read("distiller_zoo/README.md")
    missing = {method.name for method in distiller_dict.values()} - set(re.findall(r"[A-Z][\w-]*", page))
    assert not missing


# Snippets


def snippets(title):
    """The blocks of code in a section of README.md, in order."""
    section = read("README.md").split(f"## {title}\n")[1].split("\n## ")[0]
    blocks = re.findall(r"(?:^    .*\n|^\n)+", section, re.MULTILINE)
    return [textwrap.dedent(block).strip() + "\n" for block in blocks if block.strip()]


@pytest.fixture
def student(tmp_path, monkeypatch):
    """The names that README's snippets make of a student, and the snippet for ONNX. What they write is in tmp_path."""
    (tmp_path / "save_t_models").symlink_to(ROOT / "save_t_models")
    monkeypatch.chdir(tmp_path)
    evaluation, load, export, onnx = snippets("Using a student")
    assert evaluation.startswith("python evaluate.py")
    names = {}
    exec(load + export, names)
    return names, onnx


def shipped_network():
    saved = torch.load(ROOT / "save_t_models/resnet20_cifar100_small_trial1/best.pth", weights_only=True)
    network = models.create_model("resnet20", 100)
    network.load_state_dict(saved["model"])
    return network.eval()


@pytest.mark.slow
def test_the_student_s_snippet_loads_it_and_the_exported_program_is_the_same_function(student):
    names, _ = student
    images = torch.rand(5, 3, 32, 32)  # another batch size than that of the export
    with torch.no_grad():
        expected = shipped_network()(images)
        assert torch.equal(names["student"](images), expected)
        exported = torch.export.load("student.pt2").module()(images)
    assert not names["student"].training
    torch.testing.assert_close(exported, expected)


@pytest.mark.slow
def test_onnxruntime_computes_what_pytorch_does(student):
    for package in ("onnx", "onnxscript"):
        pytest.importorskip(package)
    onnxruntime = pytest.importorskip("onnxruntime")
    names, onnx = student
    exec(onnx, names)
    images = torch.rand(5, 3, 32, 32)
    session = onnxruntime.InferenceSession("student.onnx")
    (found,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(found), shipped_network()(images), rtol=1e-4, atol=1e-4)


# Numbers


def values(method, column="last"):
    """A column of a method of cifar100_small, by seed, from the rows."""
    rows = {}
    for path in (ROOT / "results" / "runs").glob(f"resnet20-resnet8_cifar100_{method}_small_trial*.csv"):
        (row,) = csv.DictReader(path.read_text().splitlines())
        rows[row["seed"]] = float(row[column])
    return rows


def words(name):
    """The text of a document before its generated tables, without line breaks and bold type."""
    return re.sub(r"\s+", " ", read(name).split("<!-- tables -->")[0]).replace("**", "")


def test_the_first_result_is_that_of_the_rows_and_of_the_shipped_ripsnet():
    teacher = "resnet20_cifar100_small_trial1"
    (row,) = csv.DictReader((ROOT / "results/runs" / f"{teacher}.csv").read_text().splitlines())
    fitted = ROOT / "ripsnet" / teacher / "layer-1_n64_eval_released/ripsnet_dim0_mean/quality.json"
    control, r2 = values("KD-control").values(), values("TopKD", "student_r2").values()
    text = words("README.md")
    assert f"ResNet20 ({float(row['best']):.2f} %) > ResNet8" in text
    assert f"({statistics.mean(control):.2f} ± {statistics.stdev(control):.2f} %, n = {len(control)})" in text
    assert f"(R² {json.loads(fitted.read_text())['r2']:.3f} on validation clouds, n = 1)" in text
    assert len(r2) == 5 and f"(R² from {min(r2):.0f} to {max(r2):.0f} in five runs)" in text


@pytest.mark.parametrize(
    "name, method, control",
    [
        ("README.md", "TopKD", "KD-control"),
        ("README.md", "TopKD-exact", "KD-control"),
        ("results/README.md", "TopKD", "KD-control"),
        ("results/README.md", "TopKD-exact", "KD-control"),
        ("results/README.md", "TopKD-wasserstein", "KD-control"),
        ("results/README.md", "TopKD-exact", "TopKD"),
    ],
)
def test_intervals_in_the_text_are_those_of_the_rows(name, method, control):
    one, other = values(method), values(control)
    seeds = sorted(one.keys() & other.keys())
    test = scipy.stats.ttest_rel([one[seed] for seed in seeds], [other[seed] for seed in seeds])
    low, high = test.confidence_interval(0.95)
    mean = sum(one[seed] - other[seed] for seed in seeds) / len(seeds)
    assert f"{mean:+.2f} [{low:+.2f}, {high:+.2f}]" in words(name)


def test_benchmarks_are_those_of_their_reports():
    """The cost of the exact term, which README.md repeats, and the highest and lowest of the methods."""
    reports = ROOT / "benchmarks" / "results"
    cost = re.search(r"cost of the exact term .*, ([\d.]+) by the median", (reports / "training_loop.txt").read_text())[
        1
    ]
    assert f"{100 * float(cost):.1f} %" in read("README.md") and f"{100 * float(cost):.1f} %" in read(
        "benchmarks/README.md"
    )
    report = (reports / "methods.txt").read_text()
    steps = {name: float(value) for name, value in re.findall(r"^\| ([\w() -]+) \| ([\d.]+) \|", report, re.MULTILINE)}
    for name in ("KD-SVD", "SemCKD", "ReviewKD"):
        written = re.search(rf"{name} ([\d.]+)", read("benchmarks/README.md"))[1]
        assert float(written) == pytest.approx(steps.pop(name), abs=0.051)
    assert 0.85 <= min(steps.values()) and max(steps.values()) < 1.2
