"""helper/training: the schedule and the step against formulas written out here, the log, and what stops a run."""

import csv
import math
import os
import re
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import train_teacher
from dataset import EpochPlan, ImageSet, TrainLoader, load_dataset
from helper.cli.parser import run
from helper.errors import Interrupted, RunStopped, UserError
from helper.files import checkpoint, provenance
from helper.files.run import Run, with_later_options
from helper.settings import ResolvedLoss, ResolvedTraining, plain
from helper.student.distillation import Distillation
from helper.training import loop, progress
from helper.training.interrupts import StopRequest
from helper.training.loop import Trainer, evaluate, fit, make_optimizer
from helper.training.meters import Meters
from helper.training.objective import Objective
from helper.training.steps import train_steps
from models import create_model

OPTIONS = ["--model", "resnet8", "--dataset", "tiny", "--batch_size", "16", "--lr", "0.02", "--device", "cpu"]
RUN = "save_t_models/resnet8_tiny_trial1"


def stage_1(*options):
    train_teacher.main(train_teacher.get_args_parser().parse_args([*OPTIONS, *options]))


def train(objective, images, test_set=None, resume=False, deployed=None, **settings):
    """`fit` in the folder RUN, by two epochs of 16 images a step unless the settings say otherwise."""
    training = ResolvedTraining(**{"epochs": 2, "batch_size": 16, "lr": 0.02} | settings)
    run = Run(RUN, plain(training), torch.device("cpu"), resume)
    loader = TrainLoader(images, training.batch_size, 0)
    test_set = images if test_set is None else test_set
    return fit(Trainer(objective, loader, test_set, run, training, deployed or {}))


def rows(path):
    with open(path) as file:
        return list(csv.DictReader(file))


@pytest.fixture(autouse=True)
def saved_every_epoch(monkeypatch):
    monkeypatch.setattr(loop, "SAVE_APART", 0.0)


@pytest.fixture
def train_set(tiny):
    return load_dataset("tiny", "")[0]


class TwoTerms(Objective):
    """A linear network of the mean colour: cross entropy and a second term. `spoil(terms, step)` may change them."""

    def __init__(self, spoil=lambda terms, step: terms):
        torch.manual_seed(0)
        network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4))
        super().__init__(network, {"ce": 1.0, "other": 0.5, "off": 0.0})
        self.spoil, self.step = spoil, 0

    def forward(self, images, labels, indices):
        logits = self.student(images)
        self.step += 1
        return logits, self.spoil({"ce": F.cross_entropy(logits, labels), "other": logits.square().mean()}, self.step)


@pytest.mark.parametrize(
    "epoch, rate", [(1, 0.05), (150, 0.05), (151, 0.005), (180, 0.005), (181, 5e-4), (210, 5e-4), (211, 5e-5)]
)
def test_the_rate_decays_after_the_published_epochs(epoch, rate):
    assert ResolvedTraining(lr=0.05).rate(epoch) == pytest.approx(rate, rel=1e-12)


def test_the_epochs_of_a_run_use_the_schedule(tiny):
    stage_1("--epochs", "3", "--lr_decay_epochs", "1,2", "--lr_decay_rate", "0.5")
    assert [float(row["lr"]) for row in rows("save_t_models/resnet8_tiny_lr0.02_rate0.5_n16_trial1/log.csv")] == [
        0.02,
        0.01,
        0.005,
    ]


def test_a_step_is_sgd_with_momentum_and_weight_decay():
    """v = 0.9 v + (g + 0.0005 w); w = w - lr v, in float64 with the gradient of a quadratic known in closed form."""
    objective = Objective(nn.Linear(3, 1, bias=False, dtype=torch.float64), {"ce": 1.0})
    objective.student.extra = nn.Parameter(torch.ones(1), requires_grad=False)
    optimizer = make_optimizer(objective, ResolvedTraining(lr=0.05))
    w, v = objective.student.weight.detach().clone(), torch.zeros(1, 3, dtype=torch.float64)
    target = torch.tensor([[1.0, -2.0, 3.0]], dtype=torch.float64)
    for rate in (0.05, 0.05, 0.005):
        optimizer.param_groups[0]["lr"] = rate
        optimizer.zero_grad()
        (objective.student.weight - target).square().sum().backward()
        optimizer.step()
        v = 0.9 * v + 2 * (w - target) + 5e-4 * w
        w = w - rate * v
        torch.testing.assert_close(objective.student.weight.detach(), w, rtol=1e-12, atol=0)
    assert objective.student.extra.item() == 1


