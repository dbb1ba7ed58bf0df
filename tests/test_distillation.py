"""Stage 4, train_student.py: the loss and its terms against formulas, the projection, the diagnosis, and refusals."""

import csv
import io
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from helper.distillation import Distillation
from helper.runs import TIME_COLUMNS
from matplotlib import image as plt_image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins.hparams import metadata as hparams_metadata
from test_clouds import CLASSES, CLOUDS, POINTS, TEACHER, call, gudhi_image, make_clouds, make_teacher, refused, work_in
from torch import nn

import evaluate
import train_ripsnet
import train_student
from dataset import TrainLoader, load_dataset
from distiller_zoo import KD, Method
from helper import checkpoint, distillation, figures, loop
from models import create_model
from ripsnet import ExactTopology, ImageSpec, RipsNet, RipsNetTopology

FITTED = CLOUDS / "ripsnet_dim0_mean/best.pth"
USUAL = ["--path_t", TEACHER, "--dataset", "noise", "--device", "cpu", "--batch_size", POINTS]
INDICES = torch.arange(6)
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


class Probe(nn.Module):
    """A network as small as can be: a stem of 4 channels and its mean over pixels, from which it makes the logits."""

    def __init__(self, seed, width=4):
        super().__init__()
        torch.manual_seed(seed)
        self.stem, self.fc = nn.Conv2d(3, width, 1), nn.Linear(width, CLASSES)

    def forward(self, images, is_feat=False):
        features = [torch.relu(self.stem(images))]
        features.append(features[0].mean((2, 3)))
        logits = self.fc(features[-1])
        return (features, logits) if is_feat else logits


class Recorded(nn.Module):
    """Squared distance of two clouds, which it keeps."""

    def forward(self, student, teacher):
        self.clouds = student, teacher
        return (student - teacher).square().mean()


class Noisy(nn.Module):
    """A method's loss that draws random numbers."""

    def forward(self, student, teacher, batch):
        feature = student.features[-1]
        return (feature + torch.rand_like(feature) - teacher.features[-1]).square().mean()


def objective(weights, teacher_width=4, **options):
    """A Distillation of two such networks, a batch of six, and what both networks make of it, as NumPy arrays."""
    student, teacher = Probe(0), Probe(1, teacher_width).requires_grad_(False)
    options.setdefault("topology", Recorded())
    torch.manual_seed(2)
    images, labels = torch.randn(6, 3, 5, 5), torch.tensor([0, 1, 2, 0, 1, 0])
    found = Distillation(student, teacher, weights, widths=(4, teacher_width), probe=[(images, labels)], **options)
    (_, feature_s), logits_s = student(images, is_feat=True)
    (_, feature_t), logits_t = teacher(images, is_feat=True)
    arrays = {"feature_s": feature_s, "logits_s": logits_s, "feature_t": feature_t, "logits_t": logits_t}
    return found, images, labels, {name: array.detach().double().numpy() for name, array in arrays.items()}


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """The folder in which stages 2 and 3 ran, for both dimensions; not to be changed."""
    folder = tmp_path_factory.mktemp("stages")
    with pytest.MonkeyPatch.context() as patch:
        work_in(folder, patch)
        make_clouds("--dim", "01")
        call(train_ripsnet, *USUAL, "--dim", "01", "--epochs", 3, "--lr", 0.01)
    return folder


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    work_in(tmp_path, monkeypatch)


@pytest.fixture
def prepared(stages):
    """A copy of that folder's files in the current one."""
    shutil.copytree(stages, ".", dirs_exist_ok=True)


@pytest.mark.parametrize("T", [1.0, 4.0, 20.0])
def test_kd_is_the_divergence_of_the_softened_predictions_times_t_squared(T):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 5, (2, 7, 10))
    p_s, p_t = softmax(student, T), softmax(teacher, T)
    expected = T**2 * (p_t * np.log(p_t / p_s)).sum(axis=1).mean()
    assert KD(T)(torch.from_numpy(student), torch.from_numpy(teacher)).item() == pytest.approx(expected, rel=1e-5)


