"""Every method in the training of a student: real steps on its pairs, overfitting, options, resume, deployment."""

import functools
import itertools
import re
from pathlib import Path

import pytest
import torch
from support.marks import slow_but
from support.running import call, refused
from support.zoo import teacher_of

import evaluate
import train_student
from dataset import ImageSet, TrainLoader, dataset_dict
from distiller_zoo import distiller_dict
from helper.cli.parser import read
from helper.files import checkpoint
from helper.settings import Clouds, Data, Loss, Repetition, ResolvedTraining, Training
from helper.student.build import build_objective
from helper.student.distillation import FirstStage
from helper.student.pairs import PAIRS
from helper.student.weights import resolve
from helper.training import loop
from helper.training.loop import make_optimizer
from helper.training.meters import Meters
from helper.training.steps import train_steps
from models import create_model

METHODS = list(distiller_dict)
WITH_LOSS = [key for key, method in distiller_dict.items() if method.loss]
IMAGES, BATCH = 7, 4  # an epoch is a batch of four and a short one of three
FEW = [("vgg13", "MobileNetV2"), ("resnet56", "resnet20"), ("wrn_40_2", "ShuffleV1")]
# What is not slow: a method for each way of reading the networks, or of replacing a part of them, and a refusal.
QUICK = [
    *((key, FEW[0]) for key in ("kd", "mgd")),
    *((key, FEW[1]) for key in ("fsp", "semckd", "crd")),
    *((key, FEW[2]) for key in ("simkd", "norm")),
]
TEACHER = "save_t_models/resnet8_tiny_trial1/best.pth"
RUN = ("--path_t", TEACHER, "--model_s", "resnet8", "--dataset", "tiny", "--batch_size", 64, "--device", "cpu")
SHORT = {"ab": ("--first_epochs", 1), "ft": ("--first_epochs", 1), "fsp": ("--first_epochs", 1)}


@pytest.fixture
def taught(tiny):
    """The data set `tiny`, and an untrained teacher for it."""
    torch.manual_seed(0)
    content = {"model": create_model("resnet8", 4).state_dict(), "arch": "resnet8", "dataset": "tiny"}
    checkpoint.save(Path(TEACHER), content)


def defined(key, pair):
    return distiller_dict[key].pairs is None or pair in distiller_dict[key].pairs


@functools.cache
def images():
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(0, 256, (IMAGES, 32, 32, 3), dtype=torch.uint8, generator=generator)
    return ImageSet(pixels, torch.tensor([0, 1, 2, 3, 0, 1, 99]), dataset_dict["cifar100"])


def build(key, pair, delta=5.0, amp="off", more=()):
    """The objective of `train_student.py --distill <key> -d <delta> --topology wasserstein` for fresh networks."""
    options = ["--path_t", "", "--model_s", pair[1], "--distill", key, "-d", delta, "--batch_size", BATCH]
    options += ["--amp", amp, *(["--topology", "wasserstein"] if delta else []), *more]
    args = train_student.get_args_parser().parse_args([*map(str, options), "--device", "cpu"])
    settings = resolve(*(read(args, each) for each in (Loss, Clouds, Data, Training, Repetition)), *pair)
    torch.manual_seed(0)
    found, _ = build_objective(settings, "", create_model(pair[1]), teacher_of(pair[0]), images())
    return found, FirstStage(found) if settings.loss.first_epochs else None


def epoch(objective, lr=1e-3):
    """Train for one epoch of two steps; the means of the terms."""
    optimizer = make_optimizer(objective, ResolvedTraining(lr=lr))
    meters = Meters(list(objective.weights), torch.device("cpu"))
    for _ in train_steps(objective, TrainLoader(images(), BATCH, seed=0), optimizer, 1, meters):
        pass
    meters.check(1, "")  # raises if a loss was not finite
    return meters.means()


def reached_by_gradients(objective):
    return {name for name, parameter in objective.named_parameters() if parameter.grad is not None}


def step_on(key, pair, **options):
    objective, first = build(key, pair, **options)
    before = {name: parameter.detach().clone() for name, parameter in objective.named_parameters()}
    reached = set()
    if first is not None:
        assert epoch(first)["first"] > 0
        reached = reached_by_gradients(objective)
    means = epoch(objective)
    assert set(means) == set(objective.weights) and all(value == value for value in means.values())
    after = dict(objective.named_parameters())
    assert all(parameter.isfinite().all() for parameter in after.values())
    moved = {name for name, parameter in after.items() if not torch.equal(parameter, before[name])}
    trained = {name for name, parameter in after.items() if parameter.requires_grad}
    assert moved <= trained
    assert any(name.startswith("student.") for name in moved)
    if objective.other is not None and objective.method.trainable:
        missed = {name for name in trained - reached - reached_by_gradients(objective) if name.startswith("other.")}
        assert not missed, missed
    if objective.method.student is None:
        assert list(objective.student.state_dict()) == list(create_model(pair[1]).state_dict())


