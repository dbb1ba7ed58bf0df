"""Stage 4, train_student.py, as a whole: what every method has in common, what it writes, and what it refuses."""

import csv
import io
import itertools
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib import image as plt_image
from support.marks import slow_but
from support.running import (
    CLASSES,
    CLOUDS,
    POINTS,
    TEACHER,
    TIME_COLUMNS,
    call,
    make_clouds,
    make_teacher,
    refused,
    work_in,
)
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams_metadata

import evaluate
import train_ripsnet
import train_student
from dataset import TrainLoader, load_dataset
from helper.files import checkpoint, provenance, run
from helper.files.atomic import csv_bytes, write_json
from helper.student import build, pictures
from helper.student.distillation import Distillation
from helper.training import loop
from models import create_model
from ripsnet import RipsNet

FITTED = CLOUDS / "ripsnet_dim0_mean/best.pth"
USUAL = ["--path_t", TEACHER, "--dataset", "noise", "--device", "cpu", "--batch_size", POINTS]
METHODS = {
    "CE": ("-r", 1, "-a", 0),
    "KD": (),
    "RipsNet": ("-d", 5),
    "exact": ("-d", 5, "--topology", "exact"),
    "wasserstein": ("-d", 5, "--topology", "wasserstein"),
}
WIDTHS_DIFFER = ("--tda_layer_s", -3)  # 32 channels, where the teacher's pooled vector has 64


def train(*options, name="run"):
    """Stage 4 for an epoch of six steps, the last of which has ten images; `options` may say otherwise."""
    call(train_student, *USUAL, "--model_s", "resnet8", "--epochs", 1, "--name", name, *options)


