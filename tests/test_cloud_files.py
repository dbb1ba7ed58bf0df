"""Files of stages 2 and 3 that are damaged, foreign or cut off are refused, and a folder has one user."""

import gc
import hashlib
import itertools
import json
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.marks import slow_but
from support.processes import ROOT, execute
from support.running import CLOUDS, POINTS, TEACHER, call, make_clouds, refused, work_in

import generate_PCD_PI
import train_ripsnet
from helper.clouds import fitting
from helper.clouds.fitting import CloudData
from helper.clouds.store import CloudSet
from helper.errors import UserError
from helper.files import checkpoint
from helper.student.topology import load_spec
from helper.training import progress
from models import create_model

SET = ("--path_t", TEACHER, "--dataset", "noise", "--device", "cpu", "--batch_size", POINTS)
FITTED = CLOUDS / "ripsnet_dim0_mean"
DEEP = "[" * 100_000


def fit(*options):
    call(train_ripsnet, *SET, "--epochs", 2, "--batch_clouds", 4, *options)


def contents(folder):
    """Bytes of everything below a folder, without locks, which name a process, and args.json, which has its command."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "args.json"]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths if not path.name.startswith(".lock")}


def without_checksums(folder=CLOUDS):
    """As a set was left before there were checksums."""
    for path in folder.glob("*/checksums.txt"):
        path.unlink()


def replace(path, array):
    with open(path, "wb") as file:
        np.save(file, array)


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    work_in(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder of a finished set of ten clouds; not to be changed."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        work_in(folder, patch)
        make_clouds()
    return folder / CLOUDS


@pytest.fixture
def clouds(made):
    """A copy of it in its place."""
    shutil.copytree(made, CLOUDS)
    return CLOUDS


# What chunks prove


def test_checksums_are_those_of_sha256sum(made):
    for kind in ("clouds", "diagrams_dim0", "images_dim0"):
        lines = (made / kind / "checksums.txt").read_text().splitlines()
        names = ["../clouds.json", "00000.npy", "00001.npy"]
        sums = [hashlib.sha256((made / kind / name).read_bytes()).hexdigest() for name in names]
        assert lines == [f"{found}  {name}" for found, name in zip(sums, names, strict=True)]


@pytest.mark.parametrize("script", [generate_PCD_PI, train_ripsnet])
def test_clouds_of_which_nothing_says_what_they_are_get_no_new_origin(clouds, monkeypatch, capsys, script):
    (clouds / "clouds.json").unlink()
    before = contents(clouds)
    line = refused(monkeypatch, capsys, script, *SET, "--seed", 2)
    assert "holds clouds, diagrams_dim0, images_dim0, but no clouds.json" in line and "remove these folders" in line
    assert contents(clouds) == before
    for kind in ("clouds", "diagrams_dim0", "images_dim0"):  # as the line says
        shutil.rmtree(clouds / kind)
    make_clouds()
    fit()


@pytest.mark.parametrize("script", [generate_PCD_PI, train_ripsnet])
def test_a_clouds_json_written_by_hand_is_not_believed(clouds, monkeypatch, capsys, script):
    for name in ("clouds.json", "spec_dim0.json"):
        content = json.loads((clouds / name).read_text())
        (clouds / name).write_text(json.dumps(content | {"seed": 2}))
    line = refused(monkeypatch, capsys, script, *SET, "--passes" if script is generate_PCD_PI else "--epochs", 2)
    assert "clouds/checksums.txt: not of the clouds that" in line or "seed was 2, now 0" in line
    if script is generate_PCD_PI:
        line = refused(monkeypatch, capsys, script, *SET, "--passes", 2, "--seed", 2)
        assert "clouds/checksums.txt: not of the clouds that" in line and f"remove {clouds}/clouds," in line


@pytest.mark.parametrize("kind", ["clouds", "images_dim0"])
def test_a_chunk_of_another_set_is_noticed(made, clouds, monkeypatch, capsys, kind):
    shutil.move(clouds, "kept")
    make_clouds("--seed", 2)
    shutil.copy(clouds / kind / "00001.npy", Path("kept") / kind / "00001.npy")
    shutil.rmtree(clouds)
    shutil.move("kept", clouds)
    line = refused(monkeypatch, capsys, train_ripsnet, *SET)
    assert f"{clouds}/{kind}/00001.npy: not the chunk that {clouds}/{kind}/checksums.txt lists" in line
    make_clouds()
    assert contents(clouds) == contents(made)


WRONG = {
    "fewer clouds": lambda array: array[:-1],
    "more clouds": lambda array: np.concatenate([array, array]),
    "another width": lambda array: array[..., :-1],
    "another size": lambda array: array[:, :-1],
    "one axis less": lambda array: array[0],
    "double precision": lambda array: array.astype(np.float64),
    "whole numbers": lambda array: array.astype(np.int16),
}


@pytest.mark.parametrize(
    "change, kind, listed",
    slow_but(
        [(change, "clouds", False) for change in WRONG] + [("fewer clouds", "images_dim0", True)],
        itertools.product(WRONG, ("clouds", "images_dim0"), (True, False)),
    ),
)
def test_a_chunk_of_another_shape_or_type_is_named(clouds, monkeypatch, capsys, kind, change, listed):
    path = clouds / kind / "00001.npy"
    replace(path, WRONG[change](np.load(path)))
    if not listed:
        without_checksums()
    line = refused(monkeypatch, capsys, train_ripsnet, *SET)
    assert f"{path}: holds " in line and "expected float" in line and "make it with generate_PCD_PI.py" in line


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("kind", ["clouds", "images_dim0"])
def test_a_chunk_that_is_not_finite_is_named(made, clouds, monkeypatch, capsys, kind, value):
    without_checksums()
    path = clouds / kind / "00000.npy"
    array = np.load(path)
    array[3].flat[5] = value
    replace(path, array)
    line = refused(monkeypatch, capsys, train_ripsnet, *SET)
    assert f"{path}: holds values that are not finite" in line
    make_clouds()
    assert contents(clouds) == contents(made)


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"PK\x03\x04" + bytes(60),
        b"\x93NUMPY\x01\x00\x10\x00" + b"(" * 16,
        b"\x93NUMPY\x01\x00\xff\xff" + b"(" * 65535,
    ],
)
def test_what_is_no_array_is_named(clouds, monkeypatch, capsys, data):
    (clouds / "clouds" / "00000.npy").write_bytes(data)
    line = refused(monkeypatch, capsys, train_ripsnet, *SET)
    assert f"{clouds}/clouds/00000.npy: missing or damaged" in line


def test_data_never_holds_memory_that_nobody_has_filled(clouds, monkeypatch):
    """Not even where a chunk that is too short gets past the checks."""
    files = CloudSet.of(clouds, load_spec(clouds / "spec_dim0.json"))
    whole = files.verified
    monkeypatch.setattr(files, "verified", lambda kind, chunk: whole(kind, chunk)[:1])
    with pytest.raises(UserError, match="run generate_PCD_PI.py again"):
        CloudData(files, 0, 0, 10, torch.device("cpu"), on_device=True)


def test_data_on_a_device_keeps_no_file_open(clouds):
    gc.collect()  # which may close files of earlier tests
    files, before = CloudSet.of(clouds, load_spec(clouds / "spec_dim0.json")), len(os.listdir("/dev/fd"))
    data = CloudData(files, 0, 0, 10, torch.device("cpu"), on_device=True)
    assert len(data) == 10 and len(os.listdir("/dev/fd")) <= before


def test_data_on_disk_may_keep_more_files_open_than_the_usual_limit(clouds):
    files = CloudSet.of(clouds, load_spec(clouds / "spec_dim0.json"))
    usual = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (len(os.listdir("/dev/fd")) + 3, usual[1]))
        data = CloudData(files, 0, 0, 10, torch.device("cpu"), on_device=False)  # two chunks of clouds, two of images
        assert data.batch(torch.arange(10))[0].shape == (10, 12, 64)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, usual)


def test_a_set_from_before_there_were_checksums_is_used_and_then_listed(made, clouds, capsys):
    without_checksums()
    fit()
    shutil.rmtree(FITTED)
    assert not list(clouds.glob("*/checksums.txt"))
    make_clouds()
    assert "clouds: its chunks have no checksums, and are taken for what clouds.json says" in capsys.readouterr().out
    assert contents(clouds) == contents(made)
    make_clouds()
    assert "checksums" not in capsys.readouterr().out


# Damaged and foreign JSON

NOT_AN_OBJECT = ["", "{", "[1, 2]", "null", '"text"', DEEP, "1" * 5000, "\xff"]


@pytest.mark.parametrize("script", slow_but([generate_PCD_PI], [generate_PCD_PI, train_ripsnet]))
@pytest.mark.parametrize(
    "change",
    [*NOT_AN_OBJECT, {"seed": None}, {"points": "12"}, {"points": True}, {"layer": [1]}, {"teacher_sha256": 1}, {}],
    ids=lambda change: str(change)[:20],
)
def test_a_damaged_clouds_json_is_one_line_that_removes_the_folder(clouds, monkeypatch, capsys, script, change):
    path = clouds / "clouds.json"
    if isinstance(change, str):
        path.write_bytes(change.encode("latin-1"))
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change if change else {}))
    line = refused(monkeypatch, capsys, script, *SET)
    assert line.count(str(path)) == 1 and f"remove {clouds}, and run generate_PCD_PI.py again" in line
    assert "remove it" not in line


@pytest.mark.parametrize(
    "change",
    slow_but(
        ["{", {"sigma": None}, {"num_clouds": "10"}, {"more": 1}],
        [
            *NOT_AN_OBJECT,
            {"sigma": None},
            {"sigma": 10**400},
            {"num_clouds": None},
            {"num_clouds": "10"},
            {"num_clouds": 10.0},
            {"num_clouds": -1},
            {"num_clouds": 10**30},
            {"seed": None},
            {"resolution": None},
            {"resolution": [20]},
            {"image_range": "abcd"},
            {"dim": {}},
            {"teacher_sha256": ["a"]},
            {"more": 1},
        ],
    ),
    ids=lambda change: str(change)[:20],
)
def test_a_damaged_spec_is_one_line_that_names_it_once(made, clouds, monkeypatch, capsys, change):
    path = clouds / "spec_dim0.json"
    if isinstance(change, str):
        path.write_bytes(change.encode("latin-1"))
    else:
        path.write_text(json.dumps(json.loads(path.read_text()) | change))
    line = refused(monkeypatch, capsys, train_ripsnet, *SET)
    assert line.count(str(path)) == 1
    make_clouds()
    assert contents(clouds) == contents(made)


@pytest.mark.parametrize("text", ["", "text", "0" * 64, f"{'0' * 64}  ../clouds.json\n", "\xff\n"])
def test_a_damaged_list_of_checksums_is_named(made, clouds, monkeypatch, capsys, text):
    (clouds / "images_dim0" / "checksums.txt").write_bytes(text.encode("latin-1"))
    before = contents(clouds)
    for script in (train_ripsnet, generate_PCD_PI):
        line = refused(monkeypatch, capsys, script, *SET)
        assert f"{clouds}/images_dim0/checksums.txt: not of the clouds" in line
        assert f"remove {clouds}/images_dim0, and run" in line
    assert contents(clouds) == before
    shutil.rmtree(clouds / "images_dim0")
    make_clouds()
    assert contents(clouds) == contents(made)


# One user of a folder


class Holder:
    """Another process that holds a folder."""

    def __init__(self, folder):
        code = "import sys, pathlib, helper.files.lock as l; l.hold(pathlib.Path(sys.argv[1])); print(1); input()"
        command = [sys.executable, "-u", "-c", code, str(folder.resolve())]
        self.process = subprocess.Popen(
            command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        self.held = self.process.stdout.readline() == "1\n"

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        self.process.communicate("\n")


@pytest.mark.parametrize("script", [generate_PCD_PI, train_ripsnet])
def test_a_folder_in_which_stage_2_works_is_left_alone(made, clouds, monkeypatch, capsys, script):
    with Holder(clouds) as other:
        line = refused(monkeypatch, capsys, script, *SET)
    assert f"{clouds}: in use by process {other.process.pid} on host " in line
    assert contents(clouds) == contents(made)
    make_clouds()


@pytest.mark.parametrize("options", [("--passes", 4), ("--num_clouds", 9)], ids=["grown", "cut"])
def test_a_set_to_which_a_ripsnet_is_being_fitted_is_not_changed(made, clouds, monkeypatch, capsys, options):
    with Holder(FITTED) as other:
        line = refused(monkeypatch, capsys, generate_PCD_PI, *SET, "--passes", 2, *options)
        assert f"{FITTED}: in use by process {other.process.pid} on host " in line
        assert contents(clouds) == contents(made)
        make_clouds("--dim", "01")  # adds images of dimension 1, and changes nothing
        after = contents(clouds)
    assert {name: after[name] for name in contents(made)} == contents(made)
    make_clouds(*options)


def test_stage_3_holds_its_own_folder_and_gives_the_clouds_back(clouds, monkeypatch):
    held = {}

    def look(*arguments):
        for folder in (CLOUDS, FITTED):
            with Holder(folder) as other:
                held[folder] = other.held
        return original(*arguments)

    original = fitting.fit_ripsnet
    monkeypatch.setattr(train_ripsnet, "fit_ripsnet", look)
    fit()
    assert held == {CLOUDS: True, FITTED: False}


# Kills

TINY_TEACHER = "save_t_models/teacher/best.pth"
TINY = f"--path_t {TINY_TEACHER} --dataset tiny --device cpu --batch_size 16 --dim 01"
SIZES = {"grown": (2, 4), "cut": (4, 2)}  # passes before and after; nine clouds a pass, in chunks of eight


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """By name, the folder with the first set and what the second leaves behind without a stop."""
    found = {}
    for name, (before, after) in SIZES.items():
        folder = tmp_path_factory.mktemp(name)
        torch.manual_seed(0)
        about = {"model": create_model("resnet8", 4).state_dict(), "arch": "resnet8", "dataset": "tiny"}
        checkpoint.save(folder / TINY_TEACHER, about)
        run_to_end(folder, before)
        first = tmp_path_factory.mktemp(f"first_{name}")
        shutil.copytree(folder, first, dirs_exist_ok=True)
        run_to_end(folder, after)
        found[name] = first, contents(folder)
    return found


def run_to_end(folder, passes):
    status, printed = execute("none", folder, f"generate_PCD_PI.py {TINY} --passes {passes}")
    assert status == 0, printed


def kill(sets, tmp_path, name, point):
    """Kill stage 2 while it makes the second set; False if it had ended. Stage 3 does not take what it finds then."""
    first, expected = sets[name]
    folder = tmp_path / point.replace(":", "_")
    shutil.copytree(first, folder)
    status, printed = execute(point, folder, f"generate_PCD_PI.py {TINY} --passes {SIZES[name][1]}")
    if status == 0:
        return False
    assert status == -signal.SIGKILL, printed
    (clouds,) = (folder / "ripsnet" / "teacher").iterdir()
    for dim in (0, 1):
        if (clouds / f"quality_dim{dim}.json").exists():
            check_whole(clouds, dim)
        else:
            with pytest.raises(UserError, match=f"the images of dimension {dim} are not complete"):
                train_ripsnet.complete_set(clouds, dim, {})
    run_to_end(folder, SIZES[name][1])
    assert contents(folder) == expected, point
    shutil.rmtree(folder)
    return True


def check_whole(clouds, dim):
    """A set that is called complete is so: every image is that of its cloud by the spec."""
    spec, files = train_ripsnet.complete_set(clouds, dim, {})
    CloudData(files, dim, 0, spec.num_clouds, torch.device("cpu"), on_device=True)


POINTS_OF_CHANGE = ("replace:1", "replace:2", "half:3", "replace:9", "replace:14")


@pytest.mark.slow
@pytest.mark.parametrize("name, point", [*itertools.product(SIZES, POINTS_OF_CHANGE)])
def test_a_set_whose_change_was_cut_off_is_not_taken_for_whole_and_ends_as_without_a_stop(sets, tmp_path, name, point):
    assert kill(sets, tmp_path, name, point)


@pytest.mark.slow
@pytest.mark.parametrize("name", SIZES)
@pytest.mark.parametrize("kind", ["replace", "half"])
def test_the_change_of_a_set_may_be_cut_off_at_any_of_its_writes(sets, tmp_path, name, kind):
    number = 1
    while kill(sets, tmp_path, name, f"{kind}:{number}"):
        number += 1
    assert number > 20


# Checkpoints of stage 3, and what is printed


def weights(path=FITTED / "last.pth"):
    return {name: tensor.numpy().tobytes() for name, tensor in checkpoint.load(path)["model"].items()}


def test_a_checkpoint_of_an_earlier_version_is_resumed(clouds):
    """It called the next epoch `epoch`."""
    fit("--epochs", 4)
    whole = weights()
    shutil.rmtree(FITTED)
    fit("--epochs", 2)
    state = checkpoint.load(FITTED / "last.pth")
    assert state["next_epoch"] == 3
    old = {"model", "optimizer", "history", "best", "best_model", "waited", "args"}
    state["args"]["epochs"] = 4  # as if cut off half-way
    checkpoint.save(FITTED / "last.pth", {name: state[name] for name in old} | {"epoch": 3})
    fit("--epochs", 4, "--resume")
    assert weights() == whole


def test_more_epochs_continue_a_fit_and_fewer_are_refused(clouds):
    fit("--epochs", 4)
    whole = weights()
    shutil.rmtree(FITTED)
    fit("--epochs", 2)
    fit("--epochs", 4, "--resume")
    assert weights() == whole
    with pytest.raises(UserError, match="--epochs: found 3, but 4 epochs of .* are done"):
        fit("--epochs", 3, "--resume")


@pytest.mark.parametrize(
    "change, message",
    [
        ({"best_model": None}, "'best_model' is a NoneType"),
        ({"waited": "3"}, "'waited' is a str"),
        ({"history": {}}, "'history' is a dict"),
        ({"model": {}}, "does not fit this run"),
        ({"optimizer": {}}, "does not fit this run"),
    ],
)
def test_a_foreign_checkpoint_is_refused_in_one_line(clouds, change, message):
    fit()
    (FITTED / "previous.pth").unlink(missing_ok=True)
    checkpoint.save(FITTED / "last.pth", checkpoint.load(FITTED / "last.pth") | change)
    with pytest.raises(UserError, match=message) as error:
        fit("--resume")
    assert "\n" not in str(error.value) and str(FITTED) in str(error.value)


def test_without_a_terminal_speed_and_time_to_the_end_are_plain_lines(monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY", -1.0)
    make_clouds()
    fit()
    lines = capsys.readouterr().out.splitlines()
    speed = r"[\d,.e+]+ clouds/s, \d:\d\d:\d\d to the end"
    for what in (
        "clouds, diagrams: 8 of 10 clouds",
        "clouds, diagrams: 10 of 10 clouds",
        "images_dim0: 8 of 10 clouds",
    ):
        assert any(re.fullmatch(f"{what}, {speed}", line) for line in lines), what
    what = f"ripsnet_dim0_mean: 1 of 2 epochs, {speed}"
    assert any(re.match(what, line) for line in lines)