@pytest.mark.parametrize(
    "key, pair",
    slow_but(QUICK, itertools.product(METHODS, FEW)),
    ids=lambda value: value if isinstance(value, str) else " ".join(value),
)
def test_a_step_on_three_pairs(key, pair):
    if not defined(key, pair):
        with pytest.raises(Exception, match=f"--distill {key}: "):
            build(key, pair)
        return
    step_on(key, pair)


@pytest.mark.slow
@pytest.mark.parametrize("pair", [pair for pair in PAIRS if pair not in FEW], ids=" ".join)
@pytest.mark.parametrize("key", METHODS)
def test_a_step_on_every_other_pair(key, pair):
    if defined(key, pair):
        step_on(key, pair)
    else:
        with pytest.raises(Exception, match=f"--distill {key}: .*needs equal (widths|sizes of the last maps)"):
            build(key, pair)


@pytest.mark.parametrize("key, before", [("reviewkd", (False, True)), ("ofd", (True, True)), ("at", (False, False))])
def test_a_method_is_given_the_maps_before_or_after_the_relu(key, before):
    """Negative values are there before it alone; ReviewKD reads the student's after and the teacher's before it."""
    objective, _ = build(key, ("resnet20", "resnet8"), delta=0.0)
    seen = []
    objective.other.forward = lambda student, teacher, batch: seen.extend((student, teacher)) or torch.zeros(())
    objective(torch.randn(IMAGES, 3, 32, 32), images().labels, torch.arange(IMAGES))
    assert tuple(all((output.features[i] < 0).any() for i in (1, 2, 3)) for output in seen) == before


@pytest.mark.parametrize("key", METHODS)
def test_a_step_without_topology(key):
    step_on(key, ("resnet20", "resnet8"), delta=0.0)


@pytest.mark.parametrize("key", slow_but(["kd", "mlkd"], METHODS))
def test_a_step_in_bf16(key):
    step_on(key, ("resnet20", "resnet8"), amp="bf16")


@pytest.mark.parametrize("key", slow_but(["ab", "at", "crcd", "dkd", "norm", "simkd", "vid"], WITH_LOSS))
def test_the_term_decreases_when_one_batch_is_overfitted(key):
    few_negatives = ("--set", "nce_k=4") if key == "crd" else ()  # as many as there are images, nearly
    objective, first = build(key, ("resnet8", "resnet8"), delta=0.0, more=few_negatives)
    for phase, name in ((first, "first"), (objective, "other")):
        if phase is None or name not in phase.weights:
            continue
        torch.manual_seed(0)
        batch = torch.randn(IMAGES, 3, 32, 32), images().labels, torch.arange(IMAGES)
        optimizer = torch.optim.Adam([p for p in phase.parameters() if p.requires_grad], lr=2e-3)
        phase.train()
        values, fallen = [], False
        for _ in range(100 if key == "crd" else 25):  # CRD's memories must turn towards each other first
            value = phase(*batch)[1][name]
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
            fallen = len(values) > 5 and sum(values[-5:]) / 5 < values[0] - 0.03 * abs(values[0])
            if fallen:
                break
        assert fallen, values


@pytest.mark.slow
def test_the_weight_rises_over_the_warm_up_and_the_log_shows_the_shares_of_it(taught):
    call(train_student, *RUN, "--distill", "dkd", "--warmup", 4, "--epochs", 5, "--name", "run", "--lr", 0)
    rows = checkpoint.load("save_s_models/run/last.pth")["history"]
    for row, weight in zip(rows, (0.25, 0.5, 0.75, 1.0, 1.0), strict=True):
        assert row["loss"] == pytest.approx(row["ce"] + weight * row["other"], rel=1e-5)
        assert row["share_other"] == pytest.approx(weight * row["other"] / row["loss"], rel=1e-5)


@pytest.mark.parametrize("key", slow_but(["ab"], ["ab", "ft"]))
def test_a_first_stage_ends_before_training_proper(taught, key):
    """AB trains the student by its own loss, FT its paraphraser only; afterwards both stand as the log says."""
    call(train_student, *RUN, "--distill", key, "--first_epochs", 2, "--epochs", 1, "--name", "run")
    first, last = (checkpoint.load(f"save_s_models/run/{path}last.pth") for path in ("first_stage/", ""))
    assert {row["lr"] for row in first["history"]} == {0.01 if key == "ft" else 0.05}  # published
    assert last["history"][0]["lr"] == 0.05
    assert [row["epoch"] for row in first["history"]] == [1, 2] and set(last["history"][0]) >= {"ce", "test_acc"}
    assert ("other" in last["history"][0]) == (key == "ft")
    torch.manual_seed(1)
    fresh = create_model("resnet8", 4).state_dict()
    same = {name for name in fresh if torch.equal(fresh[name], first["model"][name])}
    assert (same == set(fresh)) == (key == "ft")
    assert {"fc.weight", "fc.bias"} <= same
    if key == "ft":
        kept = {name for name in last["objective"] if name.startswith(("other.encoder", "other.decoder"))}
        assert kept and all(torch.equal(last["objective"][name], first["objective"][name]) for name in kept)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["crd", "simkd", "ft", "fitnet"])