def test_kd_of_equal_logits_is_zero_and_extreme_ones_stay_finite():
    logits = torch.tensor([[300.0, -300.0, 0.0], [1e4, 1e4, -1e4]])
    assert KD()(logits, logits).item() == 0
    assert torch.isfinite(KD()(logits, -logits))


def test_gradient_of_kd_is_the_formulas():
    """T (softmax(s / T) - softmax(t / T)) / B: Hinton et al., section 2.1, times T^2."""
    rng = np.random.default_rng(1)
    student, teacher = rng.normal(0, 3, (2, 5, 4))
    logits = torch.tensor(student, requires_grad=True)
    KD(4.0)(logits, torch.from_numpy(teacher)).backward()
    expected = 4 * (softmax(student, 4) - softmax(teacher, 4)) / 5
    np.testing.assert_allclose(logits.grad.numpy(), expected, atol=1e-6)


def test_the_total_is_that_of_the_published_log():
    """The first step of ResNet56 > ResNet20 in the authors' log."""
    found, *_ = objective({"ce": 1.0, "kd": 2.0, "other": 0.0, "top": 5.0})
    assert found.total({"ce": 4.8479, "kd": 14.8090, "top": 0.0443}) == pytest.approx(34.6874, abs=2e-4)


def test_every_term_is_what_numpy_makes_of_features_and_logits():
    found, images, labels, is_ = objective({"ce": 1.0, "kd": 2.0, "top": 5.0})
    _, terms = found(images, labels, INDICES)
    p_s, p_t = softmax(is_["logits_s"], 4), softmax(is_["logits_t"], 4)
    ce = -np.log(softmax(is_["logits_s"])[np.arange(6), labels]).mean()
    assert terms["ce"].item() == pytest.approx(ce, rel=1e-5)
    assert terms["kd"].item() == pytest.approx(16 * (p_t * np.log(p_t / p_s)).sum(axis=1).mean(), rel=1e-4)
    assert terms["top"].item() == pytest.approx(((is_["feature_s"] - is_["feature_t"]) ** 2).mean(), rel=1e-5)
    assert list(terms) == ["ce", "kd", "top"]


@pytest.mark.parametrize("layer_s, layer_t", [(-1, -2), (-2, -1), (0, 0)])
def test_the_clouds_are_those_of_the_layers_asked_for(layer_s, layer_t):
    found, images, labels, is_ = objective({"top": 1.0}, layer_s=layer_s, layer_t=layer_t)
    found(images, labels, INDICES)
    read = {0: "logits", -1: "feature", -2: "feature"}  # -2 is the stem, whose mean over pixels -1 is
    for cloud, layer, which in zip(found.frozen[1].clouds, (layer_s, layer_t), "st", strict=True):
        np.testing.assert_allclose(cloud.detach(), is_[f"{read[layer]}_{which}"], rtol=1e-5, atol=1e-6)


def test_dimensions_01_make_a_mean_over_800_pixels():
    torch.manual_seed(0)
    networks = [RipsNet(4), RipsNet(4, "sum")]
    found, images, labels, is_ = objective({"top": 1.0}, topology=RipsNetTopology(networks))
    pixels = []
    for network in networks:
        pair = [network(torch.tensor(is_[name]).float()) for name in ("feature_s", "feature_t")]
        pixels.append((pair[0] - pair[1]).detach().double().numpy())
    pixels = np.concatenate(pixels)
    assert len(pixels) == 800
    assert found(images, labels, INDICES)[1]["top"].item() == pytest.approx((pixels**2).mean(), rel=1e-3)


def test_bf16_is_for_the_networks_and_every_term_is_float32():
    found, images, labels, _ = objective({"ce": 1.0, "kd": 1.0, "top": 1.0}, teacher_width=5, amp="bf16")
    dtypes = []
    for network in (found.student, found.frozen[0]):
        network.fc.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
        network.stem.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    logits, terms = found(images, labels, INDICES)
    assert dtypes == [torch.bfloat16] * 4 and logits.dtype == torch.bfloat16
    assert all(term.dtype == torch.float32 for term in terms.values())
    assert all(cloud.dtype == torch.float32 for cloud in found.frozen[1].clouds)
    found.total(terms).backward()
    assert found.student.stem.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("weights, runs", [({"ce": 1.0, "kd": 0.0}, False), ({"ce": 1.0, "kd": 0.1}, True)])
