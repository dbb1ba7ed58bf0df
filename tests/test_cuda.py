"""What only a GPU can show: that a replayed step gives the numbers of one that runs, that kernels repeat themselves,
and that they agree with the CPU. Left out where there is no CUDA.

    python -m pytest -n 0 -s tests/test_cuda.py       # -s shows how close the numbers were

With TOPKD_REHEARSAL=1, which `sh test.sh --all` sets, they run on the CPU, with tests/support/tape.py in place of
graphs: that shows that the tests themselves work, not what they are for.
"""

import copy
import hashlib
import itertools
import math
import os
import signal
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from support.arms import CPU, METHODS, TOPOLOGIES, build, images, state_of, teacher_of, training
from support.artefacts import artefacts
from support.tape import Tape

from dataset import EpochPlan, TrainLoader
from helper.cli.parser import exact_kernels
from helper.clouds import outputs
from helper.clouds.fitting import CloudData, FitSteps, TrainStep, train_epoch
from helper.clouds.outputs import CachedTeacher, OutputFiles, tables_on
from helper.errors import Interrupted, RunStopped
from helper.files.run import Run
from helper.settings import ResolvedTraining, plain
from helper.student.probe import Probe, probe_batches
from helper.training import loop
from helper.training.graphs import capture_on, own_stream
from helper.training.interrupts import StopRequest
from helper.training.loop import Trainer, evaluate, fit
from helper.training.objective import Objective
from helper.training.steps import train_steps
from helper.training.turns import Turn, side_by_side
from models import create_model, fold_batchnorm, to_device
from ripsnet import RipsNet, dim0_deaths
from ripsnet.diagrams import _direct_distances, _minimax_edges, _prim_edges, edge_lengths

REHEARSAL = os.environ.get("TOPKD_REHEARSAL") == "1"
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
pytestmark = pytest.mark.skipif(not (CUDA or REHEARSAL), reason="needs a GPU")

PAIR = ("resnet56", "resnet20") if CUDA else ("resnet8", "resnet8")
BATCH = 64 if CUDA else 4
ROOT = Path(__file__).resolve().parent.parent


def new_capture():
    return capture_on(DEVICE) or Tape()


@pytest.fixture(autouse=True)
def exact(monkeypatch, tmp_path):
    exact_kernels()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(loop, "SAVE_APART", math.inf)


def synchronize():
    if CUDA:
        torch.cuda.synchronize()


def relative(found, expected):
    """The largest difference of two tensors, over the largest value."""
    found, expected = found.double().cpu(), expected.double().cpu()
    return ((found - expected).abs().max() / expected.abs().max().clamp(min=1e-12)).item()


def closeness(found, expected):
    """The largest relative difference over all tensors of two states; 0 where they are equal bit for bit."""
    assert found.keys() == expected.keys()
    return max(
        (relative(found[name], expected[name]) for name in expected if not torch.equal(found[name], expected[name])),
        default=0.0,
    )


def train(objective, shown, capture=None, whole=50, lr=0.01):
    """Take at least `whole` steps in epochs of ten whole batches and a short one: the sums of the terms after each
    step, and the state at the end. The rate decays after the second epoch."""
    optimizer, meters, loader, replayed = training(objective, shown, capture, lr, BATCH)
    sums = []
    with own_stream(DEVICE):
        for epoch in itertools.count(1):
            optimizer.param_groups[0]["lr"] = lr if epoch <= 2 else lr / 10
            meters.reset()
            for _ in train_steps(objective, loader, optimizer, epoch, meters, replayed=replayed):
                sums.append(meters.sums.clone())
            if len(sums) >= whole:
                break
    return torch.stack(sums), state_of(objective, optimizer, meters)


def compare(capsys, name, prepare, limit, **options):
    shown = images(10 * BATCH + 3, DEVICE)
    eager_sums, eager = train(prepare(shown), shown, **options)
    sums, replayed = train(prepare(shown), shown, new_capture(), **options)
    of_sums, of_state = relative(sums, eager_sums), closeness(replayed, eager)
    with capsys.disabled():
        what = "equal bit for bit" if of_state == of_sums == 0 else f"relative {of_sums:.1e}, state {of_state:.1e}"
        print(f"\n{name}: replayed against eager: {what}")
    assert math.isfinite(of_sums) and max(of_sums, of_state) <= limit


# ---- 1: a replayed step against one that runs