@pytest.mark.parametrize("count, batch_size", [(40, 1000), (40, 7), (1, 3), (13, 1)])
@pytest.mark.parametrize("training", [True, False])
def test_evaluation_equals_a_plain_loop(tiny, count, batch_size, training):
    _, test_set = load_dataset("tiny", "")
    images = ImageSet(test_set.images[:count], test_set.labels[:count], test_set.info)
    torch.manual_seed(1)
    model = create_model("resnet8", 4).train(training)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    accuracy, loss = evaluate(model, images, batch_size=batch_size)
    assert model.training is training
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    model.eval()
    right, total = 0, 0.0
    with torch.no_grad():
        for pixels, label in zip(images.images, images.labels, strict=True):
            logits = model(((pixels / 255 - 0.5) / 0.25).permute(2, 0, 1)[None])[0].double()
            right += int(logits.argmax()) == int(label)
            total += float(torch.log(logits.exp().sum()) - logits[label])
    assert accuracy == pytest.approx(100 * right / count)
    assert loss == pytest.approx(total / count, rel=1e-5)


def test_processes_with_unlike_gpus_evaluate_every_image_once(tiny, monkeypatch):
    """Each GPU's usual batch is another; the smaller one serves both."""
    _, test_set = load_dataset("tiny", "")
    model, seen = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4)), []
    model.register_forward_hook(lambda module, inputs, output: seen.extend(inputs[0].flatten(1).sum(1).tolist()))
    monkeypatch.setattr(loop.distributed, "world", lambda: 2)
    monkeypatch.setattr(loop.distributed, "all_states", lambda state: [10, 4] if isinstance(state, int) else [state])
    for rank, usual in enumerate((10, 4)):
        monkeypatch.setattr(loop.distributed, "rank", lambda rank=rank: rank)
        monkeypatch.setattr(loop, "usual_test_batch", lambda images, usual=usual: usual)
        evaluate(model, test_set)
    (all_images,) = (images for images, _ in test_set.plain(torch.arange(len(test_set)).split(len(test_set))))
    assert sorted(seen) == sorted(all_images.flatten(1).sum(1).tolist())


@pytest.mark.parametrize("done, spent, expected", [(1, 20.0, 1), (10, 10.0, 5), (2, 1.0, 10), (50, 0.5, 50)])
def test_processes_ask_each_other_within_seconds(done, spent, expected):
    assert loop.steps_within(5.0, done, spent) == expected


def test_means_weigh_batches_by_their_size():
    meters = Meters(["ce", "kd"], torch.device("cpu"))
    labels = torch.tensor([0, 1, 2])
    loss, ce, kd, logits = torch.tensor(1.0), torch.tensor([1.0, 3.0]), torch.tensor([4.0, 8.0]), torch.eye(3)
    meters.update(0, loss, {"ce": ce[0], "kd": kd[0]}, logits, labels)
    meters.update(1, loss, {"kd": kd[1], "ce": ce[1]}, logits[:1], labels[1:2])
    meters.images = 4
    assert meters.means() == {"ce": 1.5, "kd": 5.0}
    assert (meters.accuracy, meters.correct.item()) == (75, 3)
    meters.check(1, "")


def test_the_log_of_a_run(train_set):
    history = train(TwoTerms(), train_set, load_dataset("tiny", "")[1])
    for epoch, row in enumerate(history, 1):
        assert (row["epoch"], row["steps"], row["short_batches"]) == (epoch, 10, 1)  # 150 = 9 * 16 + 6
        assert row["loss"] == pytest.approx(row["ce"] + 0.5 * row["other"])
        assert row["share_ce"] + row["share_other"] == pytest.approx(1)
        assert row["share_other"] == pytest.approx(0.5 * row["other"] / row["loss"])
        assert "off" not in row and row["seconds"] >= 0 and row["images_per_s"] > 0
    assert [{key: str(value) for key, value in row.items()} for row in history] == rows(f"{RUN}/log.csv")

    events = EventAccumulator(RUN).Reload()
    assert set(events.Tags()["scalars"]) == history[0].keys() - {"epoch"} | {"hparam/last", "hparam/best"}
    assert events.Tags()["images"] == []
    for name in ("loss", "share_other", "test_acc"):
        points = [(event.step, event.value) for event in events.Scalars(name)]
        assert points == [(row["epoch"], pytest.approx(row[name], rel=1e-6)) for row in history]