def test_the_teacher_runs_only_when_something_compares_with_it(weights, runs):
    found, images, labels, _ = objective(weights)
    calls = []
    found.frozen[0].register_forward_hook(lambda *_: calls.append(1))
    found(images, labels, INDICES)
    assert bool(calls) == runs


def test_the_teacher_is_neither_trained_nor_saved():
    found, *_ = objective({"ce": 1.0, "kd": 1.0, "top": 1.0})
    assert {name.split(".")[0] for name in found.state_dict()} == {"student"}
    found, *_ = objective({"top": 1.0}, teacher_width=5)
    trained = {name for name, parameter in found.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in trained} == {"student", "projection"}
    assert found.projection.weight.shape == (5, 4, 1, 1) and found.projection.bias.shape == (5,)


def test_gradient_norms_are_those_of_the_formulas():
    found, _, labels, is_ = objective({"ce": 0.5, "kd": 2.0, "top": 3.0})
    head = found.student.fc.weight.detach().double().numpy()
    expected = {
        "grad_ce": 0.5 * (softmax(is_["logits_s"]) - np.eye(CLASSES)[labels]) / 6 @ head,
        "grad_kd": 2.0 * 4 * (softmax(is_["logits_s"], 4) - softmax(is_["logits_t"], 4)) / 6 @ head,
        "grad_top": 3.0 * 2 * (is_["feature_s"] - is_["feature_t"]) / is_["feature_t"].size,
    }
    columns = found.diagnose()
    assert columns == {name: pytest.approx(np.linalg.norm(value), rel=1e-4) for name, value in expected.items()}


def test_the_gradient_norm_of_topology_is_taken_before_the_projection():
    found, _, _, is_ = objective({"top": 3.0}, teacher_width=5)
    matrix = found.projection.weight[:, :, 0, 0].detach().double().numpy()
    difference = is_["feature_s"] @ matrix.T + found.projection.bias.detach().double().numpy() - is_["feature_t"]
    expected = np.linalg.norm(3.0 * 2 * difference / difference.size @ matrix)
    assert found.diagnose() == {"grad_top": pytest.approx(expected, rel=1e-4)}


def test_student_r2_is_that_of_ripsnet_against_gudhis_images():
    spec = {"dim": 0, "sigma": 0.05, "image_range": [0.0, 0.0, 0.0, 0.5], "maximum": 100.0}
    torch.manual_seed(0)
    network = RipsNet(4)
    found, *_ = objective(
        {"top": 1.0}, topology=RipsNetTopology([network]), specs=[ImageSpec(sigma_rule="released", **spec)]
    )
    found.probe = [(3 * torch.randn(6, 3, 5, 5), torch.zeros(6, dtype=torch.int64)) for _ in range(5)]
    clouds = torch.stack([found.student(images, is_feat=True)[0][-1] for images, _ in found.probe]).detach()
    exact = np.stack([gudhi_image(cloud.numpy(), spec) for cloud in clouds])
    errors = (network(clouds).detach().double().numpy() - exact) ** 2
    expected = 1 - errors.mean() / ((exact.mean(axis=0) - exact) ** 2).mean()
    assert found.diagnose()["student_r2"] == pytest.approx(expected, rel=1e-3)