@pytest.mark.parametrize("amp, limit", [("off", 1e-6), ("bf16", 1e-2)])
@pytest.mark.parametrize("arm", ["alone", "kd", *TOPOLOGIES, "crd"])
def test_a_replayed_step_gives_what_one_gives_that_runs(capsys, monkeypatch, arm, amp, limit):
    if not CUDA:
        monkeypatch.setattr("ripsnet.diagrams._distances", _direct_distances)
    exact_kernels()

    def prepare(shown):
        if arm == "alone":
            torch.manual_seed(0)
            return Objective(to_device(create_model(PAIR[1]), DEVICE), {"ce": 1.0}, amp)
        topology = arm if arm in TOPOLOGIES else None
        return build(shown, "crd" if arm == "crd" else "kd", topology, PAIR, BATCH, amp=amp)

    compare(capsys, f"{arm}, {amp}", prepare, limit, whole=50 if CUDA else 33)


@pytest.mark.slow
@pytest.mark.parametrize("key", METHODS)
def test_a_replayed_step_of_every_method_gives_what_one_gives_that_runs(capsys, key):
    """In bits where its kernels are deterministic; which of them are not is printed."""
    pair = ("resnet20", "resnet8") if CUDA else PAIR
    shown = images(10 * BATCH + 3, DEVICE)
    objective = build(shown, key, None, pair, BATCH)
    if objective.host_bound or (key in ("dkd", "crcd", "reviewkd") and not CUDA):
        pytest.skip(objective.host_bound or "reads values on a CPU")
    torch.use_deterministic_algorithms(True, warn_only=True)
    try:
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            train(objective, shown, whole=1)
    finally:
        torch.use_deterministic_algorithms(False)
    named = {str(each.message).split(" does not")[0] for each in caught if "deterministic" in str(each.message)}
    compare(capsys, f"{key} {sorted(named) or ''}", lambda s: build(s, key, None, pair, BATCH), 1e-5, whole=11)


def test_products_are_not_rounded_to_tf32():
    torch.manual_seed(0)
    a, b = torch.rand(2, 1024, 1024, device=DEVICE)
    assert relative(a @ b, a.double() @ b.double()) < 1e-5  # with TF32 4e-5, in float32 up to 2e-6 by its order


# ---- 2: stop and resume


def parts(device, resume=False):
    shown = images(10 * BATCH + 3, device)
    by_hand = ResolvedTraining(epochs=3, batch_size=BATCH, lr=0.01, lr_decay_epochs=(2,))
    objective = build(shown, "crd", "ripsnet", PAIR, BATCH)
    run = Run(Path("run"), plain(by_hand), device, resume)
    return objective, TrainLoader(shown, BATCH, 0), images(100, device), run, by_hand


def left_by(device=DEVICE, resume=False, stop=None):
    """What a run leaves that a signal stops after a number of batches, if one is given."""
    *of_fit, by_hand = parts(device, resume)
    taken, seen = itertools.count(1), loop.Bar.update

    def counting(bar, count=1):
        seen(bar, count)
        if next(taken) == stop:
            signal.raise_signal(signal.SIGTERM)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(loop.Bar, "update", counting)
        if device == DEVICE:
            patch.setattr(loop, "capture_on", lambda _: new_capture())
        if stop:
            with pytest.raises(Interrupted):
                fit(Trainer(*of_fit, by_hand, {}))
        else:
            fit(Trainer(*of_fit, by_hand, {}))
    return artefacts_of("run")


def artefacts_of(folder):
    """Tensors of a GPU are compared, too."""
    with pytest.MonkeyPatch.context() as patch:
        original = torch.Tensor.numpy
        patch.setattr(torch.Tensor, "numpy", lambda tensor: original(tensor.cpu()))
        return artefacts(Path(folder))


@pytest.mark.parametrize("stop", [5, 11, 16, 25], ids=["replay", "end of epoch 1", "epoch 2", "after the decay"])
def test_a_stopped_run_ends_as_one_that_never_stopped(tmp_path, monkeypatch, stop):
    (tmp_path / "whole").mkdir()
    monkeypatch.chdir(tmp_path / "whole")
    whole = left_by()
    monkeypatch.chdir(tmp_path)
    left_by(stop=stop)
    assert left_by(resume=True) == whole


@pytest.mark.skipif(not CUDA, reason="goes on elsewhere")
def test_a_run_goes_on_on_another_device():
    left_by(CPU, stop=5)
    found = left_by(DEVICE, resume=True)
    assert len(found["log.csv"]) == 3


# ---- 3: two processes


