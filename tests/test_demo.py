"""demo.sh, train_teacher.sh and train_student.sh: every call they make is one that the programs understand; and the
demo, shortened, runs through."""

import csv
import importlib
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from helper.cli.parser import read
from helper.settings import Clouds, Data, Loss, Repetition, Training
from helper.student.weights import resolve

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = ("demo.sh", "train_teacher.sh", "train_student.sh")
SHELLS = [shell for shell in ("sh", "dash", "bash") if shutil.which(shell)]

# Stands in for Python: says yes to the check of the environment, and `off` when asked for the precision of the demo;
# notes all other calls, an argument a line.
RECORDER = """#!/bin/sh
case $1 in
    *.py) ;;
    -c) echo off; exit 0 ;;
    *) exit 0 ;;
esac
printf '%s\\n' call "$@" >>"$CALLS"
"""


def options_only(**variables) -> dict:
    """The environment without variables that the scripts would take for theirs."""
    return {key: os.environ[key] for key in ("PATH", "HOME") if key in os.environ} | variables


@pytest.fixture
def calls(tmp_path):
    """Runs a script with the recorder for Python; returns (program, parsed options) of every call."""
    recorder = tmp_path / "recorder"
    recorder.write_text(RECORDER)
    recorder.chmod(0o755)
    (tmp_path / "helper").mkdir()
    for name in (*SCRIPTS, "requirements.txt", "helper/environment.sh"):
        shutil.copy(ROOT / name, tmp_path / name)

    def run(script, *arguments, shell="sh", **variables):
        log = tmp_path / "calls"
        log.write_text("")
        environment = options_only(CALLS=str(log), **{"PYTHON": str(recorder)} | variables)
        subprocess.run([shell, str(tmp_path / script), *arguments], env=environment, check=True, capture_output=True)
        found = []
        for call in log.read_text().split("call\n")[1:]:
            path, *options = call.splitlines()
            program = Path(path).stem
            parser = importlib.import_module(program).get_args_parser()
            parser.adopt_recipe(options)
            args = parser.parse_args(options)
            if program == "train_student":
                check_student(args)
            found.append((program, args))
        return found

    return run


def check_student(args) -> None:
    """UserError where the options of a student do not go together."""
    sections = [read(args, section) for section in (Loss, Clouds, Data, Training)]
    resolve(*sections, read(args, Repetition).resolved(), "resnet56", args.model_s)


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("script", SCRIPTS)
def test_scripts_parse(shell, script):
    subprocess.run([shell, "-n", str(ROOT / script)], check=True)


@pytest.mark.parametrize("shell", SHELLS)
def test_calls_of_the_demo(calls, shell):
    found = calls("demo.sh", shell=shell, SEED="3")
    programs = [program for program, _ in found]
    assert programs == [
        "train_teacher",
        "generate_PCD_PI",
        "train_ripsnet",
        *["train_student"] * 5,
        "make_tables",
        "visualize",
    ]
    assert all(args.dataset == "digits" for _, args in [*found[:8], found[-1]])
    students = [args for program, args in found if program == "train_student"]
    weights = [(args.gamma, args.alpha, args.delta, args.topology) for args in students]
    assert weights == [
        (1, 0, 0, None),
        (None, None, None, None),
        (None, None, 5, None),
        (None, None, 5, "exact"),
        (1, 0, 5, "exact"),
    ]
    assert {(args.trial, args.seed, args.epochs) for args in students} == {(3, None, students[0].epochs)}
    ripsnet, topkd, figure = found[2][1], students[2], found[-1][1]
    assert ripsnet.operator == topkd.operator == figure.operator
    assert len({args.path_t for _, args in [*found[1:8], found[-1]]}) == 1
    assert {args.amp for _, args in found if hasattr(args, "amp")} == {"off"}


def test_the_demo_s_precision_can_be_given(calls):
    assert {args.amp for _, args in calls("demo.sh", AMP="bf16") if hasattr(args, "amp")} == {"bf16"}


def test_python_may_be_given_relative_to_the_repository(calls):
    assert len(calls("demo.sh", PYTHON="./recorder")) == 10


def test_calls_for_teachers(calls):
    found = calls("train_teacher.sh", "--amp", "bf16", MODEL="ShuffleV1", TRIALS="1 2", EPOCHS="3")
    assert [(program, args.model, args.trial, args.epochs) for program, args in found] == [
        ("train_teacher", "ShuffleV1", 1, 3),
        ("train_teacher", "ShuffleV1", 2, 3),
    ]
    assert all(args.resume and args.amp == "bf16" and args.lr is None for _, args in found)
    [(_, args)] = calls("train_teacher.sh", LR="0.1")
    assert (args.lr, args.epochs, args.lr_decay_epochs, args.batch_size) == (0.1, 240, (150, 180, 210), 64)
    [(_, args)] = calls("train_teacher.sh", DATASET="imagenet", MODEL="resnet34_imagenet")
    assert (args.lr, args.epochs, args.lr_decay_epochs, args.batch_size) == (None, 100, (30, 60, 90), 256)