def result(name="run"):
    """(weights of best.pth, rows of the log without its times)."""
    with open(Path("save_s_models", name, "log.csv")) as file:
        rows = [{key: row[key] for key in row if key not in TIME_COLUMNS} for row in csv.DictReader(file)]
    return checkpoint.load(Path("save_s_models", name, "best.pth"))["model"], rows


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def softmax(logits, T=1.0):
    powers = np.exp(logits / T - (logits / T).max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    work_in(tmp_path, monkeypatch)


@pytest.fixture
def prepared(stages):
    """A copy of that folder's files in the current one."""
    shutil.copytree(stages, ".", dirs_exist_ok=True)


def test_training_with_and_without_a_diagnosis_is_the_same(prepared, monkeypatch):
    train("-d", 5, "--epochs", 2, *WIDTHS_DIFFER, name="with")
    monkeypatch.setattr(Distillation, "diagnose", lambda self: {})
    train("-d", 5, "--epochs", 2, *WIDTHS_DIFFER, name="without")
    (weights, log), (weights_without, log_without) = result("with"), result("without")
    assert equal(weights, weights_without)
    columns = {"grad_ce", "grad_kd", "grad_top", "student_r2"}
    assert columns <= set(log[0])
    assert [{key: row[key] for key in row if key not in columns} for row in log] == log_without


@pytest.mark.slow
def test_training_with_and_without_figures_is_the_same(prepared, monkeypatch):
    monkeypatch.setattr(loop, "FIGURES_EVERY", 1)
    drawn = []
    draw = pictures.image_panel
    monkeypatch.setattr(pictures, "image_panel", lambda images: drawn.append(1) or draw(images))
    train("-d", 5, "--epochs", 2, *WIDTHS_DIFFER, name="with")
    monkeypatch.setattr(Distillation, "figures", lambda self: {})
    train("-d", 5, "--epochs", 2, *WIDTHS_DIFFER, name="without")
    assert len(drawn) == 2
    assert equal(result("with")[0], result("without")[0]) and result("with")[1] == result("without")[1]
    last = [checkpoint.load(f"save_s_models/{name}/last.pth") for name in ("with", "without")]
    for part in ("objective", "random"):
        assert equal(last[0][part], last[1][part])


def test_tensorboard_has_the_images_and_the_hyperparameters_of_a_run(prepared, monkeypatch):
    monkeypatch.setattr(loop, "FIGURES_EVERY", 2)
    train("-d", 5, "--dim", "01", "--epochs", 3)
    events = EventAccumulator("save_s_models/run", size_guidance={"images": 0}).Reload()
    assert set(events.Tags()["images"]) == {"persistence_images/dim0", "persistence_images/dim1"}
    for tag in events.Tags()["images"]:
        found = events.Images(tag)
        assert [image.step for image in found] == [2, 3]
        for image in found:
            pixels = plt_image.imread(io.BytesIO(image.encoded_image_string))
            assert pixels.shape == (image.height, image.width, 3) and len(np.unique(pixels)) > 10

    accuracies = [float(row["test_acc"]) for row in result()[1]]
    for tag, expected in (("hparam/last", accuracies[-1]), ("hparam/best", max(accuracies))):
        (point,) = events.Scalars(tag)
        assert (point.step, point.value) == (3, pytest.approx(expected))
    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    start = hparams_metadata.parse_session_start_info_plugin_data(content)
    assert start.group_name == "run"
    assert (start.hparams["delta"].number_value, start.hparams["dim"].string_value) == (5, "01")
    assert start.hparams["lr_decay_epochs"].string_value == "[150, 180, 210]"
    assert not {"resume", "device", "name", "ripsnet"} & set(start.hparams)


def test_delta_0_is_the_run_that_knows_of_no_topology(stages, monkeypatch):
    train("-d", 0, "-r", 1, "-a", 2, "--epochs", 2)
    assert not Path("ripsnet").exists()
    control = result()
    monkeypatch.setattr(RipsNet, "forward", None)
    monkeypatch.setattr(checkpoint, "load", lambda path, *rest, load=checkpoint.load: load(refuse_ripsnet(path), *rest))
    shutil.copytree(stages / "ripsnet", "ripsnet")
    for name, options in {"explicit": ("-d", 0), "default": ()}.items():
        train(*options, "-r", 1, "-a", 2, "--epochs", 2, name=name)
        assert equal(result(name)[0], control[0]) and result(name)[1] == control[1]
    assert set(control[1][0]) >= {"ce", "kd"} and "top" not in control[1][0]


def refuse_ripsnet(path):
    assert "ripsnet" not in Path(path).parts
    return path


def test_cross_entropy_alone_never_runs_the_teacher(monkeypatch):
    fold_batchnorm = build.fold_batchnorm

    def broken(model):
        folded = fold_batchnorm(model)
        folded.forward = None
        return folded

    monkeypatch.setattr(build, "fold_batchnorm", broken)
    train(*METHODS["CE"])
    assert [key for key in result()[1][0] if key.startswith("share_")] == ["share_ce"]
    with pytest.raises(TypeError):
        train(*METHODS["KD"], name="kd")


def test_topology_without_kd():
    train("-a", 0, *METHODS["wasserstein"])
    assert [key for key in result()[1][0] if key.startswith("share_")] == ["share_ce", "share_top"]


@pytest.mark.parametrize(
    "projection",
    [pytest.param((), id="same width", marks=pytest.mark.slow), pytest.param(WIDTHS_DIFFER, id="projection")],
)
def test_all_methods_start_from_equal_weights_and_see_equal_batches(prepared, monkeypatch, projection):
    training_run, seen = train_student.training_run, {}

    def recording_run(trainer, stop):
        objective = trainer.objective
        state, batches = {name: tensor.clone() for name, tensor in objective.student.state_dict().items()}, []
        objective.register_forward_pre_hook(lambda module, batch: batches.append([part.clone() for part in batch]))
        seen[method] = state, batches
        return training_run(trainer, stop)

    monkeypatch.setattr(train_student, "training_run", recording_run)
    for method, options in METHODS.items():
        train(*options, *(projection if "-d" in options else ()), name=method)
    state, batches = seen["CE"]
    assert [len(labels) for _, labels, _ in batches] == [12] * 5 + [10]  # the short batch too
    for method, (other_state, other_batches) in seen.items():
        assert equal(state, other_state), method
        for batch, other in zip(batches, other_batches, strict=True):
            assert all(torch.equal(*parts) for parts in zip(batch, other, strict=True)), method
    assert len({result(method)[1][0]["test_loss"] for method in METHODS}) == len(METHODS)  # and yet differ


@pytest.mark.parametrize("method", slow_but(["RipsNet"], ["RipsNet", "exact", "wasserstein"]))
def test_the_projection_is_trained_and_saved_but_not_deployed(prepared, monkeypatch, capsys, method):
    training_run, before = train_student.training_run, {}

    def recording_run(trainer, stop):
        before.update({name: tensor.clone() for name, tensor in trainer.objective.projection.state_dict().items()})
        return training_run(trainer, stop)

    monkeypatch.setattr(train_student, "training_run", recording_run)
    train(*METHODS[method], *WIDTHS_DIFFER)
    saved = checkpoint.load("save_s_models/run/last.pth")["objective"]
    for name in ("weight", "bias"):
        assert not torch.equal(saved[f"projection.{name}"], before[name])
    deployed, log = result()
    assert deployed.keys() == create_model("resnet8", CLASSES).state_dict().keys()
    capsys.readouterr()
    call(evaluate, "--path", "save_s_models/run/best.pth", "--dataset", "noise", "--device", "cpu", "--json")
    assert json.loads(capsys.readouterr().out)["network"]["top1"] == float(log[0]["test_acc"])


def test_no_projection_where_widths_are_equal(prepared):
    train("-d", 5)
    assert not any("projection" in name for name in checkpoint.load("save_s_models/run/last.pth")["objective"])


def test_the_log_means_over_images_and_the_short_batch_is_one_of_them():
    train("-r", 1, "-a", 0, "--lr", 0)
    (row,) = result()[1]
    student = create_model("resnet8", CLASSES)
    student.load_state_dict(checkpoint.load("save_s_models/run/last.pth")["model"])  # as it began, for --lr 0
    loss, correct = 0.0, 0
    for images, labels, _ in TrainLoader(load_dataset("noise", "")[0], POINTS, seed=1).epoch(1):
        logits = student(images).detach().double().numpy()  # in training mode
        loss -= np.log(softmax(logits)[np.arange(len(labels)), labels]).sum()
        correct += (logits.argmax(axis=1) == labels.numpy()).sum()
    assert (row["steps"], row["short_batches"]) == ("6", "1")
    assert float(row["ce"]) == pytest.approx(loss / 70, rel=1e-4)
    assert float(row["train_acc"]) == pytest.approx(100 * correct / 70)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["RipsNet", "exact"])