@pytest.mark.parametrize("mode", [True, False])
def test_a_diagnosis_leaves_no_trace(prepared, mode):
    student, teacher = create_model("resnet8", CLASSES), create_model("resnet8", CLASSES).eval()
    probe = [(torch.randn(8, 3, 16, 16), torch.arange(8) % CLASSES)] * 2
    spec = ImageSpec.load(CLOUDS / "spec_dim0.json")
    weights = {"ce": 1.0, "kd": 1.0, "other": 1.0, "top": 1.0}
    topology = RipsNetTopology([RipsNet(64)])
    found = Distillation(
        student,
        teacher,
        weights,
        method=Method("Noisy", "", features=(-1,)),
        other=Noisy(),
        topology=topology,
        layer_s=-3,
        widths=(32, 64),
        probe=probe,
        specs=[spec],
    )
    found.train(mode)
    modes = {name: module.training for name, module in found.named_modules()}
    before = {name: tensor.clone() for name, tensor in found.state_dict().items()}
    random = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert set(found.diagnose()) == {"grad_ce", "grad_kd", "grad_other", "grad_top", "student_r2"}
    assert equal(found.state_dict(), before)
    assert {name: module.training for name, module in found.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), random[0]) and (np.random.get_state()[1] == random[1]).all()
    assert all(parameter.grad is None for parameter in found.parameters())


def test_training_with_and_without_a_diagnosis_is_the_same(prepared, monkeypatch):
    train("-d", 5, "--epochs", 2, *WIDTHS_DIFFER, name="with")
    monkeypatch.setattr(Distillation, "diagnose", lambda self: {})
    train("-d", 5, "--epochs", 2, *WIDTHS_DIFFER, name="without")
    (weights, log), (weights_without, log_without) = result("with"), result("without")
    assert equal(weights, weights_without)
    columns = {"grad_ce", "grad_kd", "grad_top", "student_r2"}
    assert columns <= set(log[0])
    assert [{key: row[key] for key in row if key not in columns} for row in log] == log_without


def test_training_with_and_without_figures_is_the_same(prepared, monkeypatch):
    monkeypatch.setattr(loop, "FIGURES_EVERY", 1)
    drawn = []
    monkeypatch.setattr(
        figures, "image_panel", lambda images, draw=figures.image_panel: drawn.append(1) or draw(images)
    )
    train("-d", 5, "--epochs", 3, *WIDTHS_DIFFER, name="with")
    monkeypatch.setattr(Distillation, "figures", lambda self: {})
    train("-d", 5, "--epochs", 3, *WIDTHS_DIFFER, name="without")
    assert len(drawn) == 3
    assert equal(result("with")[0], result("without")[0]) and result("with")[1] == result("without")[1]
    last = [checkpoint.load(f"save_s_models/{name}/last.pth") for name in ("with", "without")]
    for part in ("objective", "random"):
        assert equal(last[0][part], last[1][part])


@pytest.mark.parametrize("method, kinds", [("RipsNet", ["exact", "RipsNet"]), ("exact", ["exact"])])
def test_figures_show_the_images_of_the_first_probe_batch(prepared, monkeypatch, method, kinds):
    """Those of GUDHI, for the clouds of a plain forward pass in eval mode."""
    student, images = create_model("resnet8", CLASSES), torch.randn(8, 3, 16, 16)
    teacher = create_model("resnet8", CLASSES).eval()
    specs = [ImageSpec.load(CLOUDS / f"spec_dim{dim}.json") for dim in (0, 1)]
    networks = [RipsNet(64), RipsNet(64, "sum")]
    topology = RipsNetTopology(networks) if method == "RipsNet" else ExactTopology(specs)
    probe = [(images, torch.zeros(8, dtype=torch.int64)), (None, None)]
    found = Distillation(student, teacher, {"top": 1.0}, topology=topology, widths=(64, 64), probe=probe, specs=specs)
    found.train()
    before = {name: tensor.clone() for name, tensor in found.state_dict().items()}
    panels = []
    monkeypatch.setattr(figures, "image_panel", panels.append)
    assert list(found.figures()) == ["persistence_images/dim0", "persistence_images/dim1"]
    assert equal(found.state_dict(), before) and found.training and student.training

    student.eval()
    with torch.no_grad():
        clouds = {
            name: net(images, is_feat=True)[0][-1] for name, net in {"student": student, "teacher": teacher}.items()
        }
        for spec, network, panel in zip(specs, networks, panels, strict=True):
            assert list(panel) == [f"{name}, {kind}" for kind in kinds for name in clouds]
            for name, cloud in clouds.items():
                expected = {
                    "exact": gudhi_image(cloud.numpy(), spec.to_dict()),
                    "RipsNet": network(cloud[None])[0].numpy(),
                }
                for kind in kinds:
                    image = panel[f"{name}, {kind}"]
                    assert image.shape == (20, 20)
                    np.testing.assert_allclose(image.ravel(), expected[kind], rtol=1e-3, atol=1e-6)