def test_an_epoch_of_whole_batches_has_no_short_one(train_set):
    history = train(TwoTerms(), train_set, epochs=1, batch_size=50)
    assert (history[0]["steps"], history[0]["short_batches"]) == (3, 0)


def test_best_is_the_first_epoch_of_the_best_accuracy(train_set, monkeypatch):
    """Accuracies are made up; the weights of each epoch are recorded where they are evaluated."""
    accuracies, weights = iter([30.0, 50.0, 40.0, 50.0, 10.0]), []

    def evaluated(model, images, amp):
        weights.append(model[2].weight.detach().clone())
        return next(accuracies), 1.0

    monkeypatch.setattr(loop, "evaluate", evaluated)
    train(TwoTerms(), train_set, epochs=5, deployed={"arch": "linear"})
    best, last = (checkpoint.load(f"{RUN}/{name}.pth") for name in ("best", "last"))
    assert (best["epoch"], best["accuracy"], best["arch"]) == (2, 50.0, "linear")
    assert torch.equal(best["model"]["2.weight"], weights[1])
    assert (last["next_epoch"], last["accuracy"], last["arch"]) == (6, 10.0, "linear")
    assert torch.equal(last["model"]["2.weight"], weights[4])


class Killed(BaseException):
    pass


def nan_at(bad):
    return lambda terms, step: {**terms, "other": terms["other"] * math.nan} if step == bad else terms


class NanGradient(torch.autograd.Function):
    @staticmethod
    def forward(ctx, value):
        return value.clone()

    @staticmethod
    def backward(ctx, gradient):
        return gradient * math.nan


def nan_gradient_at(bad):
    return lambda terms, step: {**terms, "other": NanGradient.apply(terms["other"])} if step == bad else terms


@pytest.mark.parametrize(
    "spoil, message",
    [
        (nan_at(14), r"loss became non-finite at epoch 2, step 4 \(ce \d\.\d+, other nan\)"),
        (nan_at(20), r"loss became non-finite at epoch 2, step 10 \(ce \d\.\d+, other nan\)"),
        (nan_gradient_at(15), r"loss became non-finite at epoch 2, step 6 \(ce nan, other nan\)"),
        (nan_gradient_at(20), r"weights became non-finite at epoch 2, step 10"),
    ],
    ids=["loss", "loss of the last step", "gradient", "gradient of the last step"],
)
def test_a_non_finite_run_stops_and_keeps_the_checkpoint_before(train_set, spoil, message):
    with pytest.raises(RunStopped, match=message) as error:
        train(TwoTerms(spoil), train_set, epochs=3)
    assert error.value.exit_code == 1 and "\n" not in str(error.value)
    last, best = (checkpoint.load(f"{RUN}/{name}.pth") for name in ("last", "best"))
    assert (last["next_epoch"], last["step"], best["epoch"]) == (2, 0, 1)
    assert all(value.isfinite().all() for state in (last, best) for value in state["model"].values())


def test_an_interrupt_does_not_save_non_finite_weights(train_set, monkeypatch):
    def spoil(terms, step):
        if step == 15:
            signal.raise_signal(signal.SIGINT)
        return nan_gradient_at(15)(terms, step)

    with pytest.raises(RunStopped, match="weights became non-finite at epoch 2, step 5"):
        train(TwoTerms(spoil), train_set, epochs=3)
    assert checkpoint.load(f"{RUN}/last.pth")["step"] == 0


@pytest.mark.parametrize("number, noted", [(signal.SIGHUP, False), (signal.SIGINT, True)])
def test_where_signals_are_ignored_an_interrupt_stops_a_run_and_a_hangup_does_not(number, noted):
    """A shell ignores SIGINT for what it starts with &, and nohup ignores SIGHUP."""
    before = signal.signal(number, signal.SIG_IGN)
    try:
        with StopRequest() as stop:
            signal.raise_signal(number)
        assert stop.requested == noted and signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_non_finite_loss_is_noticed_within_an_epoch(train_set):
    """Not only at its end: the device is looked at every LOOK_EVERY steps."""
    objective = TwoTerms(nan_at(3))
    with pytest.raises(RunStopped, match="epoch 1, step 3 .*no checkpoint had been written yet"):
        train(objective, train_set, epochs=1, batch_size=1)
    assert objective.step == loop.LOOK_EVERY < 150