@pytest.mark.parametrize("arch, layer", [("resnet8x4", -1), ("wrn_16_2", -2), ("vgg8", -3), ("ShuffleV2", 0)])
def test_students_of_every_family_train_at_several_layers(prepared, arch, layer, method):
    operator = ("--operator", "mean") if method == "RipsNet" else ()
    train("--model_s", arch, *METHODS[method], "--tda_layer_s", layer, *operator, "--lr", 0.01)
    (row,) = result()[1]
    assert np.isfinite(float(row["loss"])) and float(row["top"]) > 0


@pytest.mark.parametrize(
    "dim, topology",
    slow_but([("1", "exact"), ("01", "ripsnet")], itertools.product(("1", "01"), ("ripsnet", "exact"))),
)
def test_the_other_dimensions_train(prepared, topology, dim):
    train("-d", 5, "--topology", topology, "--dim", dim)
    (row,) = result()[1]
    assert float(row["top"]) > 0 and ("student_r2" in row) == (topology == "ripsnet")


def test_another_layer_of_the_teacher_has_clouds_of_its_own():
    make_clouds("--tda_layer_t", -3)
    call(train_ripsnet, *USUAL, "--tda_layer_t", -3, "--epochs", 1)
    train("-d", 5, "--tda_layer_t", -3, "--tda_layer_s", -3)
    assert not any("projection" in name for name in checkpoint.load("save_s_models/run/last.pth")["objective"])