def test_no_figures_without_exact_images():
    assert objective({"ce": 1.0})[0].figures() == {}
    assert objective({"top": 1.0}, topology=RipsNetTopology([RipsNet(4)]))[0].figures() == {}


def test_tensorboard_has_the_images_and_the_hyperparameters_of_a_run(prepared, monkeypatch):
    monkeypatch.setattr(loop, "FIGURES_EVERY", 2)
    train("-d", 5, "--dim", "01", "--epochs", 5)
    events = EventAccumulator("save_s_models/run", size_guidance={"images": 0}).Reload()
    assert set(events.Tags()["images"]) == {"persistence_images/dim0", "persistence_images/dim1"}
    for tag in events.Tags()["images"]:
        found = events.Images(tag)
        assert [image.step for image in found] == [2, 4, 5]
        for image in found:
            pixels = plt_image.imread(io.BytesIO(image.encoded_image_string))
            assert pixels.shape == (image.height, image.width, 4) and len(np.unique(pixels)) > 10

    accuracies = [float(row["test_acc"]) for row in result()[1]]
    for tag, expected in (("hparam/last", accuracies[-1]), ("hparam/best", max(accuracies))):
        (point,) = events.Scalars(tag)
        assert (point.step, point.value) == (5, pytest.approx(expected))
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
    fold_batchnorm = distillation.fold_batchnorm

    def broken(model):
        folded = fold_batchnorm(model)
        folded.forward = None
        return folded

    monkeypatch.setattr(distillation, "fold_batchnorm", broken)
    train(*METHODS["CE"])
    assert [key for key in result()[1][0] if key.startswith("share_")] == ["share_ce"]
    with pytest.raises(TypeError):
        train(*METHODS["KD"], name="kd")


def test_topology_without_kd():
    train("-a", 0, *METHODS["wasserstein"])
    assert [key for key in result()[1][0] if key.startswith("share_")] == ["share_ce", "share_top"]


@pytest.mark.parametrize("projection", [(), WIDTHS_DIFFER], ids=["same width", "projection"])
def test_all_methods_start_from_equal_weights_and_see_equal_batches(prepared, monkeypatch, projection):
    fit, seen = train_student.fit, {}

    def recording_fit(objective, *rest):
        state, batches = {name: tensor.clone() for name, tensor in objective.student.state_dict().items()}, []
        objective.register_forward_pre_hook(lambda module, batch: batches.append([part.clone() for part in batch]))
        seen[method] = state, batches
        return fit(objective, *rest)

    monkeypatch.setattr(train_student, "fit", recording_fit)
    for method, options in METHODS.items():
        train(*options, *projection, name=method)
    state, batches = seen["CE"]
    assert [len(labels) for _, labels, _ in batches] == [12] * 5 + [10]  # the short batch too
    for method, (other_state, other_batches) in seen.items():
        assert equal(state, other_state), method
        for batch, other in zip(batches, other_batches, strict=True):
            assert all(torch.equal(*parts) for parts in zip(batch, other, strict=True)), method
    assert len({result(method)[1][0]["test_loss"] for method in METHODS}) == len(METHODS)  # and yet differ


@pytest.mark.parametrize("method", ["RipsNet", "exact", "wasserstein"])
def test_the_projection_is_trained_and_saved_but_not_deployed(prepared, monkeypatch, capsys, method):
    fit, before = train_student.fit, {}

    def recording_fit(objective, *rest):
        before.update({name: tensor.clone() for name, tensor in objective.projection.state_dict().items()})
        return fit(objective, *rest)

    monkeypatch.setattr(train_student, "fit", recording_fit)
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
    train("--model_s", arch, *METHODS[method], "--tda_layer_s", layer, "--operator", "mean", "--lr", 0.01)
    (row,) = result()[1]
    assert np.isfinite(float(row["loss"])) and float(row["top"]) > 0