def test_exit_codes(tiny, monkeypatch, capsys):
    """A diverging run exits with 1 and one line; a signal with 130 and a state to continue from."""
    diverging = [*OPTIONS, "--epochs", "2", "--lr", "1000", "--name", "diverges"]
    monkeypatch.setattr("sys.argv", ["train_teacher.py", *diverging])
    with pytest.raises(SystemExit) as error:
        run(train_teacher.main, train_teacher.get_args_parser)
    captured = capsys.readouterr().err.strip().splitlines()
    assert error.value.code == 1 and "non-finite at epoch 1, step" in captured[-1]

    images = EpochPlan.images

    def interrupted(plan, start, stop):
        if start == 64:
            signal.raise_signal(signal.SIGTERM)
        return images(plan, start, stop)

    monkeypatch.setattr(EpochPlan, "images", interrupted)
    monkeypatch.setattr("sys.argv", ["train_teacher.py", *OPTIONS, "--epochs", "1"])
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    with pytest.raises(SystemExit) as error:
        run(train_teacher.main, train_teacher.get_args_parser)
    assert error.value.code == 130 and capsys.readouterr().err.endswith("continue with --resume\n")
    assert checkpoint.load("save_t_models/resnet8_tiny_lr0.02_n16_trial1/last.pth")["step"] == 5
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers


class HostReads(TorchDispatchMode):
    """Records the operations that would wait for a GPU: a value, or a shape that depends on values, read by Python."""

    WAITING = ("_local_scalar_dense", "nonzero", "masked_select", "equal", "unique")

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if any(name in function.name() for name in self.WAITING):
            self.found.append(function.name())
        return function(*args, **(kwargs or {}))


def test_training_steps_never_wait_for_the_device(train_set, monkeypatch):
    copies = []
    for name in ("tolist", "numpy", "cpu"):
        original = getattr(torch.Tensor, name)

        def recorded(tensor, *arguments, original=original, **options):
            copies.append(original.__name__)
            return original(tensor, *arguments, **options)

        monkeypatch.setattr(torch.Tensor, name, recorded)
    objective = Objective(create_model("resnet8", 4), {"ce": 1.0})
    meters = Meters(["ce"], torch.device("cpu"))
    loader, optimizer = TrainLoader(train_set, 16, 0), make_optimizer(objective, ResolvedTraining(lr=0.02))
    with HostReads() as reads:
        assert torch.ones(2)[0] == 1 and torch.zeros(1).tolist() == [0.0]
        assert reads.found and copies == ["tolist"]  # what is looked for is seen
        reads.found.clear(), copies.clear()
        assert list(train_steps(objective, loader, optimizer, 1, meters, start=2)) == list(range(3, 11))
    assert meters.images == 150 - 2 * 16
    assert reads.found == [] and copies == []


def test_teacher_and_topology_are_neither_trained_nor_saved_and_keep_their_mode():
    teacher, topology = nn.Linear(3, 4).eval(), nn.Linear(2, 2).eval()
    for widths, projection in (((3, 3), []), ((3, 5), ["projection.weight", "projection.bias"])):
        loss = ResolvedLoss(gamma=1.0, alpha=1.0, delta=1.0, kd_T=4.0)
        objective = Distillation(nn.Linear(3, 4), teacher, loss, topology=topology, widths=widths, epochs=2)
        names = ["student.weight", "student.bias", *projection]
        assert [name for name, _ in objective.named_parameters()] == names == list(objective.state_dict())
        objective.train()
        assert not teacher.training and not topology.training


def test_a_name_serves_one_teacher_or_student(tiny):
    stage_1("--name", "mine", "--epochs", "1")
    row = Path("results/runs/mine.csv").read_text()
    for folder, refused in ((Path("save_s_models/mine"), True), (Path("save_s_models/mine/first_stage"), False)):
        run = Run(folder, {}, torch.device("cpu"), False)
        if refused:
            with pytest.raises(
                UserError, match="^--name: found mine, the name of save_t_models/mine, whose row and log"
            ):
                run.start(loop.FIELDS)
        else:
            assert run.start(loop.FIELDS) is None
    assert Path("results/runs/mine.csv").read_text() == row and not Path("save_s_models/mine/.lock").exists()