@pytest.mark.parametrize("topology", slow_but(["ripsnet"], ["ripsnet", "exact"]))
def test_images_of_another_resolution_and_range_train(topology):
    kind = ("--resolution", 5, "--range", "q99")
    make_clouds(*kind)
    call(train_ripsnet, *USUAL, *kind, "--ripsnet_clouds", 4, "--epochs", 1)
    train("-d", 5, "--topology", topology, *kind, *(["--ripsnet_clouds", 4] if topology == "ripsnet" else []))
    assert float(result()[1][0]["top"]) > 0


@pytest.mark.slow
def test_bf16_trains(prepared):
    train("-d", 5, "--amp", "bf16")
    assert all(tensor.dtype != torch.bfloat16 for tensor in result()[0].values())


def test_the_row_of_results_says_what_ran(prepared):
    train("-d", 5, "--epochs", 3)
    with open("results/runs/run.csv") as file:
        (row,) = csv.DictReader(file)
    fitted = checkpoint.load(FITTED)
    expected = {"method": "TopKD", "teacher": "resnet8", "student": "resnet8", "alpha": "2.0", "delta": "5.0"}
    assert expected.items() <= row.items()
    assert float(row["teacher_acc"]) == 33 and float(row["ripsnet_r2"]) == fitted["quality"]["r2"]
    assert row["teacher_sha256"] == fitted["spec"]["teacher_sha256"]
    assert row["topology_sha256"] == checkpoint.weights_sha256(fitted["model"])
    log = np.genfromtxt("save_s_models/run/log.csv", delimiter=",", names=True)
    accuracies = log["test_acc"]
    assert len(accuracies) == 3 and float(row["best"]) == accuracies.max()
    assert (int(row["best_epoch"]), float(row["last"])) == (accuracies.argmax() + 1, accuracies[-1])
    assert float(row["mean_last10"]) == pytest.approx(accuracies.mean())
    assert float(row["student_r2"]) == log["student_r2"][-1]
    assert float(row["seconds"]) == pytest.approx(log["seconds"].sum(), abs=0.051)


def test_the_numbers_of_a_row_worked_by_hand():
    """The last ten of twelve epochs sum to 530; they took 12 * 2.05 seconds, and the first stage 3.5 + 4.5."""
    accuracies = [10.0, 20.0, 30.0, 62.0, 50.0, 51.0, 62.0, 53.0, 54.0, 55.0, 56.0, 57.0]
    history = [
        {"test_acc": accuracy, "seconds": 2.05, "student_r2": epoch / 100}
        for epoch, accuracy in enumerate(accuracies, 1)
    ]
    first_stage = [{"test_acc": 99.0, "seconds": seconds} for seconds in (3.5, 4.5)]
    row = run.results_row(history, "AB", "resnet8", first_stage=first_stage, without_effect=("kd_T",))
    assert (row["best"], row["best_epoch"], row["last"]) == (62.0, 4, 57.0)
    assert row["mean_last10"] == pytest.approx(53.0)
    assert (row["student_r2"], row["seconds"]) == (0.12, pytest.approx(32.6))
    assert (row["method"], row["student"], row["kd_T"]) == ("AB", "resnet8", None)


@pytest.fixture
def refusal(monkeypatch, capsys):
    """A function of further options: the line with which train_student.py refuses them."""
    usual = [*USUAL, "--model_s", "resnet8", "--epochs", 1]
    return lambda *options: refused(monkeypatch, capsys, train_student, *usual, *options)


