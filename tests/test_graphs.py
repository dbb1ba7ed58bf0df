"""Steps as CUDA graphs, as far as they can be tested without a GPU.

What a capture would refuse is looked for on the meta device, where the code takes the branches of an accelerator. What
a replay does is tested with tests/support/tape.py, which stands in for CUDA's graphs. tests/test_cuda.py has the rest.
"""

import contextlib
import dataclasses
import gc
import itertools
import shutil
import signal
import weakref
from pathlib import Path

import pytest
import torch
from support.arms import CPU, METHODS, SPEC, TOPOLOGIES, build, images, state_of, training
from support.artefacts import artefacts
from support.running import work_in
from support.tape import HostRead, Recording, Tape, name_of, refuse_host_reads, tensors
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

import ripsnet.diagrams
import train_student
from dataset import EpochPlan, ImageSet, TrainLoader
from helper.clouds.outputs import CachedTeacher
from helper.errors import Interrupted, RunStopped, UserError
from helper.files import checkpoint
from helper.files.run import Run
from helper.settings import ResolvedTraining, plain
from helper.student import distillation
from helper.student.distillation import FirstStage
from helper.training import loop
from helper.training.graphs import Replayed
from helper.training.interrupts import StopRequest
from helper.training.loop import Trainer, fit, make_optimizer
from helper.training.meters import Meters
from helper.training.objective import Objective
from helper.training.steps import WARM_UP, ReplayedSteps, step, train_steps, why_eager
from helper.training.turns import Turn, side_by_side
from ripsnet import ExactTopology

META = torch.device("meta")
BATCH, IMAGES = 4, 27  # an epoch is six batches of four and a short one of three
# Each of these does what no other does: plain, random numbers, an own clock, a schedule.
FEW = ("fitnet", "crd", "ctkd", "norm")


def make(key="kd", topology=None, epochs=3):
    """An objective and its images."""
    shown = images(IMAGES)
    return build(shown, key, topology, batch_size=BATCH, epochs=epochs), shown


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    different = [name for name in expected if not torch.equal(found[name], expected[name])]
    assert not different


# ---- what a capture refuses


class Refusing(TorchDispatchMode):
    """Refuses what a step on a GPU may not do in a capture: a value read by Python, a copy between devices, and a
    tensor of the CPU that takes part, unless it is a scalar, which is handed over as a number."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        kwargs, name = kwargs or {}, name_of(function)
        refuse_host_reads(function, (args, kwargs))
        given = tensors((args, kwargs))
        on_cpu = [tensor for tensor in given if tensor.device.type == "cpu"]
        elsewhere = len(on_cpu) < len(given) or kwargs.get("device") == META
        if elsewhere and any(tensor.dim() for tensor in on_cpu):
            raise HostRead(f"{name} of a tensor on the CPU")
        if elsewhere and on_cpu and name in ("_to_copy", "copy_"):
            raise HostRead(f"{name} from the CPU")
        if name == "_to_copy" and torch.device(kwargs.get("device") or META).type == "cpu":
            raise HostRead("a copy to the CPU")
        return function(*args, **kwargs)


class RefusingNumbers(TorchFunctionMode):
    """Refuses a tensor that is made of numbers in Python for another device: a copy, which no dispatch shows."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or CPU) != CPU:
            raise HostRead("a tensor made of numbers")
        return function(*args, **kwargs)


@contextlib.contextmanager
def refusing():
    with RefusingNumbers(), Refusing():
        yield


@pytest.fixture
def no_autocast(monkeypatch):
    """Which the meta device does not have; it changes no operation that could wait."""
    for module in (torch, distillation, loop):
        monkeypatch.setattr(module, "autocast", lambda *_, **__: contextlib.nullcontext())


def move(module):
    """To the meta device, with the modules that a loss knows without training them: a tuple has them."""
    module.to(META)
    for each in module.modules():
        for value in vars(each).values():
            if isinstance(value, tuple):
                [part.to(META) for part in value if isinstance(part, nn.Module)]