def digest():
    """Of the state after some steps of a student."""
    exact_kernels()
    shown = images(10 * BATCH + 3, DEVICE)
    _, state = train(build(shown, "kd", "ripsnet", PAIR, BATCH), shown, new_capture(), whole=22)
    found = hashlib.sha256()
    for name, tensor in sorted(state.items()):
        found.update(name.encode() + tensor.cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def test_two_processes_compute_the_same():
    paths = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
    environment = os.environ | {"PYTHONPATH": paths}
    found = [
        subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    ]
    assert len(found[0].split()[-1]) == 64 and found[0].split()[-1] == found[1].split()[-1]


# ---- 4: gradients


def gradient(device, dtype, amp="off"):
    """Of KD on a batch, in one vector."""
    shown = images(BATCH, device)
    objective = build(shown, "kd", None, PAIR, BATCH, amp=amp).to(dtype)
    objective.frozen.teacher.to(dtype)
    objective.train()
    pictures, labels, indices = EpochPlan(shown, 0, 1).images(0, BATCH)
    _, terms = objective(pictures.to(dtype), labels, indices)
    objective.total(terms).backward()
    return torch.cat([parameter.grad.flatten().double().cpu() for parameter in objective.student.parameters()])


@pytest.mark.parametrize("amp, limit", [("off", 1e-4), ("bf16", 3e-2)])
def test_gradients_agree_with_float64_on_the_cpu(monkeypatch, capsys, amp, limit):
    """With SiLU for ReLU, whose kink turns rounding into errors of 3e-3 at this batch: units whose sign it decides."""
    monkeypatch.setattr(F, "relu", F.silu)
    exact_gradient = gradient(CPU, torch.float64)
    found = gradient(DEVICE, torch.float32, amp)
    error = ((found - exact_gradient).norm() / exact_gradient.norm()).item()
    with capsys.disabled():
        print(f"\ngradient, {amp}: relative error {error:.1e}")
    assert error < limit


# ---- 5 to 7: images, trees, topology


def test_a_plan_shows_the_same_images_on_every_device():
    positions = torch.tensor([5, 0, 99, 41])
    for epoch in (1, 2):
        expected = EpochPlan(images(100), 3, epoch).at(positions)
        found = EpochPlan(images(100, DEVICE), 3, epoch).at(positions.to(DEVICE))
        assert all(torch.equal(x.cpu(), y) for x, y in zip(found, expected, strict=True))


def clouds(kind, n):
    rng = np.random.default_rng(n)
    points = rng.normal(size=(4, n, 16))
    if kind == "clustered":
        points = points * 1e-3 + rng.integers(0, 2, size=(4, n, 1)) * 10
    elif kind == "duplicates":
        points[:, n // 2 :] = points[:, : n - n // 2]
    return torch.from_numpy(points).float()


@pytest.mark.parametrize("n", [2, 16, 64, 256])
@pytest.mark.parametrize("kind", ["random", "clustered", "duplicates"])
@pytest.mark.parametrize("edges", [_minimax_edges, _prim_edges])
def test_trees_have_the_lengths_of_those_in_float64_on_the_cpu(kind, n, edges):
    cloud = clouds(kind, n)
    expected = dim0_deaths(cloud.double())
    tree = edges(_direct_distances(cloud.to(DEVICE))).cpu()
    found = edge_lengths(cloud.double(), tree).sort(dim=1).values
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TOPOLOGIES)
def test_a_topology_term_agrees_with_the_cpu(name):
    torch.manual_seed(0)
    topology, cloud = TOPOLOGIES[name](), torch.rand(2, 64, 64)
    values = []
    for device in (CPU, DEVICE):
        student = cloud[0].to(device).requires_grad_()
        value = copy.deepcopy(topology).to(device)(student, cloud[1].to(device))
        value.backward()
        values.append((value.detach(), student.grad))
    for found, expected in zip(values[1], values[0], strict=True):
        # RipsNet's is the difference of nearly equal images: on a CPU its gradient is 1e-4 from that in float64.
        assert relative(found, expected) < (1e-3 if name == "ripsnet" else 1e-5)


# ---- 8: what measures changes nothing


def test_evaluation_and_diagnosis_between_replays_change_nothing():
    shown = images(10 * BATCH + 3, DEVICE)
    objective = build(shown, "crd", "exact", PAIR, BATCH)
    objective.probe = Probe(probe_batches(shown, BATCH, BATCH), objective.frozen.topology.specs, shown.normalize)
    train(objective, shown, new_capture() if CUDA else None, whole=11)
    optimizer, meters, *_ = training(objective, shown)

    def everything():
        buffers = {f"buffer {name}": buffer.clone() for name, buffer in objective.named_buffers()}
        random = {"random": torch.cuda.get_rng_state() if CUDA else torch.get_rng_state()}
        return state_of(objective, optimizer, meters) | buffers | random

    before = everything()
    evaluate(objective.student, images(100, DEVICE))
    columns = objective.diagnose()
    objective.figures()
    assert closeness(everything(), before) == 0
    assert columns.keys() == {"grad_ce", "grad_other", "grad_top"} and all(map(math.isfinite, columns.values()))


def test_a_large_evaluation_gives_the_numbers_of_a_small_one():
    torch.manual_seed(0)
    model = to_device(create_model(PAIR[1]), DEVICE)
    test = images(1000, DEVICE)
    large, small = evaluate(model, test, batch_size=1000), evaluate(model, test, batch_size=100)
    assert large[0] == pytest.approx(small[0], abs=0.2) and large[1] == pytest.approx(small[1], rel=1e-5)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_weight_that_is_not_finite_is_found(value):
    shown, by_hand = images(BATCH, DEVICE), ResolvedTraining(epochs=1, batch_size=BATCH, lr=0.01)
    run = Run(Path("run"), plain(by_hand), DEVICE, resume=False)
    objective = build(shown, batch_size=BATCH)
    trainer = Trainer(objective, TrainLoader(shown, BATCH, 0), shown, run, by_hand, {})
    with torch.no_grad():
        weight = objective.student.fc.weight.fill_(1e30)  # the square is not finite
        trainer.check()
        weight[2, 4] = value
    with pytest.raises(RunStopped, match="the weights became non-finite"):
        trainer.check()


# ---- 9: stage 3


class Clouds(CloudData):
    """Random clouds on a device."""

    def __init__(self, count, device):
        generator = torch.Generator().manual_seed(0)
        pair = torch.rand(count, 64, 64, generator=generator).half(), torch.rand(count, 400, generator=generator)
        self.tensors = [tensor.to(device) for tensor in pair]
        self.start, self.stop, self.device, self.on_device = 0, count, device, True


def fitted(device, capture, count=200 * 64, epochs=2):
    torch.manual_seed(0)
    network, data = RipsNet(64).to(device), Clouds(count, device)
    step = TrainStep(network, 5e-4)
    with own_stream(device):
        replayed = FitSteps(step, data, 64, capture) if capture else None
        losses = [train_epoch(step, data, data.order(0, e), 64, replayed).clone() for e in range(epochs)]
    return torch.stack(losses), network.state_dict()


@pytest.mark.skipif(not CUDA, reason="tests/test_ripsnet_fit.py has it for the CPU")
def test_steps_of_stage_3_in_graphs_are_those_that_run(capsys):
    (losses, eager), (again, replayed) = fitted(DEVICE, None), fitted(DEVICE, new_capture())
    error = max(relative(again, losses), closeness(replayed, eager))
    with capsys.disabled():
        print(f"\nstage 3: replayed against eager: {'equal bit for bit' if error == 0 else error}")
    assert error < 1e-6


@pytest.mark.skipif(not CUDA, reason="compares with the CPU")
def test_stage_3_agrees_with_the_cpu():
    (found, _), (expected, _) = fitted(DEVICE, new_capture(), epochs=1), fitted(CPU, None, epochs=1)
    assert relative(found, expected) < 1e-4


# ---- 10: the table of the teacher's outputs


def random_tables(shown):
    """In the memory of the host."""
    generator, rows = torch.Generator().manual_seed(3), shown.view_count * len(shown)
    return {kind: torch.randn(rows, width, generator=generator) for kind, width in (("logits", 100), ("pooled", 64))}


def placed(tables, place):
    return tables_on(DEVICE, tables) if place == "device" else tables


def test_the_table_holds_what_the_teacher_makes_of_each_view(capsys, monkeypatch):
    """As it is saved, on the images that an epoch's plan shows. The table is of blocks and a short one."""
    if not CUDA:
        monkeypatch.setattr(outputs, "BLOCK", 4)
    shown, teacher = images(600 if CUDA else 6, DEVICE), to_device(copy.deepcopy(teacher_of(PAIR[0]).model), DEVICE)
    origin = {"images": len(shown), "views": shown.view_count, "classes": 100, "width": 64}
    files = OutputFiles(Path("table"), origin)
    files.folder.mkdir()
    files.fill(fold_batchnorm(teacher), shown)
    cache, error = CachedTeacher(tables_on(DEVICE, files.tables()), shown, 7), 0.0
    for epoch in range(1, 4):
        cache.begin(epoch)
        pictures, _, indices = EpochPlan(shown, 7, epoch).images(0, len(shown))
        with torch.no_grad():
            features, logits = teacher(pictures, is_feat=True)
        (pooled,), known = cache.at(indices)
        error = max(error, relative(known, logits), relative(pooled, features[-1]))
        assert logits.std(0).min() > 1e-2 and features[-1].std(0).max() > 1e-2
    with capsys.disabled():
        print(f"\ntable against teacher: at most {error:.1e} apart, relative to the largest value")
    assert error < 1e-4


@pytest.mark.parametrize("place", ["device", "host"])
def test_a_table_gives_its_rows_bit_for_bit_wherever_it_lies(place):
    shown = images(300, DEVICE)
    tables = random_tables(shown)
    cache = CachedTeacher(placed(tables, place), shown, 7)
    assert bool(cache.staged) == (CUDA and place == "host")
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    for epoch in (1, 2, 3):
        cache.begin(epoch)
        (pooled,), logits = cache.at(order.to(DEVICE))
        rows = shown.views(7, epoch).cpu()[order] * 300 + order
        assert torch.equal(pooled.cpu(), tables["pooled"][rows]) and torch.equal(logits.cpu(), tables["logits"][rows])


@pytest.mark.parametrize("place", ["device", "host"])
@pytest.mark.parametrize("topology", [None, "ripsnet"])
def test_a_replayed_step_with_the_table_gives_what_one_gives_that_runs(capsys, topology, place):
    tables = random_tables(images(10 * BATCH + 3))

    def prepare(shown):
        objective = build(shown, "kd", topology, PAIR, BATCH)
        objective.cache = CachedTeacher(placed(tables, place), shown, 0)
        objective.frozen = objective.frozen._replace(teacher=torch.nn.Identity())  # which fails when called
        return objective

    compare(capsys, f"kd, {topology}, table on the {place}", prepare, 1e-6, whole=50 if CUDA else 33)


# ---- 11: a loss that is not finite


class Spoilt(Objective):
    """Cross entropy that becomes NaN in one step, which the device counts."""

    def __init__(self, step):
        torch.manual_seed(0)
        super().__init__(to_device(create_model("resnet8"), DEVICE), {"ce": 1.0})
        self.register_buffer("taken", torch.zeros((), dtype=torch.int64, device=DEVICE), persistent=False)
        self.bad = step

    def forward(self, pictures, labels, indices):
        logits, terms = super().forward(pictures, labels, indices)
        self.taken += 1
        return logits, {"ce": torch.where(self.taken == self.bad, math.nan, terms["ce"])}


@pytest.mark.parametrize("step", [2, 8, 11], ids=["warm-up", "replay", "short batch"])
def test_a_run_with_a_loss_that_is_not_finite_names_its_step(monkeypatch, step):
    monkeypatch.setattr(loop, "capture_on", lambda device: new_capture())
    shown = images(10 * BATCH + 3, DEVICE)
    by_hand = ResolvedTraining(epochs=1, batch_size=BATCH, lr=0.01)
    run = Run(Path("run"), plain(by_hand), DEVICE, resume=False)
    with pytest.raises(RunStopped, match=rf"at epoch 1, step {step} "):
        fit(Trainer(Spoilt(step), TrainLoader(shown, BATCH, 0), shown, run, by_hand, {}))


# ---- side by side


def test_students_side_by_side_end_as_one_after_another(monkeypatch):
    """CRD, whose random numbers are drawn within the graph."""
    monkeypatch.setattr(loop, "capture_on", lambda device: new_capture())

    def run_of(number, name):
        shown = images(10 * BATCH + 3, DEVICE)
        by_hand = ResolvedTraining(epochs=2, batch_size=BATCH, lr=0.01 * number)
        objective = build(shown, "crd", None, ("resnet8", "resnet8"), BATCH)
        torch.manual_seed(number)
        run = Run(Path(name, str(number)), plain(by_hand), DEVICE, resume=False)
        return Trainer(objective, TrainLoader(shown, BATCH, number), images(100, DEVICE), run, by_hand, {})

    stop, turns = StopRequest(), []
    for number in (1, 2, 3):
        steps_of = loop.training_run(run_of(number, "together"), stop)
        turns.append(Turn(str(number), steps_of, DEVICE))
    side_by_side(turns, stop)
    for number in (1, 2, 3):
        fit(run_of(number, "apart"))
    synchronize()
    assert artefacts_of("together") == artefacts_of("apart")


if __name__ == "__main__":
    print(digest())