@pytest.mark.parametrize("topology", ["ripsnet", "exact"])
@pytest.mark.parametrize(
    "field, value",
    [
        ("teacher_sha256", "0" * 64),
        ("cloud_width", 32),
        ("layer", -2),
        ("points", 64),
        ("pcd_bn", "train"),
        ("sigma_rule", "subsample"),
        ("resolution", [20, 10]),
        ("range_rule", "q99"),
        ("dim", 1),
    ],
)
def test_what_was_made_for_something_else_is_refused(prepared, refusal, topology, field, value):
    if topology == "ripsnet":
        content = checkpoint.load(FITTED)
        content["spec"][field] = value
        checkpoint.save(FITTED, content)
    else:
        content = json.loads((CLOUDS / "spec_dim0.json").read_text())
        write_json(CLOUDS / "spec_dim0.json", content | {field: value})
    line = refusal("-d", 5, "--topology", topology)
    found = tuple(value) if isinstance(value, list) else value
    assert f"made for {field} {str(found)[:12]}, but" in line and "generate_PCD_PI.py" in line


def test_another_teacher_in_the_same_place_is_refused(prepared, refusal):
    make_teacher(seed=1)
    assert "made for teacher_sha256" in refusal("-d", 5)


def other_teacher():
    make_teacher(seed=1)


def other_ripsnet():
    content = checkpoint.load(FITTED)
    content["model"]["layer7.linear.weight"] += 1
    checkpoint.save(FITTED, content)


def other_spec():
    path = CLOUDS / "spec_dim0.json"
    content = json.loads(path.read_text())
    write_json(path, content | {"maximum": 2 * content["maximum"]})


@pytest.mark.parametrize("method, change, name", [
    ("KD", other_teacher, "teacher (teacher_sha256"),
    ("wasserstein", other_teacher, "teacher (teacher_sha256"),
    ("RipsNet", other_ripsnet, "RipsNet or spec of the images (topology_sha256"),
    ("exact", other_spec, "RipsNet or spec of the images (topology_sha256"),
])  # fmt: skip
def test_a_student_does_not_go_on_under_another_teacher_or_topology(prepared, refusal, method, change, name):
    train(*METHODS[method], "--epochs", 1, "--lr_decay_epochs", "")
    before = {path: path.read_bytes() for path in Path("save_s_models/run").iterdir() if path.is_file()}
    change()
    go_on = (*METHODS[method], "--name", "run", "--epochs", 2, "--lr_decay_epochs", "", "--resume")
    line = refusal(*go_on)
    assert f"save_s_models/run: --resume with another {name} was " in line and "put the old one back, choose" in line
    assert {path: path.read_bytes() for path in before} == before
    last = checkpoint.load("save_s_models/run/last.pth")
    del last["inputs"]  # as one of an earlier version, which does not say with what it was trained
    checkpoint.save(Path("save_s_models/run/last.pth"), last)
    train(*go_on)
    assert len(result()[1]) == 2
    with open("results/runs/run.csv") as file:
        (row,) = csv.DictReader(file)
    assert "topology_sha256" not in row and len(row["teacher_sha256"]) == 64


@pytest.mark.parametrize("epochs", [1, 2])
def test_a_run_whose_best_weights_are_gone_does_not_go_on(prepared, refusal, epochs):
    train("--lr_decay_epochs", "")
    best = Path("save_s_models/run/best.pth")
    kept = best.rename("kept.pth")
    go_on = ("--name", "run", "--epochs", epochs, "--lr_decay_epochs", "", "--resume")
    assert f"{best}: missing, though 1 of its run's epochs are done; put it back, choose another" in refusal(*go_on)
    kept.rename(best)
    train(*go_on)


def kept_files(folder="save_s_models/run"):
    paths = [*Path(folder).iterdir(), *Path("results").rglob("*.csv")]
    return {path: path.read_bytes() for path in paths if path.is_file() and not path.name.startswith(".lock")}


