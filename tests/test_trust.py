"""What goes wrong around a run ends in one line that says what it was, and never harms what another run has made."""

import argparse
import csv
import errno
import fcntl
import itertools
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from support.artefacts import artefacts, hashes
from support.marks import slow_but
from support.processes import PROCESSES, enter, execute
from support.running import CLASSES, POINTS, TEACHER, call, make_clouds, refused, work_in

import evaluate
import generate_PCD_PI
import train_ripsnet
import train_student
import train_teacher
import visualize
from helper.cli.parser import run
from helper.errors import UserError
from helper.files import checkpoint, lock
from helper.files.atomic import write_bytes
from helper.networks import load_network
from helper.training import objective
from models import create_model

ROOT = Path(__file__).resolve().parent.parent
SCRIPTS = sorted(path.stem for path in ROOT.glob("*.py"))
NOISE = ("--dataset", "noise", "--device", "cpu")
OWN = (*NOISE, "--batch_size", POINTS)
# A short call of each script that reads a network; a case changes which.
READERS = {
    "stage 2": (generate_PCD_PI, "--path_t", (*OWN, "--passes", 1)),
    "stage 3": (train_ripsnet, "--path_t", OWN),
    "stage 4": (train_student, "--path_t", (*NOISE, "--model_s", "resnet8", "--epochs", 1)),
    "scores": (evaluate, "--path", NOISE),
    "scores, teacher": (evaluate, "--path_t", (*NOISE, "--path", TEACHER)),
    "figures": (visualize, "pi", OWN),
}
ALONE = (*NOISE, "--model", "resnet8", "--epochs", 1, "--batch_size", 32)


@pytest.fixture
def noisy(tmp_path, monkeypatch):
    work_in(tmp_path, monkeypatch)


def ends(monkeypatch, capsys, script, *options, status=0):
    """What a script prints on stdout and stderr; it must end with the status."""
    monkeypatch.setattr("sys.argv", [f"{script.__name__}.py", *map(str, options)])
    found = 0
    try:
        run(script.main, script.get_args_parser)
    except SystemExit as stopped:
        found = stopped.code
    captured = capsys.readouterr()
    assert found == status, captured.err
    return captured.out, captured.err


def reads(monkeypatch, capsys, reader, path):
    """The line with which a script refuses the network in a file."""
    script, option, options = READERS[reader]
    before = [option, path]
    if option == "pi":
        before = ["pi", "--path_t", path]
    return refused(monkeypatch, capsys, script, *before, *options)


# Two processes in one folder.

TINY = "--dataset tiny --batch_size 16 --epochs 1 --device cpu --name x"
STUDENT = f"train_student.py --path_t teacher/best.pth --model_s resnet8 {TINY}"
RUNS = {
    "teachers": (f"train_teacher.py --model resnet8 {TINY}", f"train_teacher.py --model resnet8 {TINY} --lr 0.03"),
    "students": (STUDENT, f"{STUDENT} --lr 0.03"),
    "a first stage": (f"{STUDENT} --distill ft --first_epochs 1", f"{STUDENT} --distill ft --first_epochs 2"),
}


def started(target, *arguments):
    """A process that runs a function."""
    process = PROCESSES.Process(target=target, args=arguments)
    with mock.patch.dict(os.environ, PYTHONPATH=f"{ROOT}{os.pathsep}{ROOT / 'tests'}"):
        process.start()
    return process


def quiet(folder, *command):
    with open(os.devnull, "w") as nothing:
        enter(nothing, folder, *command)


def begin(folder, point, command):
    """Start a script in a process of its own; returns it when it waits at its point."""
    process = started(quiet, folder, point, *command.split())
    while not (folder / "waiting").exists():
        assert process.is_alive()
        time.sleep(0.05)
    return process


@pytest.fixture
def place(tmp_path):
    """A function that makes a folder with a teacher in it."""

    def make(name):
        folder = tmp_path / name
        torch.manual_seed(0)
        content = {"model": create_model("resnet8", 4).state_dict(), "arch": "resnet8", "dataset": "tiny"}
        checkpoint.save(folder / "teacher" / "best.pth", content)
        return folder

    return make


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
def test_a_second_process_in_a_folder_is_refused_and_the_first_ends_as_if_alone(place, kind):
    first, second = RUNS[kind]
    alone, shared = place("alone"), place("shared")
    assert execute("none", alone, first)[0] == 0
    process = begin(shared, "wait:5", first)
    before = hashes(shared)
    status, printed = execute("none", shared, second)
    assert status == 2 and "Traceback" not in printed
    line = printed.splitlines()[-1]
    assert f"save_{second[6]}_models/x: in use by process {process.pid} on host {socket.gethostname()}; wait" in line
    assert hashes(shared) == before
    (shared / "go").touch()
    process.join()
    assert process.exitcode == 0
    assert artefacts(shared) == artefacts(alone)