def run_on_meta(objective, shown):
    """Three steps of an objective on the meta device, `refusing` from the third on: the first may fill caches."""
    whole = objective.whole[0] if isinstance(objective, FirstStage) else objective
    for module in (objective, whole, *whole.frozen):
        if module is not None:
            move(module)
    moved = ImageSet(shown.images.to(META), shown.labels.to(META), shown.info)
    whole.strong_view = lambda epoch, pictures, indices: moved.strong_view(0, epoch, pictures, indices)
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(trained, 0.01, 0.9, weight_decay=5e-4, foreach=True)
    meters, plan = Meters(list(objective.weights), META), EpochPlan(moved, 0, 1)
    cursor, places = torch.zeros((), dtype=torch.int64, device=META), torch.arange(BATCH, device=META)
    objective.train()
    objective.begin(1)
    for turn in range(3):
        with refusing() if turn == 2 else contextlib.nullcontext():
            step(objective, objective, optimizer, meters, cursor // BATCH, *plan.at(cursor + places))
            cursor += BATCH
    assert any(parameter.grad is not None for parameter in trained)


@pytest.mark.parametrize("spoil, what", [
    (lambda x: x.sum().item(), "_local_scalar_dense"),
    (lambda x: bool(x.sum() > 0), "_local_scalar_dense"),
    (lambda x: x[x > 0], "index|nonzero"),
    (lambda x: x.nonzero(), "nonzero"),
    (lambda x: x.cpu(), "copy to the CPU"),
    (lambda x: x + torch.ones(3), "on the CPU"),
    (lambda x: x[torch.tensor([0, 1])], "on the CPU"),
    (lambda x: torch.tensor([1.0, 2.0], device=META), "made of numbers"),
    (lambda x: torch.tensor(1.0).to(META), "from the CPU"),
])  # fmt: skip
def test_what_waits_for_the_host_is_refused(spoil, what):
    x = torch.zeros(3, device=META)
    with pytest.raises(Exception, match=what), refusing():  # HostRead, or what the meta device itself refuses
        spoil(x)


@pytest.mark.parametrize("topology", TOPOLOGIES)
def test_a_step_with_topology_waits_for_nothing(topology, no_autocast):
    objective, shown = make(topology=topology)
    assert not objective.host_bound
    run_on_meta(objective, shown)


@pytest.mark.parametrize("key", [
    pytest.param(key, marks=[] if key in FEW else pytest.mark.slow) for key in METHODS
])  # fmt: skip
def test_a_step_of_every_method_waits_for_nothing_or_says_so(key, no_autocast):
    objective, shown = make(key)
    if key == "kdsvd":  # what its routine does on a GPU does not show here
        assert "KD-SVD" in objective.host_bound
        return
    assert not objective.host_bound
    run_on_meta(objective, shown)


@pytest.mark.parametrize("key", ["ab", "ft", "fsp"])
def test_a_first_stage_waits_for_nothing(key, no_autocast):
    objective, shown = make(key)
    run_on_meta(FirstStage(objective), shown)


# ---- what a replay does


@pytest.fixture
def without_host_reads(monkeypatch):
    """Distances and one-hot vectors as on an accelerator. On a CPU the values are looked at."""
    monkeypatch.setattr(ripsnet.diagrams, "_distances", ripsnet.diagrams._direct_distances)

    def one_hot(labels, classes):
        return torch.zeros(len(labels), classes, dtype=torch.int64).scatter_(1, labels[:, None], 1)

    monkeypatch.setattr(torch.nn.functional, "one_hot", one_hot)


def trained(objective, shown, tape=None, epochs=2, decay_after=1):
    """The state after each epoch; the rate decays to a tenth after one of them."""
    optimizer, meters, loader, replayed = training(objective, shown, tape)
    found = []
    for epoch in range(1, epochs + 1):
        meters.reset()
        for group in optimizer.param_groups:
            group["lr"] = 0.01 if epoch <= decay_after else 0.001
        for _ in train_steps(objective, loader, optimizer, epoch, meters, replayed=replayed):
            pass
        found.append(state_of(objective, optimizer, meters))
    return found


def held(function):
    """In place of a capture: each step runs, and every tensor that it makes is held for its time, as a tape does.

    Autograd adds gradients in place unless somebody holds them, and the layout of a sum may depend on that.
    """

    def run():
        with Recording():
            function()

    return run


def compare_replayed(prepare, captures, eager_by=None, **options):
    tape = Tape()
    eager = trained(*prepare(), eager_by, **options)
    replayed = trained(*prepare(), tape=tape, **options)
    for found, expected in zip(replayed, eager, strict=True):
        assert_equal(found, expected)
    assert tape.captures == captures and len(tape.operations) > 100
    assert any(not torch.equal(eager[0][name], eager[1][name]) for name in eager[0] if name.startswith("objective"))


def test_a_tape_refuses_what_a_capture_refuses():
    x = torch.ones(3)
    with pytest.raises(HostRead):
        Tape()(lambda: x.sum().item())


def test_a_tape_does_nothing_when_it_records_and_the_same_at_each_replay():
    total, other = torch.zeros(2), torch.tensor([1.0, 2.0])

    def function():
        total.add_(other * torch.rand(2))

    torch.manual_seed(0)
    replay = Tape()(function)
    assert not total.any()
    replay()
    other.mul_(10)
    replay()
    torch.manual_seed(0)
    expected = torch.tensor([1.0, 2.0]) * torch.rand(2) + torch.tensor([10.0, 20.0]) * torch.rand(2)
    torch.testing.assert_close(total, expected)


def test_a_function_is_captured_after_its_warm_up_and_anew_when_a_number_of_the_host_changes():
    events = []

    def capture(function):
        events.append("capture")
        return lambda: events.append("replay")

    replayed = Replayed(capture, warm_up=2)
    for rate in (0.1, 0.1, 0.1, 0.1, 0.01, 0.01):
        replayed(lambda: events.append("run"), rate)
    assert events == ["run", "run", "capture", "replay", "replay", "capture", "replay", "replay"]


def test_graphs_and_their_memory_are_gone_with_the_steps_and_need_no_search():
    objective, shown = make("kd")
    loader = TrainLoader(shown, BATCH, 0)
    training = ResolvedTraining(lr=0.05)
    optimizer, meters = make_optimizer(objective, training), Meters(list(objective.weights), CPU)
    gc.disable()
    try:
        replayed = ReplayedSteps(objective, loader, optimizer, meters, lambda function: lambda: None)
        replayed.begin(1, 0)
        for _ in range(WARM_UP + 1):
            replayed()
        left = weakref.ref(replayed)
        del replayed
        assert left() is None
    finally:
        gc.enable()


def test_a_plan_that_is_drawn_anew_in_place_shows_what_a_new_one_shows():
    shown = images(IMAGES)
    plan = EpochPlan(shown, 5, 1)
    place = plan.choices.data_ptr()
    for epoch in (1, 2, 7):
        plan.draw(5, epoch)
        assert plan.choices.data_ptr() == place and (plan.seed, plan.epoch) == (5, epoch)
        positions = torch.tensor([4, 0, 26, 4])
        pictures, labels, indices = plan.at(positions)
        fresh = EpochPlan(shown, 5, epoch)
        crops = shown.crop(*(choice[positions] for choice in (fresh.order, fresh.top, fresh.left, fresh.flip)))
        assert torch.equal(pictures, shown.normalize(crops))
        assert torch.equal(indices, fresh.order[positions]) and torch.equal(labels, shown.labels[indices])


@pytest.mark.parametrize("key", ["kd", pytest.param("crd", marks=pytest.mark.slow)])
def test_replayed_steps_read_each_epoch_s_rows_of_a_table_of_the_teacher(key):
    def prepared():
        objective, shown = make(key, epochs=3)
        generator, rows = torch.Generator().manual_seed(3), shown.view_count * len(shown)
        widths = {"logits": 100, "pooled": 64}
        tables = {kind: torch.randn(rows, width, generator=generator) for kind, width in widths.items()}
        objective.cache = CachedTeacher(tables, shown, 0)
        objective.frozen = objective.frozen._replace(teacher=nn.Identity())  # which fails when called
        assert not objective.host_bound
        return objective, shown

    compare_replayed(prepared, captures=2, epochs=3, decay_after=2)


def test_replayed_steps_end_as_steps_that_run_with_a_decay_and_a_short_batch():
    """Three epochs of six whole batches, of which the first three run, and the rate decays after the second."""
    compare_replayed(lambda: make(epochs=3), captures=2, epochs=3, decay_after=2)


@pytest.mark.parametrize("topology", [
    pytest.param(name, marks=[] if name == "ripsnet" else pytest.mark.slow) for name in TOPOLOGIES
])  # fmt: skip
def test_replayed_steps_end_as_steps_that_run_with_topology(topology, without_host_reads):
    compare_replayed(lambda: make(topology=topology), captures=2)


class Counting(nn.Module):
    """A loss with a weight that follows the steps, which it counts in Python."""

    def __init__(self):
        super().__init__()
        self.steps = 0

    def forward(self, student, teacher, batch):
        self.steps += 1
        return self.steps * (student.logits - teacher.logits).square().mean()


def test_a_number_that_a_loss_counts_in_python_goes_on():
    def prepared():
        objective, shown = make("dkd")
        objective.other = Counting()
        return objective, shown

    compare_replayed(prepared, captures=9)  # of two epochs' twelve steps the first three run


def test_a_step_that_cannot_be_captured_says_which_line_it_is_and_what_to_do():
    """The end of a capture fails, too, and its error comes after the one that says something."""

    def capture(function):
        try:
            raise RuntimeError("CUDA error: operation not permitted when stream is capturing\nCUDA kernel errors might")
        finally:
            raise RuntimeError("CUDA error: operation failed due to a previous error during capture")

    text = r"CUDA graph \(test_graphs.py:\d+: CUDA error: operation not permitted .* capturing\); give --eager"
    with pytest.raises(UserError, match=text):
        trained(*make(), capture)


# Where weights rise, or a view's random numbers follow from the epoch, each epoch is captured, and else each rate.
@pytest.mark.slow
@pytest.mark.parametrize("key", [key for key in METHODS if key != "kdsvd"])
def test_replayed_steps_end_as_steps_that_run_by_every_method(key, without_host_reads):
    compare_replayed(lambda: make(key), captures=2, eager_by=held if key == "reviewkd" else None)


@pytest.mark.slow
@pytest.mark.parametrize("key", ["ab", "ft", "fsp"])
def test_a_replayed_first_stage_ends_as_one_that_runs(key):
    def first_stage():
        objective, shown = make(key)
        return FirstStage(objective), shown

    compare_replayed(first_stage, captures=2)


@pytest.mark.parametrize("key, captures", [("kd", 1), ("dkd", 3), pytest.param("mlkd", 3, marks=pytest.mark.slow)])
def test_an_epoch_is_captured_anew_where_its_weights_or_its_views_are_others(key, captures, monkeypatch):
    made = []

    def capture(function):
        made.append(function)
        return function

    objective, shown = make(key)
    trained(objective, shown, capture, epochs=3, decay_after=3)
    assert len(made) == captures


def test_what_speaks_against_a_graph():
    shown = images(IMAGES)
    loader = TrainLoader(shown, BATCH, 0)
    plain_objective = Objective(nn.Identity(), {"ce": 1.0})
    assert why_eager(plain_objective, loader) == ""
    assert "several processes" in why_eager(plain_objective, TrainLoader(shown, BATCH, 0, world=2))
    shown.host_bound = "its images are read"
    assert why_eager(plain_objective, loader) == "its images are read"
    objective, _ = make(topology="exact")
    assert objective.host_bound == ""
    both = ExactTopology([SPEC, dataclasses.replace(SPEC, dim=1)])
    objective.frozen = objective.frozen._replace(topology=both)
    assert "dimension 1" in objective.host_bound


# ---- a run


def run_parts(name, epochs=3, resume=False):
    """What a `Trainer` takes for a student with RipsNet and KD, with the probe that measures it after each epoch."""
    objective, shown = make(topology="ripsnet", epochs=epochs)
    by_hand = ResolvedTraining(epochs=epochs, batch_size=BATCH, lr=0.01, lr_decay_epochs=(2,))
    run = Run(Path(name), plain(by_hand), CPU, resume)
    return objective, TrainLoader(shown, BATCH, 0), images(40), run, by_hand, {}


def left_by(name, capture=None, resume=False):
    """What a run leaves, whose steps are captured by `capture` or run as they are."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop, "capture_on", lambda device: capture)
        fit(Trainer(*run_parts(name, resume=resume)))
    return artefacts(Path(name))


def stop_at(step, capture):
    """A run of the name `replayed` that a signal stops when so many whole batches are done."""
    taken, original = itertools.count(1), ReplayedSteps.__call__

    def stopping(replayed):
        original(replayed)
        if next(taken) == step:
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ReplayedSteps, "__call__", stopping)
        patch.setattr(loop, "capture_on", lambda device: capture)
        with pytest.raises(Interrupted):
            fit(Trainer(*run_parts("replayed")))


@pytest.fixture(scope="module")
def eager_run(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(tmp_path_factory.mktemp("eager"))
        return left_by("eager")


def test_a_replayed_run_leaves_what_one_leaves_whose_steps_run(tmp_path, monkeypatch, eager_run):
    monkeypatch.chdir(tmp_path)
    tape = Tape()
    assert left_by("replayed", tape) == eager_run
    assert tape.captures == 2
    assert {"best.pth", "last.pth", "log.csv"} <= eager_run.keys() and "grad_top" in str(eager_run["log.csv"][-1])


@pytest.mark.slow
@pytest.mark.parametrize("step", [2, 5, 6, 9], ids=["warm-up", "replay", "before the short batch", "second epoch"])
def test_a_replayed_run_that_is_stopped_ends_as_one_that_never_stopped(tmp_path, monkeypatch, eager_run, step):
    monkeypatch.chdir(tmp_path)
    stop_at(step, Tape())
    state = checkpoint.load("replayed/last.pth")
    assert (state["next_epoch"], state["step"]) == (1 + step // 7, step - 6 * (step // 7))
    resumed = Tape()
    assert left_by("replayed", resumed, resume=True) == eager_run
    assert resumed.captures >= 1


@pytest.mark.slow
def test_a_run_may_go_on_without_graphs_and_with_them_again(tmp_path, monkeypatch, eager_run):
    monkeypatch.chdir(tmp_path)
    stop_at(5, Tape())
    assert left_by("replayed", resume=True) == eager_run


def test_why_steps_are_not_replayed_is_said_once(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    *parts, settings, deployed = run_parts("bound")
    monkeypatch.setattr(loop, "capture_on", lambda device: Tape())
    monkeypatch.setattr(ImageSet, "host_bound", "its images are read")
    fit(Trainer(*parts, dataclasses.replace(settings, epochs=2), deployed))
    printed = capsys.readouterr().out
    assert printed.count("bound: its steps are not replayed as CUDA graphs: its images are read\n") == 1


def test_steps_are_not_replayed_where_that_is_asked_for(tmp_path, monkeypatch, eager_run):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "capture_on", lambda device: lambda function: pytest.fail("captures"))
    *parts, settings, deployed = run_parts("eager")
    fit(Trainer(*parts, dataclasses.replace(settings, eager=True), deployed))


# ---- students side by side


STUDENT = "--path_t save_t_models/teacher/best.pth --model_s resnet8 --dataset noise --batch_size 12 --device cpu"
ARMS = {
    "topkd": "-d 5 --epochs 3 --lr_decay_epochs 2",
    "crd": "--distill crd --set nce_k=16 --epochs 2",
    "ft": "--distill ft --first_epochs 1 --epochs 2",
}


def students(arm, trials, *options):
    words = [*STUDENT.split(), *ARMS[arm].split(), "--trial", *map(str, trials), *options]
    train_student.main(train_student.get_args_parser().parse_args(words))
    return artefacts(Path("save_s_models")) | artefacts(Path("results"))


@pytest.fixture
def in_stages(stages, tmp_path, monkeypatch):
    """A function that gives a fresh folder in which stages 2 and 3 have run."""
    numbers = itertools.count()

    def enter():
        folder = tmp_path / str(next(numbers))
        shutil.copytree(stages, folder)
        work_in(folder, monkeypatch)

    return enter


def test_students_side_by_side_end_as_one_after_another(in_stages):
    in_stages()
    together = students("crd", (1, 2))
    in_stages()
    students("crd", (1,))
    assert students("crd", (2,)) == together
    assert len([path for path in together if path.endswith("best.pth")]) == 2


@pytest.mark.slow
@pytest.mark.parametrize("arm", ["topkd", "ft"])
@pytest.mark.parametrize("capture", ["eager", "replayed"])
def test_three_students_side_by_side_end_as_one_after_another(in_stages, monkeypatch, arm, capture):
    if capture == "replayed":
        monkeypatch.setattr(loop, "capture_on", lambda device: Tape())
    in_stages()
    together = students(arm, (3, 1, 2))
    monkeypatch.setattr(loop, "capture_on", lambda device: None)
    in_stages()
    for trial in (1, 2, 3):
        apart = students(arm, (trial,))
    assert together == apart


@pytest.mark.slow
def test_students_that_are_stopped_side_by_side_are_all_saved_and_go_on(in_stages, monkeypatch):
    in_stages()
    expected = students("topkd", (1, 2))
    in_stages()
    pictures, asked = EpochPlan.images, itertools.count(1)

    def interrupted(plan, first, last):
        if next(asked) == 17:
            signal.raise_signal(signal.SIGINT)
        return pictures(plan, first, last)

    with monkeypatch.context() as patch:
        patch.setattr(EpochPlan, "images", interrupted)
        with pytest.raises(Interrupted, match="the runs were stopped"):
            students("topkd", (1, 2))
    states = [checkpoint.load(path) for path in Path("save_s_models").glob("*/last.pth")]
    assert sorted((state["next_epoch"], state["step"]) for state in states) == [(2, 3), (2, 3)]
    assert students("topkd", (1, 2), "--resume") == expected


@pytest.mark.parametrize("error, code", [(RunStopped("trial 1 went wrong"), 1), (RuntimeError("unforeseen"), None)])
def test_a_student_that_fails_leaves_the_others_whole(in_stages, monkeypatch, capsys, error, code):
    """One that stops with a message lets the others end; after any other error they are saved and can go on."""
    check = loop.Trainer.check

    def failing(trainer):
        if trainer.run.name.endswith("trial1") and trainer.progress.epoch == 2:
            raise error
        check(trainer)

    in_stages()
    with monkeypatch.context() as patch:
        patch.setattr(loop.Trainer, "check", failing)
        with pytest.raises(type(error), match="1 of 2 runs failed, as the lines" if code else str(error)):
            students("topkd", (1, 2))
    whole = list(Path("results/runs").glob("*trial2.csv"))
    if code:
        assert whole and not list(Path("results/runs").glob("*trial1.csv"))
        assert "trial1: trial 1 went wrong" in capsys.readouterr().out
    else:
        (saved,) = Path("save_s_models").glob("*trial2/last.pth")
        assert not whole and checkpoint.load(saved)["next_epoch"] == 3


def test_runs_that_are_stopped_end_though_nobody_reads(monkeypatch):
    """As after a closed terminal."""
    ended, stop = [], StopRequest()

    def steps(number):
        yield
        ended.append(number)
        raise Interrupted("stopped")

    def gone(*words, **options):
        raise OSError(5, "Input/output error")

    monkeypatch.setattr("builtins.print", gone)
    with pytest.raises(Interrupted, match="continue all with --resume"):
        side_by_side([Turn(str(number), steps(number), CPU) for number in range(3)], stop)
    assert ended == [0, 1, 2]


def test_the_first_signal_is_no_second_one_where_a_failure_has_asked_for_the_stop():
    with StopRequest() as stop:
        stop.requested = True  # as side_by_side does, so that the other runs are saved
        signal.raise_signal(signal.SIGINT)
    assert stop.requested


def test_random_numbers_of_runs_side_by_side_are_their_own():
    drawn = {1: [], 2: []}

    def drawing(number):
        for _ in range(3):
            drawn[number].append(torch.rand(1).item())
            yield

    turns = []
    for number in drawn:
        torch.manual_seed(number)
        turns.append(Turn(str(number), drawing(number), CPU))
    side_by_side(turns, StopRequest())
    for number, found in drawn.items():
        torch.manual_seed(number)
        assert found == [torch.rand(1).item() for _ in range(3)]


@pytest.mark.parametrize("options, message", [
    (("--trial", "1", "2", "1"), "--trial: found 1 2 1, in which a trial is duplicated"),
    (("--trial", "1", "2", "--name", "x"), "--name: one cannot serve 2 trials"),
    (("--trial", "1", "2", "--seed", "7"), "--seed: one cannot serve 2 trials"),
    (("--trial", "1", "2", "--dataset", "imagenette"), "--trial: found 2 trials, but image files, as of "),
])  # fmt: skip
def test_trials_that_are_not_runs_of_their_own_are_refused(options, message):
    with pytest.raises(UserError, match=message):
        train_student.main(
            train_student.get_args_parser().parse_args([*STUDENT.replace("noise", "cifar100").split(), *options])
        )