@pytest.mark.parametrize(
    "gone, options",
    [
        (["last.pth"], ["--seed", 9]),
        (["last.pth"], ["--resume", "--epochs", 2, "--lr_decay_epochs", ""]),
        (["last.pth", "args.json", "log.csv"], ["--seed", 9]),
        (["last.pth", "args.json", "log.csv"], ["--resume"]),
    ],
    ids=["ended", "to go on", "from elsewhere", "from elsewhere, to go on"],
)
def test_weights_without_a_checkpoint_are_not_trained_over(prepared, refusal, gone, options):
    """As those that this project ships, and those of a run whose last.pth was removed to save space."""
    train("--lr_decay_epochs", "")
    for name in gone:
        Path("save_s_models/run", name).unlink()
    before = kept_files()
    line = refusal("--name", "run", *options)
    assert "save_s_models/run/best.pth: exists, without a last.pth to go on from; put that back, choose another" in line
    assert kept_files() == before


def test_a_run_that_has_ended_is_skipped_though_its_checkpoint_is_gone(prepared, refusal, capsys):
    """As reproduce.py skips it, which reads the row alone; a run of other options or of another teacher is refused."""
    train()
    Path("save_s_models/run/last.pth").unlink()
    before, row = kept_files(), Path("results/runs/run.csv")
    train("--resume")
    assert "run: had ended before, as results/runs/run.csv says" in capsys.readouterr().out
    assert kept_files() == before
    assert "--resume with other options (--seed was 1, now 9)" in refusal("--name", "run", "--seed", 9, "--resume")
    (found,) = csv.DictReader(row.read_text().splitlines())
    row.write_text(row.read_text().replace(found["teacher_sha256"], "0" * 64))
    assert "--resume with another teacher (teacher_sha256 was 0000" in refusal("--name", "run", "--resume")
    row.write_bytes(csv_bytes([found | {"seed": "7"}]))  # of another run of this name
    assert "exists, without a last.pth to go on from" in refusal("--name", "run", "--resume")
    row.unlink()  # then nothing says that it had ended
    assert "exists, without a last.pth to go on from" in refusal("--name", "run", "--resume")


def test_of_several_students_those_that_have_ended_are_skipped(prepared, capsys):
    several = [*USUAL, "--model_s", "resnet8", "--epochs", 1, "--resume"]
    call(train_student, *several, "--trial", 1, 2)
    expected = {path: checkpoint.load(path)["model"] for path in Path("save_s_models").glob("*/best.pth")}
    assert len(expected) == 2
    ended, unfinished = sorted(Path("save_s_models").iterdir())
    (ended / "last.pth").unlink()
    shutil.rmtree(unfinished)
    for _ in range(2):
        call(train_student, *several, "--trial", 1, 2)
        assert f"{ended.name}: had ended before, as results/runs/" in capsys.readouterr().out
        assert all(equal(checkpoint.load(path)["model"], weights) for path, weights in expected.items())
        (unfinished / "last.pth").unlink(missing_ok=True)


@pytest.mark.parametrize("row", [True, False])
def test_a_run_that_was_killed_before_its_first_checkpoint_begins_again(prepared, refusal, row):
    """Though there may be the row of an earlier run of its name, whose folder was removed."""
    train()
    expected = result()
    for path in (*Path("save_s_models/run").glob("l*"), *Path("results").rglob("run.csv")):
        if path.parent.name != "runs" or not row:
            path.unlink()
    assert "save_s_models/run: this run exists; continue it with --resume" in refusal("--name", "run")
    train("--resume")
    assert equal(result()[0], expected[0]) and result()[1] == expected[1]


