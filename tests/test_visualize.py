"""visualize.py: the data beside every figure against GUDHI, NumPy and sums by hand; the axes show that data."""

import csv
import sys
import types
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.collections import LineCollection
from support.gudhis import gudhi_bars, gudhi_image
from support.marks import slow_but
from support.running import CLASSES, CLOUDS, POINTS, TEACHER, call, make_clouds, noise, refused, work_in

import visualize
from dataset import TrainLoader, dataset_dict, load_dataset
from helper.data import class_names
from helper.errors import UserError
from helper.files import checkpoint
from helper.files.atomic import csv_bytes, read_json, write_json
from helper.files.paths import spec_file
from helper.report import figure_data, figures
from helper.settings import Data, RipsNetChoice
from models import create_model
from ripsnet import ImageSpec, RipsNet

WIDTH, TRAINING = 64, 7  # channels of resnet8; of the ten clouds, those that trained
STUDENT = Path("save_s_models/resnet8-resnet8_noise_TopKD_trial1")
PAIR = {"dataset": "noise", "teacher": "a", "student": "b", "teacher_sha256": "0"}
WIDE = Path("save_s_models/wide/best.pth")
SET = CLOUDS.name  # not of the default number of points, so figures name it
DATA = ("--path_t", TEACHER, "--dataset", "noise", "--device", "cpu")


@pytest.fixture(autouse=True)
def drawn(tmp_path, monkeypatch):
    """A folder with a teacher and no more; the figures drawn in a test, by the names of their files."""
    work_in(tmp_path, monkeypatch)
    found, save = {}, figures.save

    def keep(path, figure, data):
        found[path.name] = figure
        save(path, figure, data)

    monkeypatch.setattr(figures, "save", keep)
    monkeypatch.setattr(figures, "DPI", 30)  # a fraction of the time
    return found


def save_network(path, arch="resnet8", seed=0, **about):
    torch.manual_seed(seed)
    model = create_model(arch, CLASSES).eval()
    checkpoint.save(path, {"model": model.state_dict(), "arch": arch, "dataset": "noise", **about})
    return model


def teacher_network():
    model = create_model("resnet8", CLASSES).eval()
    model.load_state_dict(checkpoint.load(TEACHER)["model"])
    return model


def read(kind):
    """What stage 2 left, chunk by chunk."""
    return np.concatenate([np.load(path) for path in sorted((CLOUDS / kind).glob("*.npy"))])


def read_spec(dim):
    return read_json(spec_file(CLOUDS, dim))


def fit(dim, clouds=TRAINING):
    """Stages 2 and 3: ten clouds, and a RipsNet that is not trained, for the first `clouds` of the training part."""
    make_clouds("--dim", dim)
    torch.manual_seed(1)
    network = RipsNet(WIDTH, "mean")
    content = {"model": network.state_dict(), "operator": "mean", "spec": read_spec(dim)}
    content["quality"] = {"r2": 0.0, "train_clouds": clouds, "val_clouds": 10 - TRAINING}
    folder = ripsnet_folder(dim) if clouds == TRAINING else ripsnet_folder(dim, clouds)
    checkpoint.save(folder / "best.pth", content)
    return network


def ripsnet_folder(dim, clouds=None):
    return CLOUDS / RipsNetChoice(operator="mean", ripsnet_clouds=clouds).folder_name(dim)


def write_row(run, method, variant="", schedule="", folder="results/runs", **about):
    """A row of results, as far as it says what a run is."""
    path = Path(folder) / f"{run}.csv"
    path.parent.mkdir(parents=True, exist_ok=True)
    row = {"run": run, "method": method, "variant": variant, "schedule": schedule, **PAIR, **about}
    path.write_bytes(csv_bytes([row]))


def rows_of(name):
    with open(f"results/figures/{name}.csv", newline="") as file:
        return list(csv.DictReader(file))


def numbers(rows, key):
    return np.array([float(row[key]) for row in rows])


def training_clouds(model, count, seed=0):
    """Pooled features of the first batches, computed here."""
    loader = TrainLoader(load_dataset("noise", "")[0], POINTS, seed, drop_last=True)
    with torch.no_grad():
        clouds = [model(images, is_feat=True)[0][-1] for images, _, _ in loader.epoch(0)][:count]
    return torch.stack(clouds)


def r2(found, exact, baseline):
    return 1 - np.mean((found - exact) ** 2) / np.mean((baseline - exact) ** 2)


def texts(figure):
    return "\n".join([figure.get_suptitle(), *(ax.get_title() for ax in figure.axes)])


