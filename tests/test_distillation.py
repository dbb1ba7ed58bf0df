"""The student's loss and what is measured of it: terms against formulas, the projection, diagnosis and pictures."""

import shutil

import numpy as np
import pytest
import torch
from scipy.stats import zscore
from support import arms
from support.gudhis import gudhi_image
from support.running import CLASSES, CLOUDS, work_in
from torch import nn

from dataset import batches_in_order, load_dataset
from distiller_zoo import KD, NORM, Method, Pair, distiller_dict
from helper import distributed
from helper.settings import ResolvedLoss
from helper.student import pictures, probe
from helper.student.distillation import Distillation
from helper.student.topology import load_spec
from models import create_model
from ripsnet import ExactTopology, ImageSpec, RipsNet, RipsNetTopology

INDICES = torch.arange(6)


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def softmax(logits, T=1.0):
    powers = np.exp(logits / T - (logits / T).max(axis=1, keepdims=True))
    return powers / powers.sum(axis=1, keepdims=True)


def cross_entropy(logits, labels):
    return -np.log(softmax(logits)[np.arange(len(labels)), labels]).mean()


def divergence(student, teacher, T):
    """KD's value: T^2 KL(teacher || student) of the softened predictions, averaged over the images."""
    p_s, p_t = softmax(student, T), softmax(teacher, T)
    return T**2 * (p_t * np.log(p_t / p_s)).sum(axis=1).mean()


class Small(nn.Module):
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


class Kept(nn.Module):
    """A method's loss that keeps what it is given."""

    def __init__(self, pair=None):
        super().__init__()

    def forward(self, *given):
        self.student, self.teacher, self.batch = given
        return torch.zeros(())


class Noisy(nn.Module):
    """A method's loss that draws random numbers."""

    def forward(self, student, teacher, batch):
        feature = student.features[-1]
        return (feature + torch.rand_like(feature) - teacher.features[-1]).square().mean()


def loss_of(weights, **more):
    """Of the terms' weights, by their names."""
    names = {"ce": "gamma", "kd": "alpha", "other": "beta", "top": "delta"}
    return ResolvedLoss(**{names[term]: weights.get(term, 0.0) for term in names} | {"kd_T": 4.0} | more)


def objective(weights, teacher_width=4, **options):
    """A Distillation of two such networks, a batch of six, and what both networks make of it, as NumPy arrays.

    loss: further settings of the loss.
    """
    student, teacher = Small(0), Small(1, teacher_width).requires_grad_(False)
    options.setdefault("topology", Recorded())
    torch.manual_seed(2)
    images, labels = torch.randn(6, 3, 5, 5), torch.tensor([0, 1, 2, 0, 1, 0])
    loss = loss_of(weights, tda_layer_s=options.pop("layer_s", -1), **options.pop("loss", {}))
    specs = options.pop("specs", ())
    found = Distillation(student, teacher, loss, widths=(4, teacher_width), **{"epochs": 240} | options)
    found.probe = probe.Probe([(images, labels)], specs)
    (_, feature_s), logits_s = student(images, is_feat=True)
    (_, feature_t), logits_t = teacher(images, is_feat=True)
    arrays = {"feature_s": feature_s, "logits_s": logits_s, "feature_t": feature_t, "logits_t": logits_t}
    return found, images, labels, {name: array.detach().double().numpy() for name, array in arrays.items()}


@pytest.fixture
def prepared(stages, tmp_path, monkeypatch):
    """The results of stages 2 and 3 in the current folder."""
    work_in(tmp_path, monkeypatch)
    shutil.copytree(stages, ".", dirs_exist_ok=True)


@pytest.mark.parametrize("T", [1.0, 4.0, 20.0])
def test_kd_is_the_divergence_of_the_softened_predictions_times_t_squared(T):
    rng = np.random.default_rng(0)
    student, teacher = rng.normal(0, 5, (2, 7, 10))
    expected = divergence(student, teacher, T)
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