def test_a_resumed_run_is_the_run_that_never_stopped(taught, key, monkeypatch):
    monkeypatch.setattr(loop, "SAVE_APART", 0.0)  # a checkpoint after every epoch
    options = (*RUN, "--distill", key, "--epochs", 2, *SHORT.get(key, ()))
    call(train_student, *options, "--name", "whole")
    monkeypatch.setattr(train_student.Run, "finish", lambda *_: None)
    stop, save = {"after": 3}, train_student.Run.save

    def interrupted_save(self, state):
        save(self, state)
        stop["after"] -= self.name == "parts"
        if self.name == "parts" and state["next_epoch"] == 2 and stop.pop("once", True):
            raise KeyboardInterrupt

    monkeypatch.setattr(train_student.Run, "save", interrupted_save)
    with pytest.raises(KeyboardInterrupt):
        train_student.main(train_student.get_args_parser().parse_args([*map(str, options), "--name", "parts"]))
    call(train_student, *options, "--name", "parts", "--resume")
    whole, parts = (checkpoint.load(f"save_s_models/{name}/last.pth")["objective"] for name in ("whole", "parts"))
    assert whole.keys() == parts.keys()
    assert all(torch.equal(whole[name], parts[name]) for name in whole)


@pytest.mark.slow
def test_simkd_is_evaluated_and_counted_with_the_projector_and_the_teachers_classifier(taught, capsys):
    call(train_student, *RUN, "--distill", "simkd", "--epochs", 1, "--name", "run")
    deployed = checkpoint.load("save_s_models/run/best.pth")["model"]
    teacher = checkpoint.load(TEACHER)["model"]
    assert torch.equal(deployed["classifier.weight"], teacher["fc.weight"])
    assert not any(name.startswith("body.fc") for name in deployed)
    capsys.readouterr()
    call(evaluate, "--path", "save_s_models/run/best.pth", "--dataset", "tiny", "--device", "cpu")
    logged = checkpoint.load("save_s_models/run/last.pth")["history"][0]["test_acc"]
    scores = capsys.readouterr().out
    assert re.search(rf"^top-1.* {logged:.2f}$", scores, re.MULTILINE)
    body = 83_892 - 65 * 100  # ResNet8 of 100 classes without its classifier
    projector = 64 * 32 + 9 * 32 * 32 + 32 * 64 + 2 * (32 + 32 + 64)
    assert re.search(rf"^parameters +{body + projector + 65 * 4:,}$", scores, re.MULTILINE)
    # and it can teach
    call(train_student, "--path_t", "save_s_models/run/best.pth", *RUN[2:], "--epochs", 1, "--name", "pupil", "-d", 0)


@pytest.mark.parametrize(
    "options, message",
    [
        (("--distill", "crd", "--set", "nce=3"), r"--set: found 'nce=3', expected an option of CRD \(feat_dim=128"),
        (("--distill", "crd", "--set", "nce_k=x"), "--set: found 'nce_k=x', expected nce_k=<int>"),
        (("--distill", "fitnet", "--set", "hint=9"), "--distill fitnet: hint: found 9, expected 0 to 3"),
        (("--distill", "ofd", "-d", 5, "--tda_layer_s", -2), "--tda_layer_s: found -2, expected -1 or 0"),
        (("--distill", "reviewkd", "-d", 5, "--tda_layer_t", -2), "--tda_layer_t: found -2, expected -1 or 0"),
        (("--distill", "fitnets"), r"unknown method 'fitnets'.*did you mean fitnet\?"),
    ],
)
def test_what_cannot_be_is_refused_in_one_line(taught, monkeypatch, capsys, options, message):
    line = refused(monkeypatch, capsys, train_student, *RUN, *options)
    assert re.search(message, line)


def test_the_list_shows_every_method_with_citation_and_pairs(capsys):
    with pytest.raises(SystemExit) as stop:
        train_student.get_args_parser().parse_args(["--list"])
    text = capsys.readouterr().out
    assert stop.value.code == 0
    for key, method in distiller_dict.items():
        assert re.search(rf"^{key} +{re.escape(method.name)}: {re.escape(method.citation)}$", text, re.MULTILINE)
    fsp = text.split("\nfsp ")[1].split("\nnst ")[0]
    assert "6 pairs: wrn_40_2 > wrn_16_2" in fsp and "first stage of 30 epochs" in fsp
    assert "reads features 1:-1 before the last ReLU" in text.split("\nofd ")[1].split("\nsrrl ")[0]
    assert "reads features 1:, the teacher's before the last ReLU" in text.split("\nreviewkd ")[1].split("\nsimkd ")[0]
    assert "\n--logit_stand: logit standardisation (Sun et al., CVPR 2024)" in text
    assert "\n           KD: gamma 0.1 alpha 9 beta 0 temperature 2 (published: " in text
    assert "\n           DKD: gamma 1 alpha 0 beta 9 temperature 2 (published: " in text