def log_of(history):
    return [{key: row[key] for key in row if key not in ("seconds", "images_per_s")} for row in history]


def test_a_finished_run_continued_to_more_epochs_equals_one_of_that_length(train_set):
    whole = train(TwoTerms(), train_set, epochs=4, lr_decay_epochs=(1, 3))
    weights = checkpoint.load(f"{RUN}/last.pth")["model"]
    shutil.rmtree(RUN)
    train(TwoTerms(), train_set, epochs=2, lr_decay_epochs=(1,))
    parts = train(TwoTerms(), train_set, epochs=4, lr_decay_epochs=(1, 3), resume=True)
    assert log_of(parts) == log_of(whole)
    assert all(torch.equal(weights[name], found) for name, found in checkpoint.load(f"{RUN}/last.pth")["model"].items())


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"epochs": 1}, "--epochs: found 1, but 2 epochs of .* are done"),
        ({"epochs": 4, "lr_decay_epochs": ()}, r"2 epochs of .* are done with a decay after \[1\], .* after none"),
        ({"epochs": 4, "lr": 0.1}, "--resume with other options .--lr was 0.02, now 0.1.; give the old ones"),
    ],
)
def test_a_run_is_continued_only_under_the_rates_that_it_has_had(train_set, settings, message):
    train(TwoTerms(), train_set, lr_decay_epochs=(1,))
    with pytest.raises(UserError, match=message) as error:
        train(TwoTerms(), train_set, resume=True, **{"lr_decay_epochs": (1,)} | settings)
    assert error.value.exit_code == 2 and "\n" not in str(error.value)


def test_the_rate_of_an_epoch_that_was_begun_stays(train_set):
    def stopped(terms, step):
        if step == 15:  # in the second epoch, whose rate the decay after the first has made
            os.kill(os.getpid(), signal.SIGINT)
        return terms

    with pytest.raises(Interrupted):
        train(TwoTerms(stopped), train_set, lr_decay_epochs=(1,))
    with pytest.raises(
        UserError, match=r"1 epochs of .* are done with a decay after \[1\], now it would be after none"
    ):
        train(TwoTerms(), train_set, resume=True, lr_decay_epochs=())
    assert len(train(TwoTerms(), train_set, resume=True, lr_decay_epochs=(1,))) == 2


def test_a_checkpoint_from_before_next_epoch_was_stored_resumes(train_set):
    whole = train(TwoTerms(), train_set, epochs=3)
    shutil.rmtree(RUN)
    train(TwoTerms(), train_set, epochs=2)
    state = checkpoint.load(f"{RUN}/last.pth")
    state["epoch"] = state.pop("next_epoch")
    del state["made_by"]
    checkpoint.save(Path(RUN, "last.pth"), state)
    assert log_of(train(TwoTerms(), train_set, epochs=3, resume=True)) == log_of(whole)


def test_an_option_that_a_method_got_after_a_checkpoint_means_its_default():
    """ReviewKD had no options; DKD's stand in their order, whatever is given."""
    old = {"distill": "reviewkd", "set": [], "lr": 0.1}
    assert with_later_options(old) == old | {"set": ["width=512"]}
    assert with_later_options(old | {"set": ["width=256"]})["set"] == ["width=256"]
    assert with_later_options({"distill": "dkd", "set": ["nckd=2.0"]})["set"] == ["tckd=1.0", "nckd=2.0"]
    for unlike in ({"distill": "kd", "set": []}, {"lr": 0.1}, {"distill": "nobody's", "set": ["x=1"]}):
        assert with_later_options(unlike) == unlike


def test_a_run_says_where_it_is_when_its_output_is_no_terminal(train_set, monkeypatch, capsys):
    monkeypatch.setattr(progress, "LINE_EVERY", 0.0)
    train(TwoTerms(), train_set)
    lines = [line for line in capsys.readouterr().out.splitlines() if " of 10 steps" in line]
    assert len(lines) == 20
    assert re.fullmatch(r"epoch 1/2: 5 of 10 steps, [\d.,e+]+ images/s, 0:00:\d\d to the end", lines[4])


def test_weights_that_follow_the_share_of_a_run_keep_it_from_being_continued(train_set):
    class Scheduled(TwoTerms):
        follows_length = True

    train(Scheduled(), train_set, epochs=1)
    with pytest.raises(UserError, match="--epochs: found 2, but .* was begun as a run of 1, and the weights of this"):
        train(Scheduled(), train_set, epochs=2, resume=True)