def test_a_row_names_the_commits_that_trained_and_args_json_the_last_command(prepared, monkeypatch):
    def row():
        with open("results/runs/run.csv") as file:
            return next(csv.DictReader(file))

    monkeypatch.setattr(run, "git_commit", lambda: "first")
    train("--lr_decay_epochs", "")
    monkeypatch.setattr(run, "git_commit", lambda: "second")
    monkeypatch.setattr(run, "versions", lambda dataset: {"python": "3", "torch": "9"})
    Path("results/runs/run.csv").unlink()
    train("--lr_decay_epochs", "", "--resume")
    assert row()["commit"] == "first" and row()["torch"] == torch.__version__
    assert json.loads(Path("save_s_models/run/args.json").read_text())["commit"] == "first"
    train("--lr_decay_epochs", "", "--epochs", 2, "--resume")
    assert row()["commit"] == "first; second" and row()["torch"] == f"{torch.__version__}; 9"
    about = json.loads(Path("save_s_models/run/args.json").read_text())
    assert about["commit"] == "second" and about["args"]["epochs"] == 2


def test_the_command_of_one_of_several_trials_is_its_own(monkeypatch):
    given = ["train_student.py", "--path_t", "t.pth", "--trial", "1", "2", "3", "-d", "5", "--resume"]
    monkeypatch.setattr(sys, "argv", given)
    assert provenance.command(2) == "python train_student.py --path_t t.pth --trial 2 -d 5"
    monkeypatch.setattr(sys, "argv", [*given[:3], "--trial=4"])
    assert provenance.command(4) == "python train_student.py --path_t t.pth --trial=4"


def test_a_folder_in_place_of_a_ripsnet_and_a_ripsnet_in_place_of_a_teacher_are_told(prepared, refusal):
    line = refusal("-d", 5, "--ripsnet", FITTED.parent)
    assert f"--ripsnet: {FITTED.parent} is a folder, expected the file of a RipsNet in it, as best.pth" in line
    line = refusal("--path_t", FITTED)
    assert f"{FITTED}: holds a RipsNet, expected a network that classifies images" in line


def test_a_ripsnet_of_another_width_or_pooling_is_refused(prepared, refusal):
    checkpoint.save(Path("narrow.pth"), {"model": RipsNet(32).state_dict()})
    line = refusal("-d", 5, "--ripsnet", "narrow.pth")
    assert "a RipsNet for clouds of width 32, but layer --tda_layer_t of the teacher has 64" in line
    line = refusal("-d", 5, "--ripsnet", FITTED, "--operator", "sum")
    assert "a RipsNet with --operator mean, found --operator sum" in line
    assert "expected one for each" in refusal("-d", 5, "--ripsnet", FITTED, "--dim", "01")
    assert "not the weights of a RipsNet" in refusal("-d", 5, "--ripsnet", TEACHER)
    checkpoint.save(Path("coarse.pth"), {"model": RipsNet(64, pixels=49).state_dict()})
    line = refusal("-d", 5, "--ripsnet", "coarse.pth")
    assert "coarse.pth: a RipsNet for 49 pixels, found --resolution 20" in line


def test_a_ripsnet_with_a_spec_that_is_none_is_refused(prepared, refusal):
    checkpoint.save(FITTED, checkpoint.load(FITTED) | {"spec": {"dim": 0}})
    assert "image spec" in refusal("-d", 5)


def test_what_is_missing_is_named_with_the_script_that_makes_it(refusal):
    assert "no RipsNet there; fit it with train_ripsnet.py" in refusal("-d", 5)
    line = refusal("--topology", "exact")
    assert "no image spec there; make it with generate_PCD_PI.py" in line
    line = refusal("-d", 5, "--batch_size", 10)
    assert "layer-1_n10_eval_released" in line  # clouds of another size lie elsewhere


def test_a_ripsnet_without_a_spec_works_with_a_warning_but_exact_images_need_one(refusal, capsys):
    """As the authors published theirs."""
    torch.manual_seed(0)
    checkpoint.save(Path("published.pth"), {"model": RipsNet(64).state_dict()})
    train("-d", 5, "--ripsnet", "published.pth")
    assert capsys.readouterr().out.count("warning: published.pth brings no image spec") == 1
    assert "top" in result()[1][0] and "student_r2" not in result()[1][0]
    assert "no image spec there" in refusal("-d", 5, "--topology", "exact")