@pytest.mark.parametrize("T", [1.0, 2.0, 4.0])
def test_every_term_is_what_numpy_makes_of_features_and_logits(T):
    found, images, labels, is_ = objective({"ce": 1.0, "kd": 2.0, "top": 5.0}, loss={"kd_T": T})
    _, terms = found(images, labels, INDICES)
    assert terms["ce"].item() == pytest.approx(cross_entropy(is_["logits_s"], labels), rel=1e-5)
    assert terms["kd"].item() == pytest.approx(divergence(is_["logits_s"], is_["logits_t"], T), rel=1e-4)
    assert terms["top"].item() == pytest.approx(((is_["feature_s"] - is_["feature_t"]) ** 2).mean(), rel=1e-5)
    assert list(terms) == ["ce", "kd", "top"]


@pytest.mark.parametrize("features", [(), (-1,)])
def test_logit_stand_gives_z_scores_to_kd_and_to_methods_on_logits_alone(features):
    other, method = Kept(), Method("Kept", "", Kept, features=features)
    weights, loss = {"ce": 1.0, "kd": 1.0, "other": 1.0}, {"kd_T": 2.0, "logit_stand": True}
    found, images, labels, is_ = objective(weights, other=other, method=method, loss=loss)
    _, terms = found(images, labels, INDICES)
    scores_s, scores_t = (zscore(is_[name], axis=1, ddof=1) for name in ("logits_s", "logits_t"))
    assert terms["kd"].item() == pytest.approx(divergence(scores_s, scores_t, 2.0), rel=1e-4)
    assert terms["ce"].item() == pytest.approx(cross_entropy(is_["logits_s"], labels), rel=1e-5)
    expected = (is_["logits_s"], is_["logits_t"]) if features else (scores_s, scores_t)
    for output, logits in zip((other.student, other.teacher), expected, strict=True):
        np.testing.assert_allclose(output.logits.detach(), logits, rtol=1e-4, atol=1e-6)


def test_norms_cross_entropy_and_kd_are_of_two_and_a_half_times_the_z_scores():
    shapes = ((4, 5, 5), (4,))
    found, images, labels, is_ = objective({"ce": 1.0, "kd": 1.0}, other=NORM(Pair(shapes, shapes)))
    _, terms = found(images, labels, INDICES)
    scores_s, scores_t = (2.5 * zscore(is_[name], axis=1, ddof=0) for name in ("logits_s", "logits_t"))
    assert terms["ce"].item() == pytest.approx(cross_entropy(scores_s, labels), rel=1e-4)
    assert terms["kd"].item() == pytest.approx(divergence(scores_s, scores_t, 4.0), rel=1e-4)


@pytest.mark.parametrize("layer_s, layer_t", [(-1, -2), (-2, -1), (0, 0)])
def test_the_clouds_are_those_of_the_layers_asked_for(layer_s, layer_t):
    found, images, labels, is_ = objective({"top": 1.0}, layer_s=layer_s, layer_t=layer_t)
    found(images, labels, INDICES)
    read = {0: "logits", -1: "feature", -2: "feature"}  # -2 is the stem, whose mean over pixels -1 is
    for cloud, layer, which in zip(found.frozen.topology.clouds, (layer_s, layer_t), "st", strict=True):
        np.testing.assert_allclose(cloud[0].detach(), is_[f"{read[layer]}_{which}"], rtol=1e-5, atol=1e-6)


def test_bf16_is_for_the_networks_and_every_term_is_float32():
    found, images, labels, _ = objective({"ce": 1.0, "kd": 1.0, "top": 1.0}, teacher_width=5, amp="bf16")
    dtypes = []
    for network in (found.student, found.frozen.teacher):
        network.fc.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
        network.stem.register_forward_hook(lambda module, inputs, output: dtypes.append(output.dtype))
    logits, terms = found(images, labels, INDICES)
    assert dtypes == [torch.bfloat16] * 4 and logits.dtype == torch.bfloat16
    assert all(term.dtype == torch.float32 for term in terms.values())
    assert all(cloud.dtype == torch.float32 for cloud in found.frozen.topology.clouds)
    found.total(terms).backward()
    assert found.student.stem.weight.grad.dtype == torch.float32


@pytest.mark.parametrize("weights, runs", [({"ce": 1.0, "kd": 0.0}, False), ({"ce": 1.0, "kd": 0.1}, True)])
def test_the_teacher_runs_only_when_something_compares_with_it(weights, runs):
    found, images, labels, _ = objective(weights)
    calls = []
    found.frozen.teacher.register_forward_hook(lambda *_: calls.append(1))
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