@pytest.mark.parametrize("dim", slow_but([0], [0, 1]))
def test_pi_shows_validation_clouds_by_their_error(drawn, dim):
    network = fit(dim)
    call(visualize, "pi", *DATA, "--batch_size", POINTS, "--dim", dim, "--clouds", 3)
    clouds, exact = read("clouds").astype(np.float32), read(f"images_dim{dim}")
    with torch.no_grad():
        found = network(torch.from_numpy(clouds)).numpy()
    errors = np.mean((found - exact)[TRAINING:] ** 2, axis=1)
    expected = TRAINING + np.argsort(errors)

    name = f"pi_teacher_{SET}_dim{dim}_mean"
    assert Path(f"results/figures/{name}.png").read_bytes().startswith(b"\x89PNG")
    rows = rows_of(name)
    assert [row["panel"] for row in rows[::400]] == [f"cloud {i}" for i in expected]
    for i, cloud in enumerate(expected):
        of_cloud = rows[400 * i : 400 * (i + 1)]
        np.testing.assert_allclose(numbers(of_cloud, "exact"), exact[cloud], rtol=1e-5)
        np.testing.assert_allclose(numbers(of_cloud, "exact"), gudhi_image(clouds[cloud], read_spec(dim)), atol=1e-4)
        np.testing.assert_allclose(numbers(of_cloud, "ripsnet"), found[cloud], rtol=1e-5)
    mean_image = exact[:TRAINING].mean(axis=0)
    np.testing.assert_allclose(numbers(rows[:400], "training_mean"), mean_image, rtol=1e-4, atol=1e-7)
    low_b, high_b, low_p, high_p = read_spec(dim)["image_range"]
    np.testing.assert_allclose(numbers(rows[:20], "birth"), np.linspace(low_b, high_b, 20))
    np.testing.assert_allclose(numbers(rows[:400:20], "persistence"), np.linspace(low_p, high_p, 20))

    figure = drawn[name]
    assert f"3 validation clouds of {POINTS} points" in texts(figure)
    assert f"$R^2$ = {r2(found[TRAINING:], exact[TRAINING:], mean_image):.3f}" in texts(figure)
    assert f"cloud {expected[-1]}\nMSE {errors.max():.4f}" in texts(figure)
    images = [np.asarray(ax.images[0].get_array()) for ax in figure.axes if ax.images]
    first = [exact[expected[0]], found[expected[0]], (found - exact)[expected[0]]]
    for image, pixels in zip(images[::3], first, strict=True):
        image = image.T if dim == 0 else image
        np.testing.assert_allclose(image, pixels.reshape(20, 20), rtol=1e-4, atol=1e-6)
    if dim == 0:
        curves = {line.get_label(): line.get_ydata() for line in figure.axes[2].lines}
        np.testing.assert_allclose(curves["exact"], exact[expected[2]].reshape(20, 20)[:, 0], rtol=1e-5)
        np.testing.assert_allclose(curves["RipsNet"], found[expected[2]].reshape(20, 20).mean(axis=1), rtol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("dim", [0, 1])
def test_pi_of_students_of_the_same_and_of_another_width(drawn, dim):
    network = fit(dim)
    student, wide = save_network(STUDENT / "best.pth", seed=3), save_network(WIDE, "resnet8x4", seed=4)
    call(
        visualize,
        *("pi", *DATA, "--batch_size", POINTS, "--dim", dim, "--clouds", 4),
        *("--path_s", STUDENT / "best.pth", WIDE, "--labels", "teacher", "student", "wide"),
    )
    [name] = drawn
    assert name == f"pi_{STUDENT.name}_and_1_more_{SET}_dim{dim}_mean"
    rows, title = rows_of(name), texts(drawn[name])
    for i, (label, model) in enumerate([("teacher", teacher_network()), ("student", student), ("wide", wide)]):
        of_network = rows[400 * i : 400 * (i + 1)]
        assert {row["panel"] for row in of_network} == {label}
        clouds = training_clouds(model, 4)
        exact = np.array([gudhi_image(cloud.numpy(), read_spec(dim)) for cloud in clouds])
        np.testing.assert_allclose(numbers(of_network, "exact"), exact[0], atol=1e-4)
        if label == "wide":
            assert {row["ripsnet"] for row in of_network} == {""}
            assert "wide\nwidth 256, RipsNet's 64" in title
            continue
        with torch.no_grad():
            found = network(clouds).numpy()
        np.testing.assert_allclose(numbers(of_network, "ripsnet"), found[0], atol=1e-5)
        assert f"{label}\nMSE {np.mean((found - exact)[0] ** 2):.4f}, $R^2$" in title
        shown = float(title.split(f"{label}\n")[1].split("$R^2$ ")[1].split("\n")[0])
        assert shown == pytest.approx(r2(found, exact, exact.mean(axis=0)), rel=0.01)
    assert "over 4 batches" in title


@pytest.mark.parametrize("best, epochs", slow_but([((7, 3), [7, 8, 9])], [((9, 2), [8, 9]), ((7, 3), [7, 8, 9])]))
def test_the_folder_of_a_run_stands_for_its_epochs(drawn, best, epochs):
    """Each set of weights once: the best may be those of the last epoch."""
    fit(0)
    write_row(STUDENT.name, "TopKD")
    for name, epoch, seed in (("last", 9, 2), ("best", *best), ("previous", 8, 1)):
        history = {} if name == "best" else {"history": [{}] * epoch}
        save_network(STUDENT / f"{name}.pth", seed=seed, epoch=epoch + (name != "best"), **history)
    call(visualize, "pi", *DATA, "--batch_size", POINTS, "--path_s", STUDENT)
    panels = list(dict.fromkeys(row["panel"] for row in rows_of(f"pi_{STUDENT.name}_epochs_{SET}_dim0_mean")))
    assert panels == ["resnet8 teacher", *(f"resnet8 TopKD, epoch {epoch}" for epoch in epochs)]


def test_scatter_counts_pixels(drawn):
    network = fit(0)
    call(visualize, "scatter", *DATA, "--batch_size", POINTS)
    name, exact = f"scatter_teacher_{SET}_dim0_mean", read("images_dim0")
    with torch.no_grad():
        found = network(torch.from_numpy(read("clouds").astype(np.float32))).numpy()
    mean = exact[:TRAINING].mean(axis=0)
    assert f"$R^2$ = {r2(found[TRAINING:], exact[TRAINING:], mean):.3f}" in texts(drawn[name])

    distinct = [images.reshape(-1, 20, 20).mean(axis=2) for images in (exact[TRAINING:], found[TRAINING:], mean)]
    panels = [(distinct[0], distinct[1]), (distinct[0] - distinct[2], distinct[1] - distinct[2])]
    rows = rows_of(name)
    names = list(dict.fromkeys(row["panel"] for row in rows))
    for panel, pixels, ax in zip(names, panels, drawn[name].axes, strict=False):
        bins = [row for row in rows if row["panel"] == panel]
        counts = numbers(bins, "pixels")
        assert counts.sum() == 3 * 20 and counts.min() > 0
        width = (max(map(np.max, pixels)) - min(map(np.min, pixels))) / 80
        for key, values in zip(("exact", "ripsnet"), pixels, strict=True):
            centres = np.repeat(numbers(bins, key), counts.astype(int))
            np.testing.assert_allclose(np.sort(centres), np.sort(values.ravel()), atol=0.51 * width)
        assert ax.collections[0].get_array().sum() == 3 * 20


@pytest.mark.slow
def test_a_ripsnet_of_fewer_clouds_is_shown_on_the_same_validation_clouds(drawn):
    network = fit(0, clouds=2)
    call(visualize, "pi", *DATA, "--batch_size", POINTS, "--ripsnet_clouds", 2)
    exact = read("images_dim0")
    with torch.no_grad():
        found = network(torch.from_numpy(read("clouds")[TRAINING:].astype(np.float32))).numpy()
    expected = r2(found, exact[TRAINING:], exact[:2].mean(axis=0))
    [figure] = drawn.values()
    assert f"3 validation clouds of {POINTS} points, $R^2$ = {expected:.3f}" in texts(figure)
    assert "RipsNet with mean pooling fitted to 2 clouds" in texts(figure)
    rows = rows_of(f"pi_teacher_{SET}_dim0_mean_clouds2")
    assert {row["panel"] for row in rows} == {f"cloud {i}" for i in range(TRAINING, 10)}


def test_a_density_worked_by_hand():
    density = figures.Density.of("values", "value", np.array([0.0, 0.1, 0.2]), np.array([0.4, 0.4, 1.0]), bins=2)
    assert density.rows() == [
        {"panel": "values", "exact": 0.25, "ripsnet": 0.25, "pixels": 2},
        {"panel": "values", "exact": 0.25, "ripsnet": 0.75, "pixels": 1},
    ]
    figure = figures.density_panels("title", [density, density])
    mesh = figure.axes[0].collections[0]
    assert mesh.get_array().filled(-1).tolist() == [[2, -1], [1, -1]]  # rows of the mesh go up the axis of RipsNet
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["RipsNet = exact"]
    assert all(ax.get_legend() is None for ax in figure.axes)  # no legend lies on the data


def test_diagrams_are_gudhis(drawn):
    write_row(STUDENT.name, "TopKD")
    student = save_network(STUDENT / "best.pth", seed=3)
    call(visualize, "diagram", *DATA, "--batch_size", POINTS, "--seed", 5, "--path_s", STUDENT / "best.pth")
    [(name, figure)] = drawn.items()
    rows = rows_of(name)
    assert figure.axes[0].get_title() == "resnet8 teacher" and figure.axes[1].get_title() == "resnet8 TopKD"
    for column, (label, model) in enumerate([("resnet8 teacher", teacher_network()), ("resnet8 TopKD", student)]):
        cloud = training_clouds(model, 1, seed=5)[0].numpy()
        for dim in (0, 1):
            of_dim = [row for row in rows if (row["network"], row["dim"]) == (label, str(dim))]
            found = np.column_stack([numbers(of_dim, "birth"), numbers(of_dim, "death")])
            expected = gudhi_bars(cloud, dim)
            expected = expected[expected[:, 1] > expected[:, 0]]
            assert len(found) == len(expected) > 0
            np.testing.assert_allclose(np.sort(found, axis=0), np.sort(expected, axis=0), rtol=1e-4, atol=1e-6)

            [points] = [line for line in figure.axes[column].lines if line.get_label() == f"dimension {dim}"]
            assert sorted(map(tuple, points.get_xydata())) == sorted(map(tuple, found))
            barcode = figure.axes[column + 2 * (dim + 1)]
            [segments] = [item for item in barcode.collections if isinstance(item, LineCollection)]
            assert sorted((a[0], b[0]) for a, b in segments.get_segments()) == sorted(map(tuple, found))
            drawn_by = [segment[0][0] if dim else segment[1][0] for segment in segments.get_segments()]
            assert drawn_by == sorted(drawn_by)  # by birth in dimension 1, by death where all are born at 0
            total = (expected[:, 1] - expected[:, 0]).sum()
            assert barcode.get_title() == f"dimension {dim}: {len(found)} bars, total {total:.1f}"


def test_a_network_trained_alone_is_named_by_its_architecture(drawn):
    write_row("teacher", "CE", teacher="")
    call(visualize, "diagram", *DATA, "--batch_size", POINTS)
    assert drawn["diagram_teacher"].axes[0].get_title() == "resnet8"
    call(visualize, "diagram", *DATA, "--batch_size", POINTS, "--layer", -2)
    assert drawn["diagram_teacher_layer-2"].get_suptitle().endswith(" of layer -2")


def features_of(model, index):
    pixels, _ = noise("")[1]
    images = torch.from_numpy((pixels[index].transpose(0, 3, 1, 2) / 255 - 0.5) / 0.29).float()
    with torch.no_grad():
        return model(images, is_feat=True)[0][-1].numpy()


def silhouette_by_hand(points, labels):
    values = []
    for i, point in enumerate(points):
        distances = np.linalg.norm(points - point, axis=1)
        own = distances[(labels == labels[i]) & (np.arange(len(labels)) != i)].mean()
        other = min(distances[labels == label].mean() for label in set(labels) - {labels[i]})
        values.append((other - own) / max(own, other))
    return np.mean(values)


def test_pca_of_the_same_images_in_every_network(drawn):
    write_row(STUDENT.name, "TopKD", "d25")
    student = save_network(STUDENT / "best.pth", seed=3)
    options = ("--path_s", STUDENT / "best.pth", "--classes", 2, 0, "--images", 5, "--method", "pca", "--seed", 2**40)
    call(visualize, "umap", *DATA, *options)
    [(name, figure)] = drawn.items()
    assert name == f"pca_{STUDENT.name}"
    data = np.load(f"results/figures/{name}.npz")
    assert data["network"].tolist() == ["resnet8 teacher", "resnet8 TopKD d25"]
    assert data["class_name"].tolist() == ["2", "0"] and data["label"].tolist() == [0] * 5 + [1] * 5
    labels = np.array([2, 0])[data["label"]]
    assert noise("")[1][1][data["image"]].tolist() == labels.tolist() and len(set(data["image"])) == 10
    for i, model in enumerate((teacher_network(), student)):
        features = features_of(model, data["image"])
        centred = features.astype(np.float64) - features.mean(axis=0)
        u, s, _ = np.linalg.svd(centred, full_matrices=False)
        np.testing.assert_allclose(np.abs(data["embedding"][i]), np.abs(u * s)[:, :2], rtol=1e-2, atol=1e-3)
        scores = [silhouette_by_hand(points, labels) for points in (features, data["embedding"][i])]
        np.testing.assert_allclose(data["silhouette"][i], scores, rtol=1e-3, atol=1e-4)
        title = figure.axes[i].get_title().replace("\n", " ")
        assert f"silhouette {scores[0]:.3f} ({WIDTH} dimensions), {scores[1]:.3f} (plane)" in title
        offsets = np.concatenate([dots.get_offsets() for dots in figure.axes[i].collections])
        np.testing.assert_array_equal(offsets, data["embedding"][i])


def test_umap_gets_the_same_parameters_for_every_network(drawn, monkeypatch):
    save_network(STUDENT / "best.pth", seed=3)
    calls = []

    class UMAP:
        def __init__(self, **parameters):
            calls.append(parameters)

        def fit_transform(self, features):
            assert features.shape == (10, WIDTH)
            return features[:, 3:5]

    monkeypatch.setitem(sys.modules, "umap", types.SimpleNamespace(UMAP=UMAP))
    call(visualize, "umap", *DATA, "--path_s", STUDENT / "best.pth", "--classes", 0, 1, "--images", 5, "--seed", 6)
    assert calls == [{"n_neighbors": 9, "min_dist": 0.1, "random_state": 6, "n_jobs": 1}] * 2
    [(name, figure)] = drawn.items()
    data = np.load(f"results/figures/{name}.npz")
    np.testing.assert_allclose(data["embedding"][0], features_of(teacher_network(), data["image"])[:, 3:5], atol=1e-5)
    assert name.startswith("umap_") and figure.axes[0].get_xlabel() == "UMAP 1"
    assert "UMAP, 9 neighbours, minimum distance 0.1, seed 6" in texts(figure)


def test_without_umap_learn_a_line_says_that_it_is_t_sne(drawn, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "umap", None)  # its import fails
    call(visualize, "umap", *DATA, "--images", 5)
    assert capsys.readouterr().out.startswith("umap-learn cannot be imported (")
    [(name, figure)] = drawn.items()
    assert name == "tsne_teacher" and "t-SNE, perplexity 4, seed 0" in texts(figure)
    assert np.load(f"results/figures/{name}.npz")["embedding"].shape == (1, 5 * CLASSES, 2)


def write_log(path, **columns):
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    rows = zip(*columns.values(), strict=True)
    path.write_text("\n".join(",".join(map(str, row)) for row in [columns, *rows]) + "\n")


def test_curves_are_means_over_the_seeds(drawn):
    """Runs are known by their rows, whatever their names."""
    write_log("results/logs/one.csv", epoch=[1, 2, 3], test_acc=[10, 20, 40], kd=[3, 2, 1])
    write_log("results/logs/a_trial2.csv", epoch=[1, 2], test_acc=[14, 26], kd=[5, 2])
    write_log("save_s_models/a_trial1/log.csv", epoch=[1, 2], test_acc=[11, 22], top=[0.5, ""])
    write_row("one", "KD", trial=1)
    write_row("a_trial2", "KD", trial=2)
    write_row("a_trial1", "TopKD", "d25", trial=1)
    call(visualize, "curves", "--logs", "results/logs/one.csv", "results/logs/a_trial2.csv", "save_s_models/a_trial1")
    [(name, figure)] = drawn.items()
    assert name == "curves_a-b_noise_KD_trial1-2_TopKD_d25"
    rows = [tuple(row.values()) for row in rows_of(name)]
    assert rows == [
        ("KD", "test_acc", "1", "2", "12.0", "2.82843"),  # (14 - 10) / sqrt(2)
        ("KD", "test_acc", "2", "2", "23.0", "4.24264"),
        ("KD", "test_acc", "3", "1", "40.0", ""),
        ("KD", "kd", "1", "2", "4.0", "1.41421"),
        ("KD", "kd", "2", "2", "2.0", "0.0"),
        ("KD", "kd", "3", "1", "1.0", ""),
        ("TopKD d25", "test_acc", "1", "1", "11.0", ""),
        ("TopKD d25", "test_acc", "2", "1", "22.0", ""),
        ("TopKD d25", "top", "1", "1", "0.5", ""),
    ]
    accuracy = figure.axes[0]
    assert accuracy.get_ylabel() == "test accuracy (%)"
    kd, topkd = accuracy.lines
    assert (kd.get_label(), topkd.get_label()) == ("KD (n = 2)", "TopKD d25 (n = 1)")
    assert kd.get_xydata().tolist() == [[1, 12], [2, 23], [3, 40]] and topkd.get_ydata().tolist() == [11, 22]
    for look in ("color", "linestyle", "marker"):
        assert getattr(kd, f"get_{look}")() != getattr(topkd, f"get_{look}")(), look
    band = accuracy.collections[0].get_paths()[0].vertices
    assert (band[:, 0].min(), band[:, 0].max()) == (1, 2)
    np.testing.assert_allclose([band[:, 1].min(), band[:, 1].max()], [12 - 2.82843, 23 + 4.24264])
    assert not any(len(path.vertices) for path in accuracy.collections[1].get_paths())
    assert "a-b_noise: mean over n runs, band of one standard deviation" == figure.get_suptitle()


def test_curves_of_a_value_that_is_not_finite(drawn):
    for trial, r2 in ((1, "-inf"), (2, "-3.0")):
        write_log(f"results/logs/x_trial{trial}.csv", epoch=[1, 2], test_acc=[10, 20], student_r2=[r2, -2])
        write_row(f"x_trial{trial}", "TopKD", trial=trial)
    call(visualize, "curves", "--logs", "results/logs")
    rows = [row for row in rows_of(*drawn) if row["column"] == "student_r2"]
    assert [(row["mean"], row["std"]) for row in rows] == [("-inf", "nan"), ("-2.0", "0.0")]


def curves_of(drawn, *runs):
    """(name of the file, title, labels) of the curves of logs with one epoch."""
    for run in runs:
        write_log(f"results/logs/{run}.csv", epoch=[1], test_acc=[10])
    call(visualize, "curves", "--logs", "results/logs")
    [(name, figure)] = drawn.items()
    return name, figure.get_suptitle(), [line.get_label() for line in figure.axes[0].lines]


@pytest.mark.parametrize(
    "rows, file, title, labels",
    [
        ([("KD", "", "e8"), ("TopKD", "", "e8")], "curves_a-b_noise_KD_TopKD_e8", "a-b_noise (e8)", ["KD", "TopKD"]),
        ([("KD", "", "e8"), ("KD", "", "")], "curves_a-b_noise_KD", "a-b_noise", ["KD e8", "KD"]),
        ([("KD", "", ""), ("KD", "T2", "")], "curves_a-b_noise_KD_KD_T2", "a-b_noise", ["KD", "KD T2"]),
        (
            [("TopKD", "d25", ""), ("TopKD", "d25", "")],
            "curves_a-b_noise_TopKD_d25_trial1-2",
            "a-b_noise",
            ["TopKD d25"],
        ),
        ([("TopKD", "d25", "")], "curves_x1_trial1", "a-b_noise", ["TopKD d25"]),
    ],
)
def test_curves_are_named_by_what_distinguishes_them(drawn, rows, file, title, labels):
    runs = [f"x{number}_trial1" for number, _ in enumerate(rows, 1)]
    for trial, (run, row) in enumerate(zip(runs, rows, strict=True), 1):
        write_row(run, *row, trial=trial if len(set(rows)) == 1 else 1)
    found = curves_of(drawn, *runs)
    assert found[0] == file and found[1].startswith(f"{title}: mean over n runs")
    assert [label.split(" (n")[0] for label in found[2]] == labels


@pytest.mark.parametrize("trials, end", [((1,), ""), ((2,), "_trial2"), ((2, 1), "_trial2-1")])
def test_files_are_named_by_other_trials_than_the_first(trials, end):
    runs = [f"{loss}_trial{trial}" for loss in ("KD", "TopKD") for trial in trials]
    for run in runs:
        loss, _, trial = run.partition("_trial")
        write_row(run, loss, trial=trial)
    shown = figure_data.Shown("teacher", tuple(Path(f"save_s_models/{run}/best.pth") for run in runs))
    assert shown.file_name == f"a-b_noise_KD_TopKD{end}"


def test_losses_of_unequal_trials_are_named_by_their_own():
    for run in ("KD_trial1", "KD_trial2", "TopKD_trial1"):
        loss, _, trial = run.partition("_trial")
        write_row(run, loss, trial=trial)

    def name(*runs):
        return figure_data.Shown("teacher", tuple(Path(f"save_s_models/{run}/best.pth") for run in runs)).file_name

    assert name("KD_trial1", "TopKD_trial1", "KD_trial2") == "a-b_noise_KD_trial1-2_TopKD"
    assert name("KD_trial2", "TopKD_trial1") == "a-b_noise_KD_trial2_TopKD"


@pytest.mark.parametrize("files, end", [
    (("best.pth",), ""), (("last.pth",), "_last"), ((None,), "_epochs"), (("best.pth", "last.pth"), "_best_last"),
])  # fmt: skip
def test_other_files_of_a_run_than_its_best_are_in_a_figure_s_name(files, end):
    """None: the folder."""
    for loss in ("KD", "TopKD"):
        write_row(loss, loss)
        Path("save_s_models", loss).mkdir(parents=True)
    for losses, name in ((["KD"], "KD"), (["KD", "TopKD"], "a-b_noise_KD_TopKD")):
        shown = [Path("save_s_models", loss, file or "") for loss in losses for file in files]
        if len(shown) == 1 or len(losses) > 1:
            assert figure_data.Shown("teacher", tuple(shown)).file_name == name + end


def test_runs_of_other_numbers_of_processes_are_others(drawn):
    for run, processes in (("x_trial1", ""), ("x_trial2", "1"), ("x_trial3", "4")):
        write_row(run, "KD", processes=processes)
    labels = curves_of(drawn, "x_trial1", "x_trial2", "x_trial3")[2]
    assert labels == ["KD (x_trial1) (n = 2)", "KD (x_trial3) (n = 1)"]


def test_students_of_two_teachers_of_one_architecture_are_two(drawn):
    for run, sha256 in (("x_trial1", "1"), ("x_trial2", "2")):
        write_row(run, "KD", teacher_sha256=sha256)
    _, _, labels = curves_of(drawn, "x_trial1", "x_trial2")
    assert labels == ["KD (x_trial1) (n = 1)", "KD (x_trial2) (n = 1)"]


def test_students_of_two_ripsnets_are_not_averaged(drawn):
    """Those of an earlier version's rows, which do not say, are."""
    write_row("x_trial1", "TopKD")
    for run, sha256 in (("x_trial2", "1"), ("x_trial3", "1"), ("x_trial4", "2")):
        write_row(run, "TopKD", topology_sha256=sha256)
    assert curves_of(drawn, "x_trial1", "x_trial2", "x_trial3")[2] == ["TopKD (n = 3)"]
    with pytest.raises(UserError, match="x_trial3.*, .*x_trial4.*: no repetitions of one run, as their RipsNets"):
        curves_of(drawn, "x_trial1", "x_trial2", "x_trial3", "x_trial4")


def test_logs_without_rows_are_not_averaged(drawn):
    """Neither are those whose rows are of an earlier version, without the columns that say what a run is."""
    Path("results/runs").mkdir(parents=True)
    for run in ("x_trial1", "x_trial2"):
        Path(f"results/runs/{run}.csv").write_bytes(csv_bytes([{"run": run, "method": "KD", **PAIR}]))
    name, title, labels = curves_of(drawn, "x_trial1", "x_trial2", "y")
    assert (name, title) == ("curves_x_trial1_and_2_more", "training: mean over n runs")
    assert labels == ["x_trial1 (n = 1)", "x_trial2 (n = 1)", "y (n = 1)"]


def test_runs_that_have_not_ended_are_known_by_their_options(drawn):
    options = {"model_s": "b", "alpha": 1.0, "seed": 1, "trial": 1, "name": None, "resume": False}
    for run, changed in (("x", {}), ("y", {"seed": 2, "trial": 2, "resume": True}), ("z", {"alpha": 2.0})):
        write_log(f"save_s_models/{run}/log.csv", epoch=[1], test_acc=[10])
        write_json(Path(f"save_s_models/{run}/args.json"), {"args": options | changed})
    call(visualize, "curves", "--logs", *sorted(Path("save_s_models").iterdir()))
    [(name, figure)] = drawn.items()
    assert name == "curves_x_and_2_more"
    assert [line.get_label() for line in figure.axes[0].lines] == ["x (n = 2)", "z (n = 1)"]


def test_rows_lie_beside_the_logs(drawn):
    for run in ("x", "y"):
        write_log(f"elsewhere/logs/{run}.csv", epoch=[1], test_acc=[10])
        write_row(run, "KD", folder="elsewhere/runs")
        write_row(run, run)  # of other runs with these names
    call(visualize, "curves", "--logs", "elsewhere/logs")
    assert list(drawn) == ["curves_a-b_noise_KD"]


@pytest.mark.parametrize("dim, bars_of_values", [(0, 1), (1, 2)])
def test_every_row_of_images_has_a_colour_bar(dim, bars_of_values):
    """In dimension 0 one for the exact images and RipsNet's, which share a scale, and one for the difference."""
    spec = ImageSpec(dim, 0.4, "released", (0, 1 if dim else 0, 0, 1), 1e3)
    images = np.random.default_rng(0).random((2, 400))
    figure = figures.image_panels("title", [figures.Images("name", "", *images)], spec, images[0])
    bars = [ax for ax in figure.axes if hasattr(ax, "_colorbar")]
    scale, largest = (0, images.max()), np.abs(images[1] - images[0]).max()
    expected = [scale] * bars_of_values + [(-largest, largest)]
    assert [bar.get_ylim() for bar in bars] == [pytest.approx(limits) for limits in expected]
    drawn = [ax.images[0].get_clim() for ax in figure.axes if ax.images]
    assert drawn == [pytest.approx(limits) for limits in (scale, scale, (-largest, largest))]


@pytest.mark.slow
def test_images_of_zeros_and_a_short_last_line():
    spec = ImageSpec(1, 0.4, "released", (0, 1, 0, 1), 1e3)
    panels = [figures.Images(str(i), "", np.zeros(400), None) for i in range(5)]
    figure = figures.image_panels("title", panels, spec, np.zeros(400))
    figure.savefig("figure.png")
    assert [ax.get_title() for ax in figure.axes if ax.get_title()] == list("01234")


@pytest.mark.parametrize("figure", ["pi", "scatter"])
def test_refuses_a_ripsnet_of_other_images_and_a_missing_one(monkeypatch, capsys, figure):
    fit(0)
    options = (figure, *DATA, "--batch_size", POINTS)
    write_json(CLOUDS / "spec_dim0.json", read_spec(0) | {"sigma": 0.5})
    assert "fitted to other images" in refused(monkeypatch, capsys, visualize, *options)
    (ripsnet_folder(0) / "best.pth").unlink()
    line = refused(monkeypatch, capsys, visualize, *options)
    assert "no RipsNet there; fit it with train_ripsnet.py" in line


@pytest.mark.parametrize(
    "options, what",
    [
        ("diagram --path_s nowhere.pth", "nowhere.pth: no such file"),
        ("diagram --path_s nan.pth --model_s resnet8", "nan.pth: the weights 'conv1.weight' hold values that are not"),
        ("diagram --out empty/file/x", "--out: cannot write empty/file/x/diagram_teacher.csv: Not a directory"),
        ("diagram --path_s empty", "empty: no checkpoint in this folder; expected best.pth, last.pth or previous.pth"),
        ("diagram --path_s bare.pth", "bare.pth: the file does not name its architecture; give it with --model_s"),
        ("diagram --path_s wide.pth wide.pth", "wide.pth: a second network called"),
        ("diagram --labels a b", "--labels: found 2, expected 1: the teacher's and one for each --path_s"),
        ("diagram --batch_size 71", "--batch_size: found 71, but noise has only 70 training images"),
        ("diagram --layer -9", "--layer: found -9, expected 0 (logits) or -1"),
        ("umap --classes 0 3", "--classes: found '3', expected numbers from 0 to 2 or names: 0, 1, 2"),
        ("umap --classes 1", "--classes: found 1, expected at least two different classes"),
        ("umap --classes 1 1", "--classes: found 1, 1, expected at least two different classes"),
        ("pi --seed 1", "--seed: has no effect without --path_s; leave it out"),
        ("pi --tda_layer_s -2", "--tda_layer_s: has no effect without --path_s; leave it out"),
        ("pi --model_s resnet8", "--model_s: has no effect without --path_s; leave it out"),
        ("diagram --model_s resnet8", "--model_s: has no effect without --path_s; leave it out"),
        ("umap --model_s resnet8", "--model_s: has no effect without --path_s; leave it out"),
        ("umap --tda_layer_t -2", "unrecognized arguments: --tda_layer_t -2"),
        ("diagram --dim 1", "unrecognized arguments: --dim 1"),
        ("pi", "spec_dim0.json: no image spec there; make it with generate_PCD_PI.py"),
        ("curves --logs empty", "empty: no log there; expected a log, the folder of a run, or one of logs"),
        ("curves --logs text.csv", "text.csv: no epochs found; expected the log.csv of train_teacher.py or"),
        ("curves --logs nan.csv", "nan.csv: no epochs found; expected the log.csv of train_teacher.py or"),
        ("curves --logs long.csv", "long.csv: not readable as CSV (field larger than field limit"),
        ("curves --logs words.csv", "words.csv: not readable as a log (could not convert string to float: 'high')"),
        ("curves --logs words.csv logs", "logs/words.csv: the run words is duplicated, also in words.csv"),
    ],
)
def test_bad_input_is_one_line(monkeypatch, capsys, options, what):
    Path("empty").mkdir()
    Path("empty/file").touch()
    weights = checkpoint.load(TEACHER)["model"]
    checkpoint.save(Path("bare.pth"), weights)
    checkpoint.save(Path("nan.pth"), weights | {"conv1.weight": weights["conv1.weight"] * float("nan")})
    save_network(Path("wide.pth"), "resnet8x4")
    Path("text.csv").write_text("no log\n")
    Path("long.csv").write_text(f"epoch,test_acc\n1,{'1' * 200_000}\n")
    write_log("nan.csv", epoch=["nan"], test_acc=[10])
    for name in ("words.csv", "logs/words.csv"):
        write_log(name, epoch=[1], test_acc=["high"])
    name, *rest = options.split()
    line = refused(monkeypatch, capsys, visualize, name, *(() if name == "curves" else DATA), *rest)
    assert what in line
    assert not Path("results").exists()


def test_umap_keeps_clusters_together():
    """Two clusters far apart: in the plane each point's nearest neighbour is of its own cluster; a seed repeats it."""
    pytest.importorskip("umap", exc_type=ImportError)
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(0, 1, (20, WIDTH)), rng.normal(20, 1, (20, WIDTH))]).astype(np.float32)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of its dependencies
        points, parameters = figure_data.embed(features, "umap", 3)
        again, _ = figure_data.embed(features, "umap", 3)
    assert parameters == "15 neighbours, minimum distance 0.1"
    np.testing.assert_array_equal(points, again)
    distances = np.linalg.norm(points[:, None] - points, axis=2) + np.diag(np.full(40, np.inf))
    assert (distances.argmin(axis=1) // 20).tolist() == [0] * 20 + [1] * 20


def test_classes_by_name_and_number(monkeypatch):
    names = ["apple", "bear", "2"]
    info = types.SimpleNamespace(class_names=lambda data_dir: names if data_dir == "here" else None)
    monkeypatch.setitem(dataset_dict, "fruit", info)
    assert class_names(Data(dataset="fruit", data_dir="here", device=torch.device("cpu"))) == names
    assert figure_data.choose_classes(names, ["bear", "0", "2"]) == [1, 0, 2]
