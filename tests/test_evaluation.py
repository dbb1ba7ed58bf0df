"""evaluate.py and what is behind it against scikit-learn, SciPy, GUDHI's SimplexTree, and numbers worked by hand."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment
from scipy.spatial.distance import cdist
from scipy.special import log_softmax, rel_entr, softmax
from sklearn.metrics import accuracy_score, log_loss, top_k_accuracy_score
from support.gudhis import gudhi_bars, gudhi_image
from support.running import (
    CLASSES,
    CLOUDS,
    NOISE,
    POINTS,
    TEACHER,
    call,
    make_clouds,
    noise,
    refused,
    teacher,
    work_in,
)

import evaluate
import train_teacher
from dataset import dataset_dict
from helper.files import checkpoint
from helper.files.atomic import finite, read_json, write_json
from helper.files.paths import spec_file, teacher_run
from helper.networks import load_network, load_replaced
from helper.report.evaluation import (
    accuracy_scores,
    agreement,
    bars,
    bottleneck,
    calibration_error,
    class_accuracies,
    wasserstein,
)
from helper.settings import RipsNetChoice
from models import create_model
from ripsnet import RipsNet

STUDENT = Path("save_s_models/student/best.pth")
SCORED = ("--path", STUDENT, "--dataset", "noise", "--device", "cpu")
COMPARED = (*SCORED, "--path_t", TEACHER)
OF_CLOUDS = (*COMPARED, "--batch_size", POINTS)
IMAGES = 40  # of the test set `noise`: three clouds of 12, four images left out


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    work_in(tmp_path, monkeypatch)
    STUDENT.parent.mkdir(parents=True)
    STUDENT.write_bytes(teacher(1))


@pytest.fixture(scope="module")
def stage_2(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stage 2")
    with pytest.MonkeyPatch.context() as patch:
        work_in(folder, patch)
        make_clouds("--dim", "01")
        return {dim: read_json(spec_file(CLOUDS, dim)) for dim in (0, 1)}


@pytest.fixture
def specs(stage_2):
    """The image specs of both dimensions, in the place where stage 2 leaves them."""
    for dim, spec in stage_2.items():
        write_json(CLOUDS / f"spec_dim{dim}.json", spec)
    return stage_2


def write_ripsnet(spec, width=64, seed=0):
    """A RipsNet with random weights where stage 3 would leave it."""
    torch.manual_seed(seed)
    network = RipsNet(width)
    content = {"model": network.state_dict(), "operator": "mean", "spec": spec, "quality": {"r2": 0.0}}
    checkpoint.save(CLOUDS / RipsNetChoice(operator="mean").folder_name(spec["dim"]) / "best.pth", content)
    return network


def scores(*options, path="scores.json"):
    """What evaluate.py writes as JSON."""
    call(evaluate, *options, "--json", path)
    return json.loads(Path(path).read_text())


@torch.no_grad()
def forward(path, layer=-1):
    """Logits and clouds (3, 12, d) of a network on the test set, image by image, and the labels; float64 arrays."""
    model = create_model("resnet8", CLASSES)
    model.load_state_dict(checkpoint.load(path)["model"])
    _, (images, labels) = noise("")
    pixels = torch.from_numpy((images.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.29).float()
    found = [model.eval()(image, is_feat=True) for image in pixels.split(1)]
    feature = torch.cat([features[layer] for features, _ in found])
    feature = feature.mean((2, 3)) if feature.ndim == 4 else feature
    logits = torch.cat([logits for _, logits in found]).double().numpy()
    return logits, feature[:36].reshape(3, POINTS, -1).double().numpy(), labels


@pytest.mark.parametrize("count, classes", [(200, 7), (50, 100), (13, 6)])
def test_accuracies_and_loss_are_scikit_learns(count, classes):
    rng = np.random.default_rng(count)
    logits, labels = rng.normal(0, 2, (count, classes)), rng.integers(0, classes, count)
    found = accuracy_scores(torch.from_numpy(logits), torch.from_numpy(labels))
    every = range(classes)
    assert found["top1"] == pytest.approx(100 * top_k_accuracy_score(labels, logits, k=1, labels=every))
    assert found["top5"] == pytest.approx(100 * top_k_accuracy_score(labels, logits, k=5, labels=every))
    assert found["loss"] == pytest.approx(log_loss(labels, softmax(logits, axis=1), labels=every))


def test_of_equal_logits_the_lower_class_is_predicted():
    """A network that says nothing: class 0 is its first, classes 0 to 4 its first five predictions."""
    found = accuracy_scores(torch.zeros(10, 10), torch.arange(10))
    assert (found["top1"], found["top5"]) == (10, 50)


def two_classes(*confidences):
    """Logits of images for which class 1 has the given probability."""
    return torch.tensor([[1 - p, p] for p in confidences], dtype=torch.float64).log()


def test_calibration_error_worked_by_hand():
    """15 bins. 0.90 (right) and 0.92 (wrong) share (13/15, 14/15]: |1 - 1.82|; 0.59 (right) is in (8/15, 9/15]: 0.41;
    0.61 (wrong) in (9/15, 10/15]: 0.61. (0.82 + 0.41 + 0.61) / 4."""
    logits, labels = two_classes(0.90, 0.92, 0.59, 0.61), torch.tensor([1, 0, 1, 0])
    assert calibration_error(logits, labels) == pytest.approx(46.0)
    assert accuracy_scores(logits, labels)["ece"] == pytest.approx(46.0)


def test_a_confidence_on_an_edge_is_in_the_bin_below():
    """2 bins: 0.5 in (0, 0.5] and 0.75 in (0.5, 1]. In one bin the two gaps, +0.5 and -0.75, would cancel to 0.25."""
    logits, labels = two_classes(0.5, 0.75), torch.tensor([0, 0])
    assert calibration_error(logits, labels, bins=2) == pytest.approx(100 * (0.5 + 0.75) / 2)
    assert calibration_error(logits, labels, bins=1) == pytest.approx(100 * 0.25 / 2)


def test_a_certain_and_right_network_is_calibrated():
    assert calibration_error(1e4 * torch.eye(5), torch.arange(5)) == 0


def test_class_accuracies_worked_by_hand():
    predicted, labels = torch.tensor([0, 1, 0, 3, 3, 0]), torch.tensor([0, 0, 0, 3, 1, 1])
    logits = torch.nn.functional.one_hot(predicted, 4).float()
    assert class_accuracies(logits, labels) == [pytest.approx(200 / 3), 0.0, None, 100.0]


def test_agreement_is_scipys_divergence_of_the_student_from_the_teacher():
    student, teacher = np.random.default_rng(0).normal(0, 2, (2, 30, 6))
    found = agreement(torch.from_numpy(student), torch.from_numpy(teacher))
    p_s, p_t = softmax(student, axis=1), softmax(teacher, axis=1)
    assert found["kl"] == pytest.approx(rel_entr(p_t, p_s).sum(axis=1).mean())
    share = accuracy_score(teacher.argmax(axis=1), student.argmax(axis=1))
    assert 0 < share < 1 and found["equal_predictions"] == pytest.approx(100 * share)


def matchings(one, other, ground):
    """Costs of matching each bar of one diagram with each of the other, or any bar with the diagonal."""
    metric, to_diagonal = ("euclidean", 2**0.5) if ground == 2 else ("chebyshev", 2)
    costs = np.zeros((len(one) + len(other),) * 2)
    costs[: len(one), : len(other)] = cdist(one, other, metric)
    costs[: len(one), len(other) :] = ((one[:, 1] - one[:, 0]) / to_diagonal)[:, None]
    costs[len(one) :, : len(other)] = (other[:, 1] - other[:, 0]) / to_diagonal
    return costs


def wasserstein_by_assignment(one, other):
    costs = matchings(one, other, 2) ** 2
    return costs[linear_sum_assignment(costs)].sum() ** 0.5


def bottleneck_by_assignment(one, other):
    """The smallest of all costs at which a perfect matching needs no larger one."""
    costs = matchings(one, other, np.inf)
    for limit in np.unique(costs):
        above = (costs > limit).astype(float)
        if above[linear_sum_assignment(above)].sum() == 0:
            return limit


@pytest.mark.parametrize("seed", range(5))
def test_distances_of_diagrams_are_those_of_the_best_matching(seed):
    rng = np.random.default_rng(seed)
    births, lengths = rng.uniform(0, 1, (2, 9)), rng.gamma(2, 0.5, (2, 9))
    one, other = (np.column_stack([b, b + x]) for b, x in zip(births, lengths, strict=True))
    one = one[: 4 + seed]
    assert bottleneck(one, other) == pytest.approx(bottleneck_by_assignment(one, other))
    assert wasserstein(one, other) == pytest.approx(wasserstein_by_assignment(one, other), rel=2e-4)


def test_distances_to_an_empty_diagram_are_those_to_the_diagonal():
    one, empty = np.array([[0.0, 2.0], [1.0, 4.0]]), np.empty((0, 2))
    assert bottleneck(one, empty) == pytest.approx(1.5)
    assert wasserstein(empty, one) == pytest.approx((4 / 2 + 9 / 2) ** 0.5, rel=2e-4)
    assert bottleneck(empty, empty) == wasserstein(empty, empty) == 0


def test_bars_of_length_zero_are_no_bars():
    assert bars(torch.tensor([0.0, 0.5, 2.0])).tolist() == [[0.0, 0.5], [0.0, 2.0]]


def test_the_report_of_one_network(capsys):
    report = scores(*SCORED)
    logits, _, labels = forward(STUDENT)
    network = report["network"]
    assert network["top1"] == pytest.approx(100 * accuracy_score(labels, logits.argmax(axis=1)))
    assert 0 < network["top1"] < 100 == network["top5"]  # of three classes
    assert network["loss"] == pytest.approx(-log_softmax(logits, axis=1)[range(IMAGES), labels].mean(), rel=1e-4)
    for label, share in network["per_class"].items():
        of_class = labels == int(label)
        assert share == pytest.approx(100 * (logits.argmax(axis=1) == labels)[of_class].mean())
    state = checkpoint.load(STUDENT)["model"]
    trained = {name: tensor for name, tensor in state.items() if "running" not in name and "num_batches" not in name}
    assert network["parameters"] == sum(tensor.numel() for tensor in trained.values())
    assert network["sha256"] == checkpoint.weights_sha256(state)
    assert (report["dataset"], report["images"], report["versions"]["torch"]) == ("noise", IMAGES, torch.__version__)
    assert report["command"].startswith("python ") and "teacher" not in report
    assert f"top-1 accuracy, % {network['top1']:24.2f}".split() == capsys.readouterr().out.splitlines()[4].split()


def test_the_report_of_two_networks_and_their_topology(specs, capsys):
    networks = {dim: write_ripsnet(spec) for dim, spec in specs.items()}
    report = scores(*OF_CLOUDS, "--topology", "images", "bottleneck", "wasserstein", "--ripsnet", "--dim", "01")
    (logits_s, clouds_s, _), (logits_t, clouds_t, labels) = forward(STUDENT), forward(TEACHER)
    assert report["teacher"]["top1"] == pytest.approx(100 * (logits_t.argmax(axis=1) == labels).mean())
    divergence = rel_entr(softmax(logits_t, axis=1), softmax(logits_s, axis=1)).sum(axis=1).mean()
    assert report["agreement"]["kl"] == pytest.approx(divergence, rel=1e-3)

    topology = report["topology"]
    assert (topology["clouds"], topology["points"], topology["images_left_out"]) == (3, POINTS, 4)
    assert topology["widths"] == [64, 64]
    for dim, spec in specs.items():
        found = topology[f"dim{dim}"]
        student, teacher = ([gudhi_bars(cloud, dim) for cloud in clouds] for clouds in (clouds_s, clouds_t))
        pairs = list(zip(student, teacher, strict=True))
        assert found["bottleneck"] == pytest.approx(np.mean([bottleneck_by_assignment(*p) for p in pairs]), rel=1e-4)
        assert found["wasserstein"] == pytest.approx(np.mean([wasserstein_by_assignment(*p) for p in pairs]), rel=1e-3)

        images = [np.stack([gudhi_image(cloud, spec) for cloud in clouds]) for clouds in (clouds_s, clouds_t)]
        difference = images[0] - images[1]
        distances = np.sqrt((difference**2).sum(axis=1))
        assert found["image_distance"] == pytest.approx(distances.mean(), rel=1e-3) and distances.min() > 0
        assert found["image_mse"] == pytest.approx((difference**2).mean(), rel=1e-3)
        for name, clouds, exact in zip(("student", "teacher"), (clouds_s, clouds_t), images, strict=True):
            with torch.no_grad():
                predicted = networks[dim](torch.from_numpy(clouds).float()).double().numpy()
            r2 = 1 - ((predicted - exact) ** 2).sum() / ((exact.mean(axis=0) - exact) ** 2).sum()
            assert found[f"ripsnet_r2_{name}"] == pytest.approx(r2, rel=1e-3)

    printed = capsys.readouterr().out
    assert "3 clouds of 12 consecutive test images; 4 left out" in printed
    (line,) = [line for line in printed.splitlines() if line.startswith("diagrams: bottleneck")]
    assert line.split()[-2:] == [f"{topology[f'dim{dim}']['bottleneck']:.4f}" for dim in (0, 1)]


@pytest.mark.parametrize("amp, dtype", [("off", torch.float32), ("bf16", torch.bfloat16)])
def test_both_networks_compute_in_the_precision_asked_for(amp, dtype):
    dtypes = []

    def look(module, inputs, output):
        if isinstance(module, torch.nn.Conv2d) and len(output) == IMAGES:
            dtypes.append(output.dtype)

    with torch.nn.modules.module.register_module_forward_hook(look):
        assert scores(*COMPARED, "--amp", amp)["amp"] == amp
    assert dtypes == [dtype] * 2 * 9  # a ResNet8 has seven convolutions, and two where its width changes


def test_bf16_gives_the_accuracy_and_loss_that_a_run_in_bf16_logged():
    call(train_teacher, *SCORED[2:], "--model", "resnet8", "--epochs", 1, "--amp", "bf16", "--name", "half")
    (row,) = checkpoint.load("save_t_models/half/last.pth")["history"]
    half, whole = (
        scores("--path", "save_t_models/half/best.pth", *SCORED[2:], "--amp", amp)["network"] for amp in ("bf16", "off")
    )
    assert half["top1"] == row["test_acc"] and half["loss"] == pytest.approx(row["test_loss"], rel=1e-6)
    assert abs(whole["loss"] / row["test_loss"] - 1) > 1e-5


def test_a_network_agrees_with_itself(specs):
    report = scores(*OF_CLOUDS, "--topology", "images", "bottleneck", "--path", TEACHER)
    assert report["agreement"] == {"equal_predictions": 100, "kl": pytest.approx(0, abs=1e-12)}
    assert report["topology"]["dim0"] == pytest.approx({"image_distance": 0, "image_mse": 0, "bottleneck": 0})


def test_widths_may_differ(specs, capsys):
    """The student's clouds are those of its own layer; a RipsNet for the teacher's width cannot read them."""
    write_ripsnet(specs[0])
    report = scores(*OF_CLOUDS, "--topology", "bottleneck", "--ripsnet", "--tda_layer_s", -3)
    (_, student, _), (_, teacher, _) = forward(STUDENT, -3), forward(TEACHER)
    expected = [
        bottleneck_by_assignment(gudhi_bars(one, 0), gudhi_bars(other, 0))
        for one, other in zip(student, teacher, strict=True)
    ]
    assert report["topology"]["widths"] == [32, 64]
    assert report["topology"]["dim0"]["bottleneck"] == pytest.approx(np.mean(expected), rel=1e-4)
    assert report["topology"]["dim0"]["ripsnet_r2_student"] is None
    assert report["topology"]["dim0"]["ripsnet_r2_teacher"] is not None
    printed = capsys.readouterr().out.splitlines()
    assert any(line.startswith("RipsNet: R^2 on the student's") and line.endswith(" -") for line in printed)
    assert "clouds of widths 32 and 64" in printed[-1]


def test_files_of_other_code_bases_score_alike():
    state = checkpoint.load(STUDENT)["model"]
    files = {"repdistiller.pth": {"epoch": 240, "model": state, "accuracy": torch.tensor(1.0)}, "bare.pth": state}
    expected = scores(*SCORED)["network"]
    for path, content in files.items():
        torch.save(content, path)
        found = scores("--path", path, "--model", "resnet8", *SCORED[2:])["network"]
        assert found == expected | {"path": path}


def test_json_is_printed_in_place_of_the_table(capsys):
    written = scores(*COMPARED)
    capsys.readouterr()
    call(evaluate, *COMPARED, "--json")
    printed = json.loads(capsys.readouterr().out)
    assert printed["network"] == written["network"] and printed["agreement"] == written["agreement"]


def test_numbers_that_are_not_finite_are_null_in_json():
    assert finite({"a": float("nan"), "b": {"c": float("-inf"), "d": 1, "e": "x"}}) == {
        "a": None,
        "b": {"c": None, "d": 1, "e": "x"},
    }


def test_classes_are_printed_when_asked_for(capsys):
    report = scores(*COMPARED)
    assert "\n2 " not in capsys.readouterr().out
    call(evaluate, *COMPARED, "--per_class")
    lines = capsys.readouterr().out.splitlines()[-CLASSES:]
    networks = report["network"], report["teacher"]
    expected = [
        [str(label)] + [f"{network['per_class'][str(label)]:.2f}" for network in networks] for label in range(CLASSES)
    ]
    assert [line.split() for line in lines] == expected


def test_classes_have_the_names_of_the_data_set(monkeypatch):
    numbers = scores(*SCORED)["network"]["per_class"]
    named = dataclasses.replace(NOISE, class_names=lambda data_dir: ["ant", "bee", "cat"])
    monkeypatch.setitem(dataset_dict, "noise", named)
    found = scores(*SCORED)["network"]["per_class"]
    assert found == {"ant": numbers["0"], "bee": numbers["1"], "cat": numbers["2"]}


def test_without_gudhi_predictions_are_scored_and_topology_is_refused(monkeypatch, capsys):
    for module in [name for name in sys.modules if name.split(".")[0] == "gudhi"]:
        monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, "gudhi", None)
    assert scores(*COMPARED)["agreement"]["kl"] > 0
    for options in (("bottleneck",), ("images", "--dim", "1")):
        line = refused(monkeypatch, capsys, evaluate, *OF_CLOUDS, "--topology", *options)
        assert "--topology: needs GUDHI" in line and "pip install gudhi" in line


@pytest.mark.parametrize(
    "options, what",
    [
        ("--batch_size 41 --topology bottleneck", "--batch_size: found 41, but the test set has only 40 images"),
        ("--batch_size 1 --topology bottleneck", "--batch_size: found 1, expected at least 2 points in a cloud"),
        ("--topology images --spec x.json", "x.json: no image spec there"),
        ("--topology images --spec x.json y.json", "--spec: found 2 files, expected one for each dimension of --dim 0"),
        ("--topology images --batch_size 10", "layer-1_n10_eval_released/spec_dim0.json: no image spec there"),
        ("--topology images --tda_layer_t -3 --spec SPEC", "made for layer -1, but this teacher and these options"),
        ("--topology images --pcd_bn train --spec SPEC", "made for pcd_bn eval, but this teacher and these options"),
        ("--ripsnet", "ripsnet_dim0_mean/best.pth: no RipsNet there; fit it with train_ripsnet.py"),
        ("--ripsnet other.pth", "other.pth: fitted to other images than those of the spec; give its own with --spec"),
        ("--ripsnet narrow.pth", "narrow.pth: a RipsNet for clouds of width 32, but layer --tda_layer_t of the"),
        ("--ripsnet a.pth b.pth", "--ripsnet: found 2 files, expected one for each dimension of --dim 0"),
        ("--topology bottleneck --tda_layer_s -9", "--tda_layer_s: found -9, expected 0 (logits) or -1"),
        ("--topology death", "argument --topology: invalid choice: 'death'"),
    ],
)
def test_what_does_not_fit_is_one_line(specs, monkeypatch, capsys, options, what):
    for path, network, spec in (("narrow.pth", RipsNet(32), None), ("other.pth", RipsNet(64), specs[1])):
        checkpoint.save(Path(path), {"model": network.state_dict(), "operator": "mean", "spec": spec})
    options = options.replace("SPEC", str(CLOUDS / "spec_dim0.json")).split()
    assert what in refused(monkeypatch, capsys, evaluate, *OF_CLOUDS, *options)


@pytest.mark.parametrize("option", ["--topology images", "--ripsnet", "--spec x.json", "--model_t resnet8"])
def test_a_comparison_needs_a_teacher(monkeypatch, capsys, option):
    name = option.split()[0]
    line = refused(monkeypatch, capsys, evaluate, *SCORED, *option.split())
    assert f"{name}: needs a teacher to compare with; give its checkpoint with --path_t" in line


@pytest.mark.parametrize(
    "options, what",
    [
        ("--dim 1", "--dim: has no effect with no --topology and no --ripsnet"),
        ("--tda_layer_s -2", "--tda_layer_s: has no effect with no --topology and no --ripsnet"),
        ("--tda_layer_t -2", "--tda_layer_t: has no effect with no --topology and no --ripsnet"),
        ("--batch_size 12", "--batch_size: has no effect with no --topology and no --ripsnet"),
        ("--operator sum", "--operator: has no effect with no --ripsnet"),
        ("--ripsnet_clouds 5", "--ripsnet_clouds: has no effect with no --ripsnet"),
        ("--pcd_bn train", "--pcd_bn: has no effect with no --topology images and no --ripsnet"),
        ("--sigma_rule subsample", "--sigma_rule: has no effect with no --topology images and no --ripsnet"),
        ("--spec x.json", "--spec: has no effect with no --topology images and no --ripsnet"),
        ("--topology bottleneck --spec x.json", "--spec: has no effect with no --topology images and no --ripsnet"),
        (
            "--topology bottleneck --resolution 10",
            "--resolution: has no effect with no --topology images",
        ),
        ("--topology bottleneck --range q99", "--range: has no effect with no --topology images"),
        ("--topology images --operator sum", "--operator: has no effect with no --ripsnet"),
        ("--ripsnet a.pth --ripsnet_clouds 5", "--ripsnet_clouds: has no effect with --ripsnet PATH"),
        ("--per_class --json", "--per_class: has no effect with --json without PATH"),
    ],
)
def test_an_option_without_effect_is_refused(monkeypatch, capsys, options, what):
    assert what in refused(monkeypatch, capsys, evaluate, *COMPARED, *options.split())


def test_ripsnet_s_pooling_is_that_of_the_pair(specs, monkeypatch, capsys):
    """ResNet8 > ResNet8 is of one family: mean. Two families have sum."""
    assert "ripsnet_dim0_mean/best.pth" in refused(monkeypatch, capsys, evaluate, *OF_CLOUDS, "--ripsnet")
    other = Path("save_s_models/vgg/best.pth")
    torch.manual_seed(0)
    model = create_model("vgg8", CLASSES)
    checkpoint.save(other, {"model": model.state_dict(), "arch": "vgg8", "dataset": "noise"})
    line = refused(monkeypatch, capsys, evaluate, *OF_CLOUDS, "--path", other, "--ripsnet")
    assert "ripsnet_dim0_sum/best.pth" in line


@pytest.mark.parametrize("content", ['{"dim": 5}', "[]", "no JSON"])
def test_an_error_of_a_spec_names_its_file_once(monkeypatch, capsys, content):
    Path("x.json").write_text(content)
    line = refused(monkeypatch, capsys, evaluate, *OF_CLOUDS, "--topology", "images", "--spec", "x.json")
    assert line.count("x.json") == 1


@pytest.mark.parametrize("option", ["--json", "--adopt"])
def test_a_path_that_cannot_be_written_is_one_line(monkeypatch, capsys, option):
    Path("file").write_text("")
    torch.save(checkpoint.load(STUDENT)["model"], "bare.pth")
    options = ("--path", "bare.pth", "--model", "resnet8", *SCORED[2:], option, "file/x.pth")
    line = refused(monkeypatch, capsys, evaluate, *options)
    assert f"{option}: cannot write file/x.pth: Not a directory; give another path" in line
    assert [path.name for path in Path().glob("file*")] == ["file"]


def test_an_adopted_network_is_a_teacher_like_ours(capsys):
    """Weights unchanged; architecture, data set, accuracy and epochs known to whoever loads the file."""
    logits, _, labels = forward(STUDENT)
    state = checkpoint.load(STUDENT)["model"]
    foreign = {"epoch": 240, "model": {f"module.{name}": tensor for name, tensor in state.items()}, "accuracy": 1.0}
    torch.save(foreign, "foreign.pth")
    path = Path("save_t_models/resnet8_foreign/best.pth")
    call(evaluate, "--path", "foreign.pth", "--model", "resnet8", *SCORED[2:], "--adopt", path)
    assert f"written to {path}" in capsys.readouterr().out
    network = load_network(path, None, "--model_t", dataset="noise")
    assert (network.arch, network.num_classes, network.dataset, network.epoch) == ("resnet8", CLASSES, "noise", 240)
    assert network.accuracy == pytest.approx(100 * accuracy_score(labels, logits.argmax(axis=1))) != 1.0
    assert network.sha256 == checkpoint.weights_sha256(state)
    assert teacher_run(path) == "resnet8_foreign"
    assert scores("--path", path, *SCORED[2:])["network"]["top1"] == network.accuracy


def test_an_adopted_network_of_unknown_epochs_has_none():
    torch.save(checkpoint.load(STUDENT)["model"], "bare.pth")
    path = Path("save_t_models/bare/best.pth")
    report = scores("--path", "bare.pth", "--model", "resnet8", *SCORED[2:], "--adopt", path)
    assert report["adopted"] == str(path) and "epoch" not in checkpoint.load(path)


def write_norm_student(path, before):
    """A student of NORM as training leaves it, with batch norms that are not the identity."""
    torch.manual_seed(0)
    about = {"distill": "norm", "arch_t": "resnet8", "options": {"segments": 2, "before": before}}
    model = load_replaced(about, create_model("resnet8", CLASSES), CLASSES, NOISE.image_size)
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            for tensor in (module.weight, module.running_var):
                torch.nn.init.uniform_(tensor, 0.5, 1.5)
            for tensor in (module.bias, module.running_mean):
                torch.nn.init.normal_(tensor, std=0.2)
    content = {"model": model.state_dict(), "arch": "resnet8", "num_classes": CLASSES, "dataset": "noise"}
    checkpoint.save(path, content | {"accuracy": 33.0, "epoch": 7, "replaced": about})
    return model.eval()


def test_a_student_of_norm_is_deployed_as_a_plain_network_of_equal_logits():
    model = write_norm_student(STUDENT, "pool")
    path = Path("merged/best.pth")
    report = scores(*SCORED, "--merge", "--adopt", path)
    content = checkpoint.load(path)
    assert "replaced" not in content and content["epoch"] == 7
    assert content["model"].keys() == create_model("resnet8", CLASSES).state_dict().keys()
    _, (images, labels) = noise("")
    pixels = torch.from_numpy((images.transpose(0, 3, 1, 2) / 255 - 0.5) / 0.29).float()
    with torch.no_grad():
        expected = model(pixels).numpy()
    found, _, _ = forward(path)
    assert np.abs(found - expected).max() < 1e-4 * np.abs(expected).max()
    accuracy = 100 * accuracy_score(labels, expected.argmax(axis=1))
    plain, original = (scores("--path", each, *SCORED[2:])["network"] for each in (path, STUDENT))
    assert report["network"]["top1"] == plain["top1"] == original["top1"] == pytest.approx(accuracy)
    assert report["network"]["parameters"] == plain["parameters"] < original["parameters"]


def test_what_cannot_be_merged_is_refused(monkeypatch, capsys):
    line = refused(monkeypatch, capsys, evaluate, *SCORED, "--merge")
    assert f"--merge: {STUDENT} holds nothing that can be merged into its classifier; leave it out" in line
    write_norm_student(STUDENT, "layer3.0.bn1")
    line = refused(monkeypatch, capsys, evaluate, *SCORED, "--merge")
    assert f"--merge: {STUDENT}: the transform before 'layer3.0.bn1' cannot be merged into the classifier" in line


@pytest.mark.parametrize(
    "source, target, what",
    [
        ("bare.pth", TEACHER, f"--adopt: {TEACHER} exists, and is not written over"),
        ("bare.pth", "save_t_models/new", "--adopt: found save_t_models/new, expected a file such as save_t_models/"),
        (STUDENT, "new/best.pth", f"--adopt: {STUDENT} is in this project's format already; use it as it is"),
    ],
)
def test_what_is_not_adopted(monkeypatch, capsys, source, target, what):
    torch.save(checkpoint.load(STUDENT)["model"], "bare.pth")
    before = TEACHER.read_bytes()
    options = ("--path", source, "--model", "resnet8", *SCORED[2:], "--adopt", target)
    assert what in refused(monkeypatch, capsys, evaluate, *options)
    assert TEACHER.read_bytes() == before and not Path("save_t_models/new").exists() and not Path("new").exists()