@pytest.mark.slow
def test_a_process_that_is_killed_holds_nothing(place):
    command, _ = RUNS["students"]
    alone, folder = place("alone"), place("folder")
    assert execute("none", alone, command)[0] == 0
    process = begin(folder, "wait:5", command)
    assert f"process {process.pid}" in lock.in_use(folder / "save_s_models" / "x")
    process.kill()
    process.join()
    assert lock.in_use(folder / "save_s_models" / "x") is None
    status, printed = execute("none", folder, command + " --resume")
    assert status == 0, printed
    assert artefacts(folder) == artefacts(alone)


# Paths that cannot be written.


def make_file(path):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("a file")


def make_folder(path):
    (Path(path) / "something").mkdir(parents=True)


SCORES = (evaluate, ("--path", TEACHER, *NOISE))
STAGE_1 = (train_teacher, ALONE)
STAGE_2 = (generate_PCD_PI, ("--path_t", TEACHER, *OWN, "--passes", 1))


@pytest.mark.parametrize(
    "call, options, obstacle, path, status, message",
    [
        (SCORES, "--json there", make_folder, "there", 2, "--json: cannot write there: Is a directory; give"),
        (SCORES, "--json there/x", make_file, "there", 2, "--json: cannot write there/x: Not a directory; give"),
        (STAGE_1, "--name x", make_file, "save_t_models/x", 2, "--name: cannot write save_t_models/x: Not a dir"),
        (STAGE_1, "", make_file, "save_t_models/resnet8_noise_n32_trial1", 1, "cannot write save_t_models/resnet8"),
        (STAGE_1, "--name x", make_folder, "save_t_models/x/args.json", 1, "x/args.json: Is a directory; what was"),
        (STAGE_1, "--name x", make_folder, "save_t_models/x/log.csv", 1, "x/log.csv: Is a directory; what was"),
        (STAGE_1, "--name x", make_folder, "save_t_models/x/best.pth", 1, "x/best.pth: Is a directory; what was"),
        (STAGE_1, "", make_file, "results", 1, "cannot write results/logs/resnet8_noise_n32_trial1.csv: Not a dir"),
        (STAGE_2, "", make_file, "ripsnet", 1, "cannot write ripsnet/teacher/layer-1_n12_eval_released: Not a dir"),
        (
            STAGE_2,
            "",
            make_folder,
            "ripsnet/teacher/layer-1_n12_eval_released/args.json",
            1,
            "args.json: Is a directory",
        ),
    ],
)
def test_a_path_that_cannot_be_written_says_why(
    noisy, monkeypatch, capsys, call, options, obstacle, path, status, message
):
    script, given = call
    obstacle(path)
    _, line = ends(monkeypatch, capsys, script, *given, *options.split(), status=status)
    assert message in line and line.count("\n") == 1


def test_a_folder_in_place_of_the_checkpoint_before_is_named(noisy, monkeypatch, capsys):
    ends(monkeypatch, capsys, train_teacher, *ALONE, "--name", "x")
    make_folder("save_t_models/x/previous.pth")
    options = ("--name", "x", "--epochs", 2, "--resume")
    _, line = ends(monkeypatch, capsys, train_teacher, *ALONE, *options, status=1)
    assert "cannot write save_t_models/x/previous.pth: Is a directory" in line and line.count("\n") == 1


@pytest.mark.parametrize(
    "number, reason", [(errno.EACCES, "Permission denied"), (errno.EROFS, "Read-only file system")]
)
@pytest.mark.parametrize("call, status", [(SCORES, 2), (STAGE_1, 1), (STAGE_2, 1)])
def test_a_place_without_the_right_to_write_is_named(noisy, monkeypatch, capsys, number, reason, call, status):
    def refuse(path, *arguments):
        raise OSError(number, os.strerror(number), str(path))

    script, given = call
    monkeypatch.setattr(os, "replace", refuse)
    if script is evaluate:
        given = (*given, "--json", "there")
    _, line = ends(monkeypatch, capsys, script, *given, status=status)
    assert "cannot write " in line and f": {reason}; " in line and line.count("\n") == 1
    assert not list(Path().rglob("*.tmp"))