def test_calls_for_students_are_the_published_pair(calls):
    found = calls("train_student.sh")
    assert [program for program, _ in found] == ["generate_PCD_PI", "train_ripsnet", *["train_student"] * 3]
    for name in ("path_t", "dataset", "batch_size", "dim", "tda_layer_t", "pcd_bn", "sigma_rule"):
        assert len({getattr(args, name) for _, args in found}) == 1, name
    clouds, ripsnet, *students = (args for _, args in found)
    assert (clouds.passes, ripsnet.epochs, ripsnet.operator, ripsnet.resume) == (256, 25000, "mean", True)
    assert [args.trial for args in students] == [1, 2, 3]
    assert {(args.model_s, args.topology, args.operator, args.delta, args.epochs) for args in students} == {
        ("resnet20", "ripsnet", "mean", None, 240)
    }
    assert all(args.resume for args in students)


@pytest.mark.parametrize(
    "variables, stages",
    [
        ({"TOPOLOGY": ""}, []),
        ({"TOPOLOGY": "", "DISTILL": "crd"}, []),
        ({"TOPOLOGY": "", "DELTA": "5"}, []),
        ({"TOPOLOGY": "", "ALPHA": "2"}, []),
        ({"DELTA": "0"}, []),
        ({"TOPOLOGY": "wasserstein"}, []),
        ({"TOPOLOGY": "exact"}, ["generate_PCD_PI"]),
        ({"DIM": "01", "OPERATOR": "sum"}, ["generate_PCD_PI", "train_ripsnet"]),
    ],
)
def test_calls_for_students_make_only_what_is_needed(calls, variables, stages):
    found = calls("train_student.sh", "--device", "cpu", TRIALS="4", MODEL_T="resnet56", GAMMA="1", **variables)
    assert [program for program, _ in found] == [*stages, "train_student"]
    args = found[-1][1]
    assert (args.device.type, args.model_t, args.gamma) == ("cpu", "resnet56", 1)
    wanted = "" if variables.get("DELTA") == "0" else variables.get("TOPOLOGY", "ripsnet")
    assert (args.topology or "") == wanted
    assert wanted or not args.delta


def test_clouds_have_a_seed_of_their_own(calls):
    for variables, seed in (({}, 0), ({"CLOUD_SEED": "1"}, 1)):
        (_, clouds), (_, ripsnet), (_, student) = calls("train_student.sh", TRIALS="3", **variables)
        assert (clouds.seed, ripsnet.seed, student.seed) == (seed, 1, None)


def test_the_cache_is_asked_for_in_stage_2_and_of_students_alike(calls):
    for value, asked in (("1", True), ("", False)):
        (_, clouds), (_, student) = calls("train_student.sh", TOPOLOGY="exact", TRIALS="1", TEACHER_CACHE=value)
        assert (clouds.teacher_cache, student.teacher_cache) == (asked, asked)
    of_batches = {"TOPOLOGY": "exact", "TRIALS": "1", "TEACHER_CACHE": "1", "PCD_BN": "train"}
    (_, clouds), (_, student) = calls("train_student.sh", **of_batches)
    assert (clouds.teacher_cache, student.teacher_cache) == (False, True)


@pytest.mark.slow
def test_the_demo_runs_through(tmp_path):
    for path in [*ROOT.glob("*.py"), *ROOT.glob("*.sh"), ROOT / "requirements.txt"]:
        shutil.copy(path, tmp_path)
    for folder in ("dataset", "distiller_zoo", "helper", "models", "ripsnet"):
        unused = shutil.ignore_patterns("__pycache__", "resnet*_trial*")
        shutil.copytree(ROOT / folder, tmp_path / folder, ignore=unused)
    leftover = tmp_path / "results" / "demo" / "results" / "runs" / "old.csv"
    leftover.parent.mkdir(parents=True)
    leftover.write_text("of an earlier demo\n")

    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": "", "MODEL_T": "resnet8"}
    environment |= {"EPOCHS_T": "1", "EPOCHS_S": "1", "PASSES": "2", "EPOCHS_R": "2"}
    ended = subprocess.run(["sh", str(tmp_path / "demo.sh")], env=environment, capture_output=True, text=True)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert not (tmp_path / ".venv").exists() and not leftover.exists()

    demo = tmp_path / "results" / "demo"
    students = (demo / "tables.md").read_text().split("## digits: resnet8 (")[1]
    lines = [line.strip("|").split("|") for line in students.splitlines() if line.startswith("|")]
    heading, _, *rows = [[cell.strip() for cell in line] for line in lines]
    table = {row[0].split()[0]: dict(zip(heading, row, strict=True)) for row in rows}
    assert set(table) == {"CE", "CE+Top-exact", "KD", "TopKD", "TopKD-exact"}
    assert all(0 <= float(row["last"]) <= float(row["best"]) <= 100 for row in table.values())
    assert [name for name, row in table.items() if row["R² validation"] != "-"] == ["TopKD"]
    for name in ("results/demo/tables.md", "results/demo/figures/"):
        assert name in ended.stdout

    [figure] = (demo / "figures").glob("pi_resnet8_digits_trial1_dim0_*.png")
    assert figure.read_bytes().startswith(b"\x89PNG")
    with open(figure.with_suffix(".csv")) as file:
        pixels = list(csv.DictReader(file))
    assert len(pixels) == 4 * 400
    for kind in ("exact", "ripsnet", "training_mean"):
        assert all(0 <= float(row[kind]) <= 1.0001 for row in pixels)
