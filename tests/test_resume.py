"""A run that is killed, interrupted or cut off by a full disk goes on to the same end, bit for bit, in all four stages.

Every run is a process of its own, forked from one that has imported everything already; tests/killed.py says what a
POINT is.
"""

import csv
import hashlib
import itertools
import json
import multiprocessing
import os
import shutil
import signal
from pathlib import Path

import killed
import pytest
import torch
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helper import checkpoint, runs

ROOT = Path(__file__).resolve().parent.parent
TEACHER = "save_t_models/resnet8_tiny_trial1"
CLOUDS = "ripsnet/resnet8_tiny_trial1/layer-1_n16_eval_released"
IMAGES = "--dataset tiny --batch_size 16 --epochs 2 --lr 0.02"
SET = f"--path_t {TEACHER}/best.pth --dataset tiny --batch_size 16 --dim 01"
STAGES = {
    "teacher": f"train_teacher.py --model resnet8 {IMAGES}",
    "clouds": f"generate_PCD_PI.py {SET} --passes 2",
    "ripsnet": f"train_ripsnet.py {SET} --epochs 2 --batch_clouds 4",
    "student": f"train_student.py --path_t {TEACHER}/best.pth --dim 01 --model_s resnet8 --topology exact "
    f"--tda_layer_s -3 {IMAGES}",
}
NOT_COMPARED = {*runs.TIME_COLUMNS, "resume", "commit"}  # the repository may be worked on while the tests run


def execute(point, folder, command):
    """Run a script and its options in a folder up to a point. Returns (exit status, what it printed)."""
    receiver, sender = PROCESSES.Pipe(duplex=False)  # a pipe, because a file could not grow on a full disk
    process = PROCESSES.Process(target=enter, args=(sender, folder, point, *command.split()))
    process.start()
    sender.close()
    printed = b"".join(iter(lambda: os.read(receiver.fileno(), 1 << 16), b""))
    process.join()
    return process.exitcode, printed.decode()


def enter(output, folder, point, script, *options):
    os.dup2(output.fileno(), 1)
    os.dup2(output.fileno(), 2)
    output.close()
    os.chdir(folder)
    killed.main(point, str(ROOT / script), *options)


def resume(folder, stage):
    status, printed = execute("none", folder, STAGES[stage] + " --resume" * (stage != "clouds"))
    assert status == 0, printed
    return printed


PROCESSES = multiprocessing.get_context("forkserver")
PROCESSES.set_forkserver_preload(["killed"])
os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), str(ROOT / "tests")])


def comparable(value):
    """A checkpoint's content, tensors as bytes (so that nan equals nan), without what may differ."""
    if isinstance(value, dict):
        return {key: comparable(item) for key, item in value.items() if key not in NOT_COMPARED}
    if isinstance(value, list | tuple):
        return [comparable(item) for item in value]
    if isinstance(value, torch.Tensor):
        return value.dtype, value.shape, value.numpy().tobytes()
    return value


def content(path):
    if path.suffix == ".pth":
        return comparable(checkpoint.load(path))
    if path.suffix == ".csv":
        return [comparable(row) for row in csv.DictReader(path.read_text().splitlines())]
    if path.name in ("args.json", "quality.json"):
        return comparable(json.loads(path.read_text()))
    return path.read_bytes()


def artefacts(folder):
    """All that a run leaves behind; `previous.pth` depends on when the run was interrupted."""
    paths = (path for suffix in ("pth", "csv", "json", "npy") for path in sorted(folder.rglob(f"*.{suffix}")))
    return {str(path.relative_to(folder)): content(path) for path in paths if path.name != "previous.pth"}


def hashes(folder):
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in folder.rglob("*")
        if path.is_file() and "tfevents" not in path.name
    }


@pytest.fixture(scope="module")
def ends(tmp_path_factory):
    """The folders in which each stage, and those before it, ran without a stop."""
    folders = {}
    for stage, command in STAGES.items():
        folder = tmp_path_factory.mktemp(stage)
        if folders:
            shutil.copytree(list(folders.values())[-1], folder, dirs_exist_ok=True)
        status, printed = execute("none", folder, command)
        assert status == 0, printed
        folders[stage] = folder
    return folders


@pytest.fixture(scope="module")
def expected(ends):
    return {stage: artefacts(folder) for stage, folder in ends.items()}


@pytest.fixture
def begin(ends, tmp_path):
    """A function that makes a folder in which the stages before the given one have run."""
    numbers = itertools.count()

    def make(stage):
        before = dict(zip(STAGES, [None, *ends.values()], strict=False))[stage]
        folder = tmp_path / str(next(numbers))
        shutil.copytree(before, folder) if before else folder.mkdir()
        return folder

    return make


def test_the_runs_that_are_compared_are_not_trivial(expected):
    paths = " ".join(expected["student"])
    for part in ("best.pth", "log.csv", "args.json", "images_dim1/00002.npy", "ripsnet_dim1_mean", "results/runs"):
        assert part in paths
    assert {len(rows) for path, rows in expected["student"].items() if path.endswith("log.csv")} == {2}


@pytest.mark.parametrize(
    "stage, point",
    [
        pytest.param("teacher", "batch:15", id="teacher, in the middle of epoch 2"),
        pytest.param("teacher", "half:3", id="teacher, first checkpoint half written"),
        pytest.param("teacher", "replace:5", id="teacher, between checkpoint and row of the log"),
        pytest.param("clouds", "batch:2", id="clouds, in the middle of a chunk"),
        pytest.param("clouds", "half:13", id="clouds, image half written"),
        pytest.param("ripsnet", "replace:7", id="ripsnet, no last.pth between two renames"),
        pytest.param("student", "batch:15", id="student, in the middle of epoch 2"),
    ],
)
def test_a_killed_run_ends_as_one_that_never_stopped(begin, expected, stage, point):
    folder = begin(stage)
    status, _ = execute(point, folder, STAGES[stage])
    assert status == -signal.SIGKILL
    resume(folder, stage)
    assert artefacts(folder) == expected[stage]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["replace", "half", "full"])
@pytest.mark.parametrize("stage", STAGES)
def test_a_run_may_be_stopped_at_any_of_its_writes(begin, expected, stage, kind):
    for number in itertools.count(1):
        folder = begin(stage)
        status, printed = execute(f"{kind}:{number}", folder, STAGES[stage])
        if status == 0:
            break
        assert status == (1 if kind == "full" else -signal.SIGKILL)
        assert "Traceback" not in printed
        resume(folder, stage)
        assert artefacts(folder) == expected[stage], f"{kind}:{number}"
        shutil.rmtree(folder)
    assert number > 10