def test_two_processes_that_write_one_file_leave_one_whole(tmp_path, monkeypatch):
    """Such as two that make the tables: one begins and ends while the other is about to put its file in place."""
    path, replace = tmp_path / "tables.md", os.replace

    def interrupted(old, new):
        monkeypatch.setattr(os, "replace", replace)
        write_bytes(path, b"short")
        replace(old, new)

    monkeypatch.setattr(os, "replace", interrupted)
    write_bytes(path, b"much longer")
    assert path.read_bytes() == b"much longer" and list(tmp_path.iterdir()) == [path]


def test_a_full_disk_under_a_path_that_was_given_is_the_user_s(noisy, monkeypatch, capsys):
    def full(file):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    line = refused(monkeypatch, capsys, evaluate, *SCORES[1], "--json", "there")
    assert "--json: cannot write there: No space left on device; make room" in line


@pytest.mark.parametrize("number", [errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_one_warning(number, tmp_path, monkeypatch, capsys):
    def flock(*arguments):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(fcntl, "flock", flock)
    lock.hold(tmp_path / "x")
    assert capsys.readouterr().out.startswith(f"warning: {tmp_path / 'x'}: its file system has no locks")
    lock.hold(tmp_path / "x")
    assert not capsys.readouterr().out and lock.in_use(tmp_path / "x") is None
    lock.release(tmp_path / "x")


# Checkpoints that are none, or dangerous.


class Evil:
    def __reduce__(self):
        return os.system, ("touch trace",)


class Object:
    pass


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("content, name", [(Evil(), "posix.system"), (Object(), f"{__name__}.Object")])
@pytest.mark.parametrize("reader", READERS)
def test_objects_in_a_checkpoint_are_named_and_not_run(noisy, monkeypatch, capsys, reader, content, name, zipped):
    weights = create_model("resnet8", CLASSES).state_dict()
    torch.save({"model": weights, "extra": content}, "x.pth", _use_new_zipfile_serialization=zipped)
    line = reads(monkeypatch, capsys, reader, "x.pth")
    assert line.endswith(f"x.pth: holds {name}, which is not run; save its state_dict instead\n")
    assert not Path("trace").exists()


@pytest.mark.parametrize("zipped", [True, False])
def test_names_in_a_checkpoint_bring_no_escape_codes(tmp_path, monkeypatch, zipped):
    coloured = type("Object\x1b[31m", (), {})
    monkeypatch.setattr(sys.modules[__name__], coloured.__name__, coloured, raising=False)
    torch.save([coloured()], tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    with pytest.raises(checkpoint.UserError, match=r"holds [\w.]*Object\?\?31m, which is not run") as error:
        checkpoint.load(tmp_path / "x.pth")
    assert "\x1b" not in str(error.value)


@pytest.mark.parametrize("reader", READERS)
def test_a_text_is_no_checkpoint(noisy, monkeypatch, capsys, reader):
    shutil.copy(ROOT / "README.md", "README.md")
    line = reads(monkeypatch, capsys, reader, "README.md")
    assert "README.md: not a checkpoint" in line


@pytest.mark.parametrize("reader", READERS)
def test_a_name_that_is_too_long_is_no_file(noisy, monkeypatch, capsys, reader):
    assert f"{'a' * 300}: no such file" in reads(monkeypatch, capsys, reader, "a" * 300)


@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
@pytest.mark.parametrize("number", [np.float32(71.5), np.float64(71.5), torch.tensor(71.5), 71.5])
def test_files_of_repdistiller_style_code_load(tmp_path, number, zipped):
    content = {
        "opt": argparse.Namespace(model="resnet8", lr=np.float32(0.05), milestones=[150, 180], path=None),
        "args": argparse.Namespace(trial="1"),
        "model": create_model("resnet8", CLASSES).state_dict(),
        "best_acc": number,
        "epoch": 240,
    }
    torch.save(content, tmp_path / "x.pth", _use_new_zipfile_serialization=zipped)
    network = load_network(tmp_path / "x.pth", "resnet8", "--model")
    assert (network.accuracy, network.epoch, network.num_classes) == (71.5, 240, CLASSES)
    assert checkpoint.load(tmp_path / "x.pth")["opt"].milestones == [150, 180]


@pytest.mark.parametrize("name, value", [("layer2.0.conv1.weight", float("inf")), ("bn1.running_var", float("nan"))])
@pytest.mark.parametrize("reader", READERS)
def test_weights_that_are_not_finite_are_named(noisy, monkeypatch, capsys, reader, name, value):
    content = torch.load(TEACHER, weights_only=True)
    content["model"][name].view(-1)[3] = value
    torch.save(content, "x.pth")
    line = reads(monkeypatch, capsys, reader, "x.pth")
    assert f"x.pth: the weights '{name}' hold values that are not finite (nan or inf)" in line


def test_a_ripsnet_that_is_not_finite_is_named(noisy, monkeypatch, capsys):
    make_clouds()
    fit = ("--path_t", TEACHER, *OWN, "--epochs", 1)
    ends(monkeypatch, capsys, train_ripsnet, *fit)
    path = Path("ripsnet/teacher/layer-1_n12_eval_released/ripsnet_dim0_mean/best.pth")
    content = torch.load(path, weights_only=True)
    content["model"]["layer1.linear.weight"][0, 0] = float("nan")
    torch.save(content, path)
    student = ("--path_t", TEACHER, *OWN, "--model_s", "resnet8", "--epochs", 1, "-d", 5)
    line = refused(monkeypatch, capsys, train_student, *student)
    assert f"{path}: the weights 'layer1.linear.weight' hold values that are not finite" in line


@pytest.mark.parametrize(
    "done, kept", [(0, "no checkpoint had been written yet"), (1, "checkpoint from before is kept")]
)
def test_a_run_that_diverges_says_whether_something_is_left(noisy, monkeypatch, capsys, done, kept):
    if done:
        ends(monkeypatch, capsys, train_teacher, *ALONE, "--name", "x")
    step = torch.optim.SGD.step

    def spoilt(optimizer, *arguments):
        optimizer.param_groups[0]["params"][0].data[0] = float("nan")
        return step(optimizer, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", spoilt)
    options = (*ALONE, "--name", "x", "--epochs", 2, "--resume")
    _, line = ends(monkeypatch, capsys, train_teacher, *options, status=1)
    assert "non-finite" in line and kept in line and line.count("\n") == 1
    assert Path("save_t_models/x/last.pth").exists() == bool(done)


# Checkpoints of which a part is damaged.

OTHERS = {
    "text": "abc",
    "null": None,
    "number": 3,
    "list": [1],
    "dict": {"a": 1},
    "tensor": torch.zeros(2),
    "nan": float("nan"),
}
NETWORK = {
    "accuracy": ({"null", "number"}, "its accuracy is "),
    "epoch": ({*OTHERS}, ""),
    "history": ({*OTHERS}, ""),
    "args": ({*OTHERS}, ""),
    "arch": ({"null"}, "'arch' is a |unknown model 'abc'"),
    "dataset": ({"null"}, "'dataset' is a |trained on abc, found --dataset noise"),
    "replaced": ({"null"}, "'replaced' is "),
    "model": (set(), "no weights found"),
}


@pytest.mark.parametrize(
    "field, kind", slow_but([*itertools.product(NETWORK, ("null", "dict"))], itertools.product(NETWORK, OTHERS))
)
def test_a_network_s_file_with_a_field_of_another_kind(noisy, monkeypatch, capsys, field, kind):
    """Is refused in one line that names file and field, where the field is needed; else it is read as without."""
    harmless, message = NETWORK[field]
    content = torch.load(TEACHER, weights_only=True)
    torch.save(content | {field: OTHERS[kind]}, "x.pth")
    options = ("--path", "x.pth", *NOISE, "--model", "resnet8")
    if kind in harmless:
        ends(monkeypatch, capsys, evaluate, *options)
        return
    line = refused(monkeypatch, capsys, evaluate, *options)
    assert "x.pth: " in line
    assert any(part in line for part in message.split("|")), line


@pytest.mark.parametrize(
    "replaced",
    [
        {},
        {"distill": "simkd"},
        {"distill": "nothing", "arch_t": "resnet8"},
        {"distill": ["simkd"], "arch_t": "resnet8"},
        {"distill": "simkd", "arch_t": "nothing"},
        {"distill": "simkd", "arch_t": 3},
        {"distill": "simkd", "arch_t": "resnet8", "options": [1]},
        {"distill": "norm", "arch_t": "resnet8", "options": {"co_sponge": "x"}},
        {"distill": "simkd", "arch_t": "resnet8", "options": {"factor": "x"}},
        {"distill": "simkd", "arch_t": "resnet8", "options": {"factor": None}},
    ],
)
def test_a_replaced_part_that_makes_no_sense_is_refused(noisy, monkeypatch, capsys, replaced):
    content = torch.load(TEACHER, weights_only=True)
    torch.save(content | {"replaced": replaced}, "x.pth")
    assert "x.pth: " in refused(monkeypatch, capsys, evaluate, "--path", "x.pth", *NOISE)


CONTINUED = (*ALONE, "--name", "x", "--resume", "--epochs")


@pytest.fixture(scope="module")
def two_epochs(tmp_path_factory):
    """The folder in which a run x ended after its second epoch; not to be changed."""
    folder = tmp_path_factory.mktemp("two_epochs")
    with pytest.MonkeyPatch.context() as patch:
        work_in(folder, patch)
        for epochs in (1, 2):
            call(train_teacher, *CONTINUED, epochs)
    return folder


@pytest.fixture
def interrupted(two_epochs, noisy):
    """A run x after its second epoch, which has last.pth and previous.pth; and the options to continue it."""
    shutil.copytree(two_epochs, ".", dirs_exist_ok=True)
    return Path("save_t_models/x"), (*CONTINUED, 3)


KINDS = ("missing", *OTHERS)
FIELDS = ("model", "objective", "optimizer", "random", "meters", "history", "step", "seconds", "args")


ALL_FIELDS = (*FIELDS, "next_epoch", "inputs", "made_by", "accuracy")


@pytest.mark.parametrize(
    "field, kind",
    slow_but([*itertools.product(ALL_FIELDS, ("missing",))], itertools.product(ALL_FIELDS, KINDS)),
)
def test_a_checkpoint_to_resume_with_a_field_of_another_kind(interrupted, monkeypatch, capsys, field, kind):
    """The one before is used, or one line says what is wrong; no run goes on from nonsense."""
    folder, options = interrupted
    state = torch.load(folder / "last.pth", weights_only=True)
    state[field] = OTHERS.get(kind)
    if kind == "missing":
        del state[field]
    torch.save(state, folder / "last.pth")
    monkeypatch.setattr("sys.argv", ["train_teacher.py", *map(str, options)])
    try:
        run(train_teacher.main, train_teacher.get_args_parser)
    except SystemExit as stopped:
        assert stopped.code == 2
        line = capsys.readouterr().err
        assert line.count("\n") == 1 and "save_t_models/x" in line
        return
    assert not torch.isnan(torch.load(folder / "last.pth", weights_only=True)["model"]["fc.weight"]).any()
    log = (folder / "log.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in log] == ["epoch", "1", "2", "3"]
    out = capsys.readouterr().out
    if field in ("inputs", "made_by", "accuracy") or (field, kind) == ("seconds", "number"):
        assert "previous.pth" not in out
    elif field == "model" and kind == "dict":  # its weights are also those of the objective, which are read
        assert "previous.pth" not in out
    elif field in FIELDS and (kind, field) not in {("number", "step"), ("nan", "seconds")}:
        assert f"using {folder}/previous.pth instead" in out


@pytest.mark.parametrize("history", [[1, 2], [{}, {}], [{"seconds": 1, "test_acc": "x"}] * 2, [None] * 2])
def test_a_log_of_no_epochs_is_refused(interrupted, monkeypatch, capsys, history):
    folder, options = interrupted
    state = torch.load(folder / "last.pth", weights_only=True)
    torch.save(state | {"history": history}, folder / "last.pth")
    assert f"{folder}: its checkpoint does not fit this run (" in refused(monkeypatch, capsys, train_teacher, *options)


@pytest.mark.parametrize("other", ["best.pth", "teacher", "text"])
def test_another_file_in_place_of_the_last_checkpoint_is_noticed(interrupted, monkeypatch, capsys, other):
    folder, options = interrupted
    source = {"best.pth": folder / "best.pth", "teacher": TEACHER, "text": ROOT / "LICENSE"}[other]
    shutil.copy(source, folder / "last.pth")
    out, _ = ends(monkeypatch, capsys, train_teacher, *options)
    assert f"{folder}/last.pth: " in out and f"using {folder}/previous.pth instead" in out
    assert len(torch.load(folder / "last.pth", weights_only=True)["history"]) == 3


# Ctrl-C, streams and devices.


@pytest.mark.parametrize("name", slow_but(["train_student"], SCRIPTS))
def test_ctrl_c_while_libraries_are_loaded_is_one_line(tmp_path, name):
    (tmp_path / "numpy.py").write_text("import signal\nsignal.raise_signal(signal.SIGINT)\n")
    environment = os.environ | {"PYTHONPATH": str(tmp_path)}
    command = [sys.executable, str(ROOT / f"{name}.py"), "--help"]
    # A shell passes it on when SIGINT is ignored, as for a job in the background; Python would then not notice it.
    ended = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert (ended.returncode, ended.stdout, ended.stderr) == (-signal.SIGINT, "", f"{name}.py: interrupted\n")


def shell(text, **variables):
    """(exit status, stdout, stderr) of a shell's line, in which $RUN is Python and the folder of the scripts."""
    line = text.replace("$RUN ", f"{sys.executable} {ROOT}/")
    ended = subprocess.run(["sh", "-c", line], capture_output=True, env=os.environ | variables)
    return ended.returncode, ended.stdout, ended.stderr


REFUSED = "train_teacher.py --name ../x"
LINE = b"train_teacher.py: argument --name: found '../x', expected the name of a folder, without slashes"


@pytest.mark.slow
@pytest.mark.parametrize(
    "line, status, stdout, stderr",
    [
        ("$RUN train_teacher.py --help >&-", 0, b"", b""),
        ("$RUN train_teacher.py --help >&- 2>&-", 0, b"", b""),
        (f"$RUN {REFUSED} >&-", 2, b"", LINE),
        (f"$RUN {REFUSED} 2>&-", 2, b"", b""),
        (f"$RUN {REFUSED} 2>/dev/full", 2, b"", b""),
        ("$RUN evaluate.py --path none.pth 2>/dev/full", 2, b"", b""),
        ("$RUN train_student.py --list >/dev/full", 1, b"", b": cannot write its output: No space left on device\n"),
    ],
)
def test_output_that_nobody_reads_harms_nothing(line, status, stdout, stderr):
    found = shell(line)
    assert found[:2] == (status, stdout)
    assert stderr in found[2] and found[2].count(b"\n") == (1 if stderr else 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", SCRIPTS)
def test_a_terminal_that_is_not_utf_8_shows_the_help(name):
    variables = {"LC_ALL": "POSIX", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONIOENCODING": "ascii"}
    status, printed, errors = shell(f"$RUN {name}.py --help", **variables)
    assert (status, errors) == (0, b"") and printed.isascii()


@pytest.mark.slow
def test_a_terminal_that_is_not_utf_8_shows_a_refusal():
    status, _, line = shell("$RUN evaluate.py --path é.pth", PYTHONIOENCODING="ascii")
    assert status == 2 and line.startswith(b"evaluate.py: ") and line.endswith(b".pth: no such file\n")


def unwritable(folder, *command):
    with open("/dev/full", "w") as full:
        enter(full, folder, "none", *command)


@pytest.mark.slow
def test_output_on_a_full_disk_stops_a_run_that_can_go_on(place):
    """The line of an epoch is lost, not its checkpoint."""
    command = RUNS["teachers"][0]
    alone, folder = place("alone"), place("folder")
    assert execute("none", alone, command)[0] == 0
    process = started(unwritable, folder, *command.split())
    process.join()
    assert process.exitcode == 1
    assert execute("none", folder, command + " --resume")[0] == 0
    assert artefacts(folder) == artefacts(alone)


@pytest.mark.parametrize(
    "count, device, message",
    [
        (0, "mps", "found 'mps', expected cpu, cuda or cuda:<index>; this machine has cpu (see"),
        (0, "cuda:9", "found 'cuda:9', but this PyTorch sees no CUDA device; use --device cpu (see"),
        (1, "cuda:9", "found 'cuda:9', but this machine has cpu and cuda:0 (see"),
        (4, "cuda:4", "found 'cuda:4', but this machine has cpu and cuda:0 to cuda:3 (see"),
        (4, "mps", "found 'mps', expected cpu, cuda or cuda:<index>; this machine has cpu and cuda:0 to cuda:3 (see"),
        (4, "cpu:1", "found 'cpu:1', but this machine has cpu and cuda:0 to cuda:3 (see"),
    ],
)
def test_a_device_that_is_not_there(monkeypatch, capsys, count, device, message):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    assert f"argument --device: {message}" in refused(monkeypatch, capsys, train_teacher, "--device", device)


@pytest.mark.parametrize(
    "option, value, message",
    [
        ("--name", "a" * 300, "found 300 bytes, expected a name of at most 200"),
        ("--seed", "-1", "found '-1', expected a whole number at least 0 and at most 9223372036854775807 (see"),
        (
            "--epochs",
            "3000000000",
            "found '3000000000', expected a whole number at least 1 and at most 2147483647 (see",
        ),
        ("--lr", "1001", "found '1001', expected a number at least 0 and at most 1000 (see"),
    ],
)
def test_numbers_print_as_they_are(monkeypatch, capsys, option, value, message):
    assert message in refused(monkeypatch, capsys, train_teacher, option, value)


# A run repeated from its args.json.

SHORT = (*OWN, "--lr_decay_epochs", "", "--epochs", 1)
REPEATED = {
    "stage 1": (train_teacher, ("--model", "resnet8", *SHORT), "save_t_models/resnet8*", ("--epochs", 2)),
    "stage 2": (
        generate_PCD_PI,
        ("--path_t", TEACHER, *OWN, "--passes", 1),
        "ripsnet/teacher/layer*",
        ("--num_clouds", 3),
    ),
    "stage 3": (
        train_ripsnet,
        ("--path_t", TEACHER, *OWN, "--epochs", 1, "--operator", "sum"),
        "ripsnet/teacher/layer*/ripsnet_dim0_sum",
        ("--lr", 0.001),
    ),
    "stage 4": (
        train_student,
        ("--path_t", TEACHER, *SHORT, "--model_s", "resnet8", "--distill=crd", "--set", "nce_k=16", "feat_dim=8")
        + ("-d5", "--topology", "wasserstein", "--tda_layer_s", -1),
        "save_s_models/*",
        ("-d", 6),
    ),
}


@pytest.mark.parametrize("stage", slow_but(["stage 1", "stage 4"], REPEATED))
def test_config_repeats_a_run(tmp_path, monkeypatch, capsys, stage):
    script, options, pattern, changed = REPEATED[stage]
    folders = []
    for name in ("first", "repeated", "changed"):
        (tmp_path / name).mkdir()
        work_in(tmp_path / name, monkeypatch)
        if stage == "stage 3":
            make_clouds()
        given = options
        if name != "first":
            given = ("--config", folders[0] / "args.json")
        if name == "changed":
            given += changed
        ends(monkeypatch, capsys, script, *given)
        [folder] = Path().glob(pattern)
        folders.append(folder.resolve())
    first, repeated, other = (json.loads((folder / "args.json").read_text()) for folder in folders)
    assert repeated["args"] == first["args"] and repeated["command"] == first["command"]
    assert artefacts(folders[1]) == artefacts(folders[0])
    option, value = changed
    names = {"-d": "delta"}
    name = names.get(option, option.removeprefix("--"))
    assert other["args"][name] == value != first["args"][name]
    rest = [name, "published", "weights_source"]
    assert {**other["args"], **dict.fromkeys(rest)} == {**first["args"], **dict.fromkeys(rest)}
    words = other["command"].split()
    assert words.count(option) == 1 and "--config" not in words and "-d5" not in words
    assert words[words.index(option) + 1] == str(value)


@pytest.mark.parametrize(
    "content, message",
    [
        (None, "No such file or directory"),
        ("", "is not the args.json of a run"),
        ("no JSON", "is not the args.json of a run"),
        ("[" * 200_000, "is not the args.json of a run"),
        ("[]", "is not the args.json of a run"),
        ('"text"', "is not the args.json of a run"),
        ("{}", "is not the args.json of a run (it holds no command)"),
        ('{"command": null}', "is of nothing, expected one of"),
        ('{"command": 3}', "is of nothing, expected one of"),
        ('{"command": ""}', "is of nothing, expected one of"),
        ('{"command": "python \'"}', "is not the args.json of a run"),
        ('{"command": "python other.py --epochs 3"}', "is of other.py, expected one of"),
        ("\xff\xfe", "is not the args.json of a run"),
    ],
)
@pytest.mark.parametrize("script", [train_teacher, generate_PCD_PI, train_ripsnet, train_student])
def test_a_file_that_holds_no_run_is_refused(noisy, monkeypatch, capsys, script, content, message):
    if content is not None:
        Path("x.json").write_bytes(content.encode("latin-1"))
    line = refused(monkeypatch, capsys, script, "--config", "x.json")
    assert "--config: x.json " in line and message in line


def config_of(command):
    Path("args.json").write_text(json.dumps({"command": f"python train_student.py {command}"}))
    parser = train_student.get_args_parser()
    parser.prog = "train_student.py"
    return parser


@pytest.mark.parametrize("command, given, expected", [
    ("--name small_trial1", "--trial 2", "--name small_trial2 --trial 2"),
    ("--name=small_trial3 --trial 3", "--trial=4", "--name small_trial4 --trial=4"),
    ("--name small_trial1", "--trial 1", "--name small_trial1 --trial 1"),
    ("--name small_trial1", "-d 5", "--name small_trial1 -d 5"),
    ("--name small_trial1", "--trial 2 --name other", "--trial 2 --name other"),
    ("--model_s resnet8", "--trial 1 2", "--model_s resnet8 --trial 1 2"),
])  # fmt: skip
def test_config_of_a_named_run_gives_another_trial_another_name(tmp_path, monkeypatch, command, given, expected):
    monkeypatch.chdir(tmp_path)
    found = config_of(command).written_out(["--config", "args.json", *given.split()])
    assert " ".join(found) == expected


@pytest.mark.parametrize("command, given", [("--name mine", "--trial 2"), ("--name small_trial1", "--trial 2 3")])
def test_config_of_a_name_without_its_trial_wants_another_name(tmp_path, monkeypatch, command, given):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(UserError, match="the run of args.json was given the name .*; give one trial and another --na"):
        config_of(command).written_out(["--config", "args.json", *given.split()])


def test_config_needs_a_file(monkeypatch, capsys):
    assert "argument --config: expected one argument" in refused(monkeypatch, capsys, train_teacher, "--config")
    assert "--config: . is not the args.json" in refused(monkeypatch, capsys, train_teacher, "--config", ".")


# Threads, and precision.


@pytest.mark.slow
def test_a_run_may_go_on_with_other_threads_and_its_row_names_both(place):
    command, folder = RUNS["teachers"][0], place("folder")
    status, printed = execute("int:5", folder, f"{command} --num_threads 1")
    assert status == 130, printed
    status, printed = execute("none", folder, f"{command} --num_threads 2 --resume")
    assert status == 0, printed
    [row] = csv.DictReader((folder / "results" / "runs" / "x.csv").read_text().splitlines())
    first, second = row["device"].split("; ")
    assert first.endswith("(1 threads)") and second.endswith("(2 threads)")
    assert "num_threads" not in row


def test_emulated_bf16_is_one_warning_a_process(monkeypatch, capsys):
    monkeypatch.setattr(objective, "has_bf16", lambda device: False)
    objective.warn_of_emulation.cache_clear()
    for _ in range(2):
        objective.warn_of_emulation(torch.device("cpu"))
    assert capsys.readouterr().out.startswith("warning: --amp bf16 is emulated on this cpu, which has no instructions")
    objective.warn_of_emulation.cache_clear()
    monkeypatch.setattr(objective, "has_bf16", lambda device: True)
    objective.warn_of_emulation(torch.device("cpu"))
    assert capsys.readouterr().out == ""
    objective.warn_of_emulation.cache_clear()


def test_only_a_run_in_bf16_is_warned(noisy, monkeypatch, capsys):
    monkeypatch.setattr(objective, "has_bf16", lambda device: False)
    for amp, warned in (("off", False), ("bf16", True)):
        objective.warn_of_emulation.cache_clear()
        out, _ = ends(monkeypatch, capsys, train_teacher, *ALONE, "--amp", amp, "--name", amp)
        assert ("emulated" in out) == warned
    objective.warn_of_emulation.cache_clear()


@pytest.mark.skipif(not Path("/proc/cpuinfo").exists(), reason="the CPU's instructions are not known")
def test_a_cpu_has_bf16_if_it_has_the_instructions():
    flags = Path("/proc/cpuinfo").read_text().split()
    if "avx_ne_convert" in flags or "asimd" in flags:
        pytest.skip("other instructions for bf16 than those of AVX-512")
    assert objective.has_bf16(torch.device("cpu")) == ("avx512_bf16" in flags)


@pytest.mark.parametrize("wide, bf16, expected", [(False, False, True), (True, False, False), (True, True, True)])
def test_avx512_alone_is_no_bf16_though_pytorch_supports_it_there(monkeypatch, wide, bf16, expected):
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: True)
    monkeypatch.setattr(torch.cpu, "_is_avx512_supported", lambda: wide)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: bf16)
    assert objective.has_bf16(torch.device("cpu")) is expected