@pytest.mark.parametrize(
    "size, shape", [(None, (1, 6)), (6, (1, 6)), (3, (2, 3)), (2, (3, 2)), (4, (1, 4)), (9, (1, 6))]
)
@pytest.mark.parametrize("teacher_width", [4, 5])
def test_clouds_are_consecutive_images_of_the_batch(size, shape, teacher_width):
    """The rest of a short batch is left out, unless it is all there is."""
    found, images, labels, is_ = objective({"top": 1.0}, teacher_width, cloud_size=size)
    found(images, labels, INDICES)
    for clouds, which in zip(found.frozen.topology.clouds, "st", strict=True):
        assert clouds.shape == (*shape, teacher_width)
        for number, cloud in enumerate(clouds.detach()):
            expected = is_[f"feature_{which}"][number * shape[1] : (number + 1) * shape[1]]
            if which == "s" and teacher_width == 5:
                layer = found.projection
                expected = expected @ layer.weight[:, :, 0, 0].detach().numpy().T + layer.bias.detach().numpy()
            np.testing.assert_allclose(cloud, expected, rtol=1e-5, atol=1e-6)


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
    found.probe.batches = [(3 * torch.randn(6, 3, 5, 5), torch.zeros(6, dtype=torch.int64)) for _ in range(5)]
    clouds = torch.stack([found.student(images, is_feat=True)[0][-1] for images, _ in found.probe.batches]).detach()
    exact = np.stack([gudhi_image(cloud.numpy(), spec) for cloud in clouds])
    errors = (network(clouds).detach().double().numpy() - exact) ** 2
    expected = 1 - errors.mean() / ((exact.mean(axis=0) - exact) ** 2).mean()
    assert found.diagnose()["student_r2"] == pytest.approx(expected, rel=1e-3)


def test_student_r2_is_over_the_clouds_of_all_batches():
    """Three clouds of two images in each batch of six, against GUDHI's images of each."""
    spec = {"dim": 0, "sigma": 0.05, "image_range": [0.0, 0.0, 0.0, 0.5], "maximum": 10.0}
    torch.manual_seed(0)
    network = RipsNet(4)
    found, *_ = objective(
        {"top": 1.0},
        topology=RipsNetTopology([network]),
        specs=[ImageSpec(sigma_rule="released", **spec)],
        cloud_size=2,
    )
    found.probe.batches = [(3 * torch.randn(6, 3, 5, 5), torch.zeros(6, dtype=torch.int64)) for _ in range(2)]
    features = [found.student(images, is_feat=True)[0][-1].detach() for images, _ in found.probe.batches]
    clouds = [feature[first : first + 2] for feature in features for first in (0, 2, 4)]
    exact = np.stack([gudhi_image(cloud.numpy(), spec) for cloud in clouds])
    errors = (network(torch.stack(clouds)).detach().double().numpy() - exact) ** 2
    expected = 1 - errors.mean() / ((exact.mean(axis=0) - exact) ** 2).mean()
    assert found.diagnose()["student_r2"] == pytest.approx(expected, rel=1e-3)


def test_probe_batches_are_bytes_that_normalise_to_the_images_themselves(prepared):
    images = load_dataset("noise", "")[0]
    found = probe.probe_batches(images, 12, 4)
    assert len(found) == 5  # whole batches of 70 images, fewer than 16 clouds need
    assert [len(probe.probe_batches(images, 12, points)) for points in (1, 12)] == [2, 5]
    for (pixels, labels), (expected, right) in zip(found, batches_in_order(images, 12), strict=False):
        assert pixels.dtype == torch.uint8 and torch.equal(labels, right)
        assert torch.equal(images.normalize(pixels), expected)