@pytest.mark.parametrize("topology", ["ripsnet", "exact"])
@pytest.mark.parametrize("dim", ["1", "01"])
def test_the_other_dimensions_train(prepared, topology, dim):
    train("-d", 5, "--topology", topology, "--dim", dim)
    (row,) = result()[1]
    assert float(row["top"]) > 0 and ("student_r2" in row) == (topology == "ripsnet")


def test_another_layer_of_the_teacher_has_clouds_of_its_own():
    make_clouds("--tda_layer_t", -3)
    call(train_ripsnet, *USUAL, "--tda_layer_t", -3, "--epochs", 1)
    train("-d", 5, "--tda_layer_t", -3, "--tda_layer_s", -3)
    assert not any("projection" in name for name in checkpoint.load("save_s_models/run/last.pth")["objective"])


@pytest.mark.parametrize("topology", ["ripsnet", "exact"])
def test_images_of_another_resolution_and_range_train(topology):
    kind = ("--resolution", 5, "--range", "q99")
    make_clouds(*kind)
    call(train_ripsnet, *USUAL, *kind, "--ripsnet_clouds", 4, "--epochs", 1)
    train("-d", 5, "--topology", topology, *kind, *(["--ripsnet_clouds", 4] if topology == "ripsnet" else []))
    assert float(result()[1][0]["top"]) > 0


def test_bf16_trains(prepared):
    train("-d", 5, "--amp", "bf16")
    assert all(tensor.dtype != torch.bfloat16 for tensor in result()[0].values())


def test_the_row_of_results_says_what_ran(prepared):
    train("-d", 5)
    with open("results/runs/run.csv") as file:
        (row,) = csv.DictReader(file)
    fitted = checkpoint.load(FITTED)
    expected = {"method": "TopKD", "teacher": "resnet8", "student": "resnet8", "alpha": "2.0", "delta": "5.0"}
    assert expected.items() <= row.items()
    assert float(row["teacher_acc"]) == 33 and float(row["ripsnet_r2"]) == fitted["quality"]["r2"]
    assert row["teacher_sha256"] == fitted["spec"]["teacher_sha256"]


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
        checkpoint.write_json(CLOUDS / "spec_dim0.json", content | {field: value})
    line = refusal("-d", 5, "--topology", topology)
    found = tuple(value) if isinstance(value, list) else value
    assert f"made for {field} {str(found)[:12]}, but" in line and "generate_PCD_PI.py" in line


def test_another_teacher_in_the_same_place_is_refused(prepared, refusal):
    make_teacher(seed=1)
    assert "made for teacher_sha256" in refusal("-d", 5)


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


def test_wasserstein_is_for_dimension_0(refusal):
    line = refusal("--topology", "wasserstein", "--dim", "1")
    assert "--dim: found 1, but --topology wasserstein is defined for dimension 0" in line


@pytest.mark.parametrize(
    "options, refused_option",
    [
        (("--topology", "wasserstein", "--resolution", 10), "--resolution"),
        (("--topology", "wasserstein", "--range", "q99"), "--range"),
        (("--resolution", 10), "--resolution"),
        (("--topology", "exact", "--ripsnet_clouds", 5), "--ripsnet_clouds"),
        (("-d", 5, "--ripsnet", FITTED, "--ripsnet_clouds", 5), "--ripsnet_clouds"),
    ],
)
def test_options_without_effect_are_refused(prepared, refusal, options, refused_option):
    assert f"{refused_option}: of no use with --" in refusal(*options)


def test_a_ripsnet_without_a_spec_works_with_a_warning_but_exact_images_need_one(refusal, capsys):
    """As the authors published theirs."""
    torch.manual_seed(0)
    checkpoint.save(Path("published.pth"), {"model": RipsNet(64).state_dict()})
    train("-d", 5, "--ripsnet", "published.pth")
    assert capsys.readouterr().out.count("warning: published.pth brings no image spec") == 1
    assert "top" in result()[1][0] and "student_r2" not in result()[1][0]
    line = refusal("-d", 5, "--topology", "exact", "--ripsnet", "published.pth")
    assert "no image spec there" in line
