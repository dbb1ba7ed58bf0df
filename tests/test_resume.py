"""A run that is killed, interrupted or cut off by a full disk goes on to the same end, bit for bit, in all four stages.

Every run is a process of its own; tests/support/killed.py says what a POINT is.
"""

import csv
import functools
import itertools
import os
import random
import shutil
import signal

import pytest
import torch
from support.artefacts import artefacts, hashes
from support.killed import COUNTED
from support.marks import slow_but
from support.processes import execute
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from helper.files import checkpoint

TEACHER = "save_t_models/resnet8_tiny_lr0.02_n16_trial1"
IMAGES = "--dataset tiny --device cpu --batch_size 16 --epochs 2 --lr 0.02"
SET = f"--path_t {TEACHER}/best.pth --dataset tiny --device cpu --batch_size 16 --dim 01"
METHOD = f"train_student.py --path_t {TEACHER}/best.pth --model_s resnet8 {IMAGES} --distill"
STAGES = {
    "teacher": f"train_teacher.py --model resnet8 {IMAGES}",
    "clouds": f"generate_PCD_PI.py {SET} --passes 2",
    "ripsnet": f"train_ripsnet.py {SET} --epochs 2 --batch_clouds 4",
    "student": f"train_student.py --path_t {TEACHER}/best.pth --dim 01 --model_s resnet8 --topology exact "
    f"--tda_layer_s -3 {IMAGES}",
    "ft": f"{METHOD} ft --first_epochs 2",
    "crd": f"{METHOD} crd --set nce_k=64",
}
# Of these, which write the same files, not every write is interrupted.
FURTHER = {
    "mgd": f"{METHOD} mgd",
    "ctkd": f"{METHOD} ctkd --set ramp=2",
    "mlkd": f"{METHOD} mlkd",
    "norm": f"{METHOD} norm --set segments=2",
    "crcd": f"{METHOD} crcd --set nce_k=16 feat_dim=8",
}
COMMANDS = STAGES | FURTHER


NEEDS = {"teacher": None, "ripsnet": "clouds", "student": "clouds"}


def needed_by(stage):
    """The stage that runs before another one; the teacher before all."""
    return NEEDS.get(stage, "teacher")


def resume(folder, stage):
    command = COMMANDS[stage]
    if stage != "clouds":
        command += " --resume"
    status, printed = execute("none", folder, command)
    assert status == 0, printed
    return printed


@pytest.fixture(scope="module")
def end(tmp_path_factory):
    """A function of a stage: the folder in which it, and what it needs, ran without a stop."""

    @functools.cache
    def make(stage):
        folder = tmp_path_factory.mktemp(stage)
        if needed_by(stage) is not None:
            shutil.copytree(make(needed_by(stage)), folder, dirs_exist_ok=True)
        status, printed = execute("none", folder, COMMANDS[stage])
        assert status == 0, printed
        return folder

    return make


@pytest.fixture(scope="module")
def expected(end):
    """A function of a stage: what that folder holds."""
    return functools.cache(lambda stage: artefacts(end(stage)))


@pytest.fixture
def begin(end, tmp_path):
    """A function that makes a folder in which what the given stage needs has run."""
    numbers = itertools.count()

    def make(stage):
        folder = tmp_path / str(next(numbers))
        folder.mkdir()
        if needed_by(stage) is not None:
            shutil.copytree(end(needed_by(stage)), folder, dirs_exist_ok=True)
        return folder

    return make


@pytest.mark.slow
def test_the_runs_that_are_compared_are_not_trivial(end, expected):
    paths = " ".join([*expected("student"), *expected("ripsnet")])
    for part in ("best.pth", "log.csv", "args.json", "images_dim1/00002.npy", "ripsnet_dim1_mean", "results/runs"):
        assert part in paths
    assert {len(rows) for path, rows in expected("student").items() if path.endswith("log.csv")} == {2}