def test_short_epochs_are_saved_now_and_then_and_the_best_weights_at_once(train_set, monkeypatch):
    """A clock that goes on by six seconds an epoch: the checkpoints are those after epochs 4 and 7 of 7."""
    clock, save, saved, best, epochs = time.perf_counter, Run.save, [], [], []
    monkeypatch.setattr(loop.time, "perf_counter", lambda: 6 * len(epochs) + clock() / 1000)

    def better(*arguments):
        epochs.append(1)
        return 10.0 * len(epochs), 1.0

    def record(run, state):
        saved.append(len(state["history"]))
        save(run, state)

    def look(trainer):
        best.append(checkpoint.load(f"{RUN}/best.pth")["epoch"])

    monkeypatch.setattr(loop, "evaluate", better)
    monkeypatch.setattr(Run, "save", record)
    monkeypatch.setattr(loop.Trainer, "report", look)
    monkeypatch.setattr(loop, "SAVE_APART", 20.0)
    train(TwoTerms(), train_set, epochs=7)
    assert saved == [4, 7]
    assert best == [1, 2, 3, 4, 5, 6, 7]
    assert len(rows(f"{RUN}/log.csv")) == 7


def test_what_was_not_saved_when_a_run_was_killed_is_done_again(train_set, monkeypatch):
    whole = train(TwoTerms(), train_set, epochs=5)
    shutil.rmtree(RUN)
    monkeypatch.setattr(loop, "SAVE_APART", math.inf)

    def killed(*arguments):
        raise Killed

    with monkeypatch.context() as patch:
        train(TwoTerms(), train_set, epochs=2)
        patch.setattr(loop.Trainer, "report", lambda trainer: killed() if len(trainer.history) == 4 else None)
        with pytest.raises(Killed):
            train(TwoTerms(), train_set, epochs=5, resume=True)
    assert len(rows(f"{RUN}/log.csv")) == len(checkpoint.load(f"{RUN}/last.pth")["history"]) == 2
    assert log_of(train(TwoTerms(), train_set, epochs=5, resume=True)) == log_of(whole)


def test_a_run_that_is_killed_within_an_epoch_goes_on_from_the_checkpoint_of_the_last_look(train_set, monkeypatch):
    """Looks are after steps 4 and 8 of 10; the kill comes after step 6."""
    whole = train(TwoTerms(), train_set)
    weights = checkpoint.load(f"{RUN}/last.pth")["model"]
    shutil.rmtree(RUN)
    monkeypatch.setattr(loop, "LOOK_EVERY", 4)
    monkeypatch.setattr(loop, "SAVE_WITHIN", 0.0)

    def killed(terms, step):
        if step == 7:
            raise Killed
        return terms

    with pytest.raises(Killed):
        train(TwoTerms(killed), train_set)
    state = checkpoint.load(f"{RUN}/last.pth")
    assert (state["next_epoch"], state["step"], state["meters"]["images"]) == (1, 4, 4 * 16)
    resumed = TwoTerms()
    assert log_of(train(resumed, train_set, resume=True)) == log_of(whole)
    assert resumed.step == 6 + 10
    assert all(torch.equal(weights[name], found) for name, found in checkpoint.load(f"{RUN}/last.pth")["model"].items())


def test_checkpoints_within_an_epoch_are_as_far_apart_as_they_may_be(train_set, monkeypatch):
    """A clock that goes on by 100 seconds a step, looked at after every second of 19 steps."""
    objective, clock, saved, save = TwoTerms(), time.perf_counter, [], Run.save
    monkeypatch.setattr(loop.time, "perf_counter", lambda: 100 * objective.step + clock() / 1000)
    monkeypatch.setattr(loop, "LOOK_EVERY", 2)
    monkeypatch.setattr(Run, "save", lambda run, state: saved.append(state["step"]) or save(run, state))
    train(objective, train_set, epochs=1, batch_size=8)
    assert saved == [10, 0]


def test_a_copy_without_git_names_the_commit_that_it_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(provenance, "ROOT", tmp_path)
    monkeypatch.delenv("TOPKD_COMMIT", raising=False)
    assert provenance.git_commit() == "unknown"
    monkeypatch.setenv("TOPKD_COMMIT", "0123456789ab")
    assert provenance.git_commit() == "0123456789ab"