@pytest.mark.parametrize("mode", [True, False])
def test_a_diagnosis_leaves_no_trace(prepared, monkeypatch, mode):
    monkeypatch.setitem(distiller_dict, "noisy", Method("Noisy", "", Noisy, features=(-1,)))
    student, teacher = create_model("resnet8", CLASSES), create_model("resnet8", CLASSES).eval()
    loss = loss_of({"ce": 1.0, "kd": 1.0, "other": 1.0, "top": 1.0}, distill="noisy", tda_layer_s=-3)
    topology = RipsNetTopology([RipsNet(64)])
    found = Distillation(student, teacher, loss, other=Noisy(), topology=topology, widths=(32, 64), epochs=240)
    batches = [(torch.randn(8, 3, 16, 16), torch.arange(8) % CLASSES)] * 2
    found.probe = probe.Probe(batches, [load_spec(CLOUDS / "spec_dim0.json")])
    found.train(mode)
    modes = {name: module.training for name, module in found.named_modules()}
    before = {name: tensor.clone() for name, tensor in found.state_dict().items()}
    random = torch.get_rng_state(), np.random.get_state()[1].copy()
    assert set(found.diagnose()) == {"grad_ce", "grad_kd", "grad_other", "grad_top", "student_r2"}
    assert equal(found.state_dict(), before)
    assert {name: module.training for name, module in found.named_modules()} == modes
    assert torch.equal(torch.get_rng_state(), random[0]) and (np.random.get_state()[1] == random[1]).all()
    assert all(parameter.grad is None for parameter in found.parameters())


@pytest.mark.parametrize("method, kinds", [("RipsNet", ["exact", "RipsNet"]), ("exact", ["exact"])])
def test_figures_show_the_images_of_the_first_probe_batch(prepared, monkeypatch, method, kinds):
    """Those of GUDHI, for the clouds of a plain forward pass in eval mode."""
    student, images = create_model("resnet8", CLASSES), torch.randn(8, 3, 16, 16)
    teacher = create_model("resnet8", CLASSES).eval()
    specs = [load_spec(CLOUDS / f"spec_dim{dim}.json") for dim in (0, 1)]
    networks = [RipsNet(64), RipsNet(64, "sum")]
    topology = RipsNetTopology(networks) if method == "RipsNet" else ExactTopology(specs)
    found = Distillation(student, teacher, loss_of({"top": 1.0}), topology=topology, widths=(64, 64), epochs=240)
    found.probe = probe.Probe([(images, torch.zeros(8, dtype=torch.int64)), (None, None)], specs)
    found.train()
    before = {name: tensor.clone() for name, tensor in found.state_dict().items()}
    panels = []
    monkeypatch.setattr(pictures, "image_panel", panels.append)
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


@pytest.mark.parametrize(
    "topology, cloud_size, expected", [(None, None, 2), ("wasserstein", 2, 2), ("wasserstein", 4, 4)]
)
def test_the_probe_sees_the_images_of_one_process_or_whole_clouds(monkeypatch, topology, cloud_size, expected):
    monkeypatch.setattr(distributed, "world", lambda: 2)
    found = arms.build(arms.images(32), topology=topology, cloud_size=cloud_size)
    assert {len(labels) for _, labels in found.probe.batches} == {expected}


def test_mlkd_is_given_both_networks_logits_of_the_strong_view_of_the_epoch():
    shown = arms.images(8)
    found, kept = arms.build(shown, "mlkd", more=("--seed", 2)).eval(), Kept()
    found.other.forward = kept.forward
    indices = torch.tensor([5, 0, 7, 2])
    ((images, _),) = shown.plain([indices])
    found.begin(3)
    found(images, indices, indices)
    strong = shown.strong_view(2, 3, images, indices)
    for network, output in ((found.student, kept.student), (found.frozen.teacher, kept.teacher)):
        for view, logits in ((images, output.logits), (strong, output.strong.logits)):
            torch.testing.assert_close(logits, network(view))
        assert not torch.allclose(output.strong.logits, output.logits, rtol=0.1)


@pytest.mark.parametrize("topology, cloud_size, expected", [(None, None, None), ("wasserstein", 2, 2)])
def test_the_objective_has_the_options_temperature_and_size_of_clouds(topology, cloud_size, expected):
    found = arms.build(arms.images(8), "dkd", topology=topology, cloud_size=cloud_size, more=("--kd_T", 3))
    assert (found.cloud_size, found.other.T, found.kd.T) == (expected, 3, 3)


def test_the_objective_has_the_schedule_that_the_method_has_for_the_pair(monkeypatch):
    schedule = {"other": ((0.5, 0.25), (1.0, 0.75))}
    method = Method("Kept", "", Kept, beta=8.0, by_pair={("resnet8", "resnet8"): {"schedule": schedule}})
    monkeypatch.setitem(distiller_dict, "kept", method)
    found = arms.build(arms.images(8), "kept", epochs=2)
    for epoch, weight in ((1, 2.0), (2, 6.0)):
        found.begin(epoch)
        assert found.weights["other"] == weight