@pytest.mark.parametrize(
    "stage, point",
    [
        pytest.param("teacher", "batch:15", id="teacher, in the middle of epoch 2"),
        pytest.param(
            "teacher",
            "late:15",
            id="teacher, in the middle of epoch 2, nothing saved but the best weights",
            marks=pytest.mark.slow,
        ),
        pytest.param("teacher", "half:3", id="teacher, first checkpoint half written", marks=pytest.mark.slow),
        pytest.param(
            "teacher", "replace:5", id="teacher, between checkpoint and row of the log", marks=pytest.mark.slow
        ),
        pytest.param("clouds", "batch:2", id="clouds, in the middle of a chunk", marks=pytest.mark.slow),
        pytest.param("clouds", "half:22", id="clouds, image half written"),
        pytest.param(
            "ripsnet", "replace:5", id="ripsnet, after epoch 2 and before its checkpoint", marks=pytest.mark.slow
        ),
        pytest.param("ripsnet", "replace:7", id="ripsnet, no last.pth between two renames", marks=pytest.mark.slow),
        pytest.param("student", "batch:15", id="student, in the middle of epoch 2", marks=pytest.mark.slow),
        pytest.param("ft", "batch:15", id="student, in the middle of its first stage", marks=pytest.mark.slow),
        pytest.param("ft", "batch:35", id="student, after its first stage", marks=pytest.mark.slow),
        pytest.param("crd", "batch:15", id="student, with a memory", marks=pytest.mark.slow),
        *(pytest.param(key, "batch:15", id=f"student, {key}", marks=pytest.mark.slow) for key in FURTHER),
    ],
)
def test_a_killed_run_ends_as_one_that_never_stopped(begin, expected, stage, point):
    folder = begin(stage)
    status, _ = execute(point, folder, COMMANDS[stage])
    assert status == -signal.SIGKILL
    resume(folder, stage)
    assert artefacts(folder) == expected(stage)
    assert not [path for path in folder.rglob("*.tmp") if "results" not in path.parts]


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
        assert artefacts(folder) == expected(stage), f"{kind}:{number}"
        shutil.rmtree(folder)
    assert number > 8


@pytest.mark.slow
@pytest.mark.parametrize("job", [*COMMANDS, "smaller clouds", "larger clouds"])
def test_a_run_may_be_killed_at_any_moment(begin, job):
    """Eight points of each stage, drawn at random; and of stage 2 where its set shrinks or grows."""
    fewer, resumed = " --num_clouds 10", ""
    before, command = [], COMMANDS.get(job, STAGES["clouds"])
    if job == "smaller clouds":
        before, command = [command], command + fewer
    elif job == "larger clouds":
        before = [command + fewer]
    elif job != "clouds":
        resumed = " --resume"
    start = begin(job if job in COMMANDS else "clouds")
    for earlier in before:
        assert execute("none", start, earlier)[0] == 0

    def copy():
        return shutil.copytree(start, start.with_name(f"{start.name} copy"))

    folder = copy()
    status, printed = execute("count", folder, command)
    assert status == 0, printed
    wanted = artefacts(folder)
    shutil.rmtree(folder)
    counts = dict(line.split(":") for line in printed.splitlines()[-len(COUNTED) :])
    points = [f"{kind}:{number}" for kind in COUNTED for number in range(1, int(counts[kind]) + 1)]
    assert len(points) > 8
    for point in random.Random(job).sample(points, 8):
        folder = copy()
        assert execute(point, folder, command)[0] == -signal.SIGKILL, point
        status, printed = execute("none", folder, command + resumed)
        assert status == 0, f"{point}: {printed}"
        assert artefacts(folder) == wanted, point
        shutil.rmtree(folder)


@pytest.mark.parametrize(
    "kind, stage",
    slow_but(
        [("term", "teacher"), ("all", "teacher")], itertools.product(("int", "term", "all"), ("teacher", "student"))
    ),
)
def test_a_signal_saves_the_state_in_the_middle_of_an_epoch(begin, expected, stage, kind):
    """So do several at once, as torchrun and SLURM send them to a process."""
    folder = begin(stage)
    status, printed = execute(f"{kind}:15", folder, STAGES[stage])
    assert status == 130 and printed.endswith("stopped in epoch 2 after 5 steps; continue with --resume\n")
    (last,) = (folder / f"save_{stage[0]}_models").glob("*/last.pth")
    state = checkpoint.load(last)
    assert (state["next_epoch"], state["step"], len(state["history"])) == (2, 5, 1)
    assert not (folder / "results" / "runs" / f"{last.parent.name}.csv").exists()
    resume(folder, stage)
    assert artefacts(folder) == expected(stage)


@pytest.mark.slow
def test_a_second_signal_stops_at_once_and_harms_nothing(begin, expected):
    """Two interrupts at one batch, with time between them: the second is an ordinary KeyboardInterrupt, so nothing more
    is saved."""
    folder = begin("teacher")
    status, printed = execute("int2:15", folder, STAGES["teacher"])
    assert status == 130 and printed.endswith("interrupted; what was finished is kept\n")
    assert checkpoint.load(folder / TEACHER / "last.pth")["step"] == 0
    resume(folder, "teacher")
    assert artefacts(folder) == expected("teacher")


@pytest.mark.parametrize("stage", slow_but(["teacher"], ["teacher", "ripsnet", "student"]))
@pytest.mark.parametrize(
    "options, status, words",
    [
        ("--resume", 0, []),
        ("", 2, ["this run exists", "--resume"]),
        ("--resume --lr 0.03", 2, ["--lr", "now 0.03"]),
    ],
    ids=["resumed", "repeated", "with another option"],
)
def test_a_finished_run_is_left_as_it_is(end, tmp_path, stage, options, status, words):
    folder = tmp_path / "finished"
    shutil.copytree(end(stage), folder)
    if "--lr" in options and stage != "ripsnet":  # which shows in the name that a run has by default
        (run,) = (folder / f"save_{stage[0]}_models").iterdir()
        options += f" --name {run.name}"
    before = hashes(folder)
    found, printed = execute("none", folder, f"{STAGES[stage]} {options}")
    assert found == status
    assert hashes(folder) == before
    assert "Traceback" not in printed
    assert all(word in printed.splitlines()[-1] for word in words)


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


def empty(path):
    os.truncate(path, 0)


def flip_a_bit(path):
    """In the bytes of a tensor: PyTorch itself would load it."""
    data = bytearray(path.read_bytes())
    state = torch.load(path, weights_only=True)
    weights = state["model"]["fc.weight"].numpy().tobytes()
    data[data.index(weights) + len(weights) // 2] ^= 1
    path.write_bytes(data)
    torch.load(path, weights_only=True)


def interrupted_teacher(begin):
    """A folder with last.pth from the middle and previous.pth from the beginning of epoch 2."""
    folder = begin("teacher")
    assert execute("int:15", folder, STAGES["teacher"])[0] == 130
    return folder


@pytest.mark.parametrize("damage", slow_but([flip_a_bit], [truncate, flip_a_bit, empty]))
def test_a_damaged_checkpoint_is_noticed_and_the_one_before_is_used(begin, expected, damage):
    folder = interrupted_teacher(begin)
    damage(folder / TEACHER / "last.pth")
    assert "last.pth: damaged" in (printed := resume(folder, "teacher")) or "last.pth: not a checkpoint" in printed
    assert f"using {TEACHER}/previous.pth instead" in printed
    assert artefacts(folder) == expected("teacher")


@pytest.mark.slow
def test_the_run_survives_a_kill_after_its_checkpoint_was_damaged(begin, expected):
    """The damaged last.pth has just become previous.pth when the run is killed: the good one is still found."""
    folder = interrupted_teacher(begin)
    empty(folder / TEACHER / "last.pth")
    assert execute("replace:5", folder, STAGES["teacher"] + " --resume")[0] == -signal.SIGKILL
    assert not (folder / TEACHER / "last.pth").exists()
    resume(folder, "teacher")
    assert artefacts(folder) == expected("teacher")


@pytest.mark.slow
def test_two_damaged_checkpoints_are_one_clear_line(begin):
    folder = interrupted_teacher(begin)
    truncate(folder / TEACHER / "last.pth")
    empty(folder / TEACHER / "previous.pth")
    before = hashes(folder)
    status, printed = execute("none", folder, STAGES["teacher"] + " --resume")
    assert status == 2 and printed.count("\n") == 1 and f"{TEACHER}/last.pth" in printed and "remove" in printed
    assert hashes(folder) == before


@pytest.mark.parametrize(
    "stage, point",
    [
        pytest.param("teacher", "full:5", id="teacher, log", marks=pytest.mark.slow),
        pytest.param("teacher", "full:6", id="teacher, second checkpoint"),
        pytest.param("clouds", "full:3", id="clouds", marks=pytest.mark.slow),
    ],
)
def test_a_full_disk_is_one_clear_line_and_destroys_nothing(begin, expected, stage, point):
    folder = begin(stage)
    status, printed = execute(point, folder, STAGES[stage])
    assert status == 1
    assert "cannot write" in (line := printed.splitlines()[-1]) and "make room" in line and "Traceback" not in printed
    assert not list(folder.rglob("*.tmp*"))
    if stage == "teacher":
        assert len(checkpoint.load(folder / TEACHER / "last.pth")["history"]) == 1
    resume(folder, stage)
    assert artefacts(folder) == expected(stage)


@pytest.mark.slow
def test_tensorboard_shows_every_epoch_once(begin):
    """Killed between checkpoint and log, a run has not yet written the epoch's point."""
    folder = begin("teacher")
    execute("replace:5", folder, STAGES["teacher"])
    resume(folder, "teacher")
    events = EventAccumulator(str(folder / TEACHER)).Reload()
    with open(folder / TEACHER / "log.csv") as file:
        rows = list(csv.DictReader(file))
    for name in ("loss", "test_acc", "lr", "share_ce"):
        points = [(event.step, pytest.approx(event.value)) for event in events.Scalars(name)]
        assert points == [(int(row["epoch"]), float(row[name])) for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("point", ["replace:9", "none"], ids=["before the last epoch's point", "after the end"])
def test_tensorboard_shows_the_end_of_a_resumed_run_once(begin, point):
    folder = begin("student")
    execute(point, folder, STAGES["student"])
    (run,) = (folder / "save_s_models").iterdir()
    assert len(checkpoint.load(run / "last.pth")["history"]) == 2
    points = EventAccumulator(str(run)).Reload().Scalars("test_acc")
    assert len(points) == (1 if point.startswith("replace") else 2)
    resume(folder, "student")
    events = EventAccumulator(str(run), size_guidance={"images": 0}).Reload()
    for dim in (0, 1):
        assert [image.step for image in events.Images(f"persistence_images/dim{dim}")] == [2]
    assert [point.step for point in events.Scalars("hparam/best")] == [2]
    assert [point.step for point in events.Scalars("test_acc")] == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize(
    "point",
    [pytest.param("replace:13", id="before the spec"), pytest.param("replace:17", id="between the images")],
)
def test_stage_3_refuses_a_set_that_is_being_enlarged(begin, expected, point):
    """What says that a smaller set of images is complete does not say so of the larger one."""
    folder = begin("clouds")
    assert execute("none", folder, STAGES["clouds"] + " --num_clouds 10")[0] == 0
    assert execute(point, folder, STAGES["clouds"])[0] == -signal.SIGKILL
    status, printed = execute("none", folder, STAGES["ripsnet"])
    assert status == 2 and printed.count("\n") == 1 and "not complete" in printed
    resume(folder, "clouds")
    assert artefacts(folder) == expected("clouds")


@pytest.mark.slow
def test_a_ripsnet_is_not_resumed_on_another_set_of_clouds(begin):
    folder = begin("clouds")
    for command in (STAGES["clouds"] + " --num_clouds 10", STAGES["ripsnet"]):
        assert execute("none", folder, command)[0] == 0
    status, printed = execute("none", folder, STAGES["clouds"])
    assert status == 2 and "to which RipsNets are fitted" in printed
    fitted = sorted(folder.rglob("ripsnet_dim?_*"))
    for path in fitted:
        path.rename(folder / path.name)
    assert execute("none", folder, STAGES["clouds"])[0] == 0
    for path in fitted:
        (folder / path.name).rename(path)
    status, printed = execute("none", folder, STAGES["ripsnet"] + " --resume")
    assert status == 2 and "num_clouds was 10, now 18" in printed
