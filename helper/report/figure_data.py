"""What the figures show: networks and their clouds, RipsNets and their validation clouds, embeddings, and logs."""

import difflib
import math
import statistics
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from torch import Tensor

from dataset import LabelledImages, TrainLoader, usual_test_batch
from ripsnet import ImageSpec, RipsNet, diagrams_of, dim0_deaths, dim1_diagrams, r2_score

from ..clouds.fitting import CloudData, predict
from ..clouds.layers import as_points, layer_width, read_layer
from ..clouds.store import CloudSet, images_of
from ..errors import UserError
from ..files.atomic import read_csv
from ..files.checkpoint import check_fields
from ..files.paths import clouds_folder, spec_file, teacher_run
from ..networks import Network, load_network
from ..settings import Clouds, Data, RipsNetChoice
from ..student.topology import load_ripsnet, load_specs, ripsnet_files
from .figures import Images, pixel_grid
from .identity import of_network, several
from .results import deviation

EMBEDDINGS = {"umap": "UMAP", "tsne": "t-SNE", "pca": "PCA"}
MOST_NAMES = 100  # of classes in a message
Row = dict[str, float]


@dataclass(frozen=True)
class Shown:
    """The networks that a figure shows: the files the user gave, and how they are named.

    students: checkpoints, or folders of runs. labels: headings, the teacher's and one for each of the students; empty
    to make them from what is known of the runs. arch_t, arch_s: of files that do not name theirs.
    """

    path_t: str
    students: tuple[Path, ...] = ()
    labels: tuple[str, ...] = ()
    arch_t: str | None = None
    arch_s: str | None = None

    @property
    def file_name(self) -> str:
        """The students' runs, with the files that are shown of them unless all are best.pth; the teacher's where there
        is no student."""
        if not self.students:
            return teacher_run(self.path_t)
        kinds = dict.fromkeys("epochs" if path.is_dir() else path.stem for path in self.students)
        name = several([of_network(path) for path in self.students])
        return name if list(kinds) == ["best"] else "_".join([name, *kinds])


def load_networks(shown: Shown, data: Data) -> dict[str, Network]:
    """The teacher and the students, in eval mode, by the headings of their panels.

    A folder stands for all checkpoints of its run in the order of their epochs, each set of weights once.
    """
    teacher = load_network(shown.path_t, shown.arch_t, "--model_t", data.device, data.dataset)
    groups = [(Path(shown.path_t), [teacher])]
    for path in shown.students:
        files = [file for name in ("previous", "best", "last") if (file := path / f"{name}.pth").is_file()]
        if path.is_dir() and not files:
            raise UserError(f"{path}: no checkpoint in this folder; expected best.pth, last.pth or previous.pth")
        students = [
            load_network(file, shown.arch_s, "--model_s", data.device, data.dataset) for file in files or [path]
        ]
        unlike = {student.sha256: student for student in students}.values()
        groups.append((path, sorted(unlike, key=lambda student: student.epoch or 0)))
    labels = shown.labels or [label(path, networks[0]) for path, networks in groups]
    if len(labels) != len(groups):
        raise UserError(
            f"--labels: found {len(labels)}, expected {len(groups)}: the teacher's and one for each --path_s"
        )
    found: dict[str, Network] = {}
    for name, (path, networks) in zip(labels, groups, strict=True):
        for network in networks:
            heading = f"{name}, epoch {network.epoch}" if path.is_dir() else name
            if heading in found:
                raise UserError(f"{path}: a second network called '{heading}'; name each with --labels")
            found[heading] = network
    return found


def label(path: Path, network: Network) -> str:
    """The architecture and the method; the run's name where the run has no row, no method of one trained alone."""
    run = of_network(path)
    if not run.pair:
        return f"{network.arch} {run.name}"
    return network.arch if run.alone else f"{network.arch} {run.loss}"


def mini_batches(loader: TrainLoader, count: int) -> list[Tensor]:
    """The images (n, 3, H, W) of the first `count` clouds of training images. loader: as `cloud_loader` makes it."""
    return [images for images, _, _ in islice(loader.epoch(0), count)]


@torch.no_grad()
def layer_outputs(network: Network, batches: Iterable[Tensor], layer: int, option: str) -> list[Tensor]:
    """A layer's output for each batch, as a point cloud (B, d) in float32 on the CPU."""
    points: list[Tensor] = []
    for images in batches:
        if not points:
            layer_width(network.model, layer, network.num_classes, option, images.shape[-1])
        features, logits = network.model(images, is_feat=True)
        points.append(as_points(read_layer(features, logits, layer)).cpu())
    return points


def bars(name: str, cloud: Tensor) -> list[dict]:
    """A row for every bar of the persistence diagrams of a cloud (n, d), in dimension 0 and 1."""
    clouds = cloud.double().unsqueeze(0)
    ends = [(0, 0.0, death) for death in dim0_deaths(clouds)[0].tolist()]
    ends += [(1, birth, death) for birth, death in dim1_diagrams(clouds)[0].tolist()]
    return [{"network": name, "dim": dim, "birth": birth, "death": death} for dim, birth, death in ends]


@dataclass
class Fitted:
    """A RipsNet of stage 3 with the clouds and images it was fitted to: the first `train_clouds` trained it, the last
    `val_clouds` validate."""

    spec: ImageSpec
    network: RipsNet
    files: CloudSet
    train_clouds: int
    val_clouds: int

    @property
    def first_validation(self) -> int:
        return self.files.num_clouds - self.val_clouds

    def validation(self) -> tuple[Tensor, Tensor]:
        """RipsNet's images and the exact ones of the validation clouds, each (N, 400)."""
        data = self._data(self.first_validation, self.files.num_clouds)
        found, exact = zip(*predict(self.network, data), strict=True)
        return torch.cat(found), torch.cat(exact)

    @cached_property
    def mean_image(self) -> Tensor:
        """Of the training clouds, (400,)."""
        return self._data(0, self.train_clouds).mean_image()

    def _data(self, start: int, stop: int) -> CloudData:
        return CloudData(self.files, self.spec.dim, start, stop, torch.device("cpu"), on_device=False)


def pixel_rows(spec: ImageSpec, panels: list[Images], mean_image: np.ndarray) -> list[dict]:
    """A row for every pixel of every panel; the mean of the training images is (400,)."""
    births, persistences = pixel_grid(spec)
    return [
        {
            "panel": panel.name,
            "birth": births[pixel % len(births)],
            "persistence": persistences[pixel // len(births)],
            "exact": panel.exact[pixel].item(),
            "ripsnet": None if panel.ripsnet is None else panel.ripsnet[pixel].item(),
            "training_mean": mean_image[pixel].item(),
        }
        for panel in panels
        for pixel in range(spec.pixels)
    ]


def fitted_ripsnets(
    path_t: str, clouds: Clouds, choice: RipsNetChoice, teacher: Network, image_size: int
) -> Iterator[Fitted]:
    """The RipsNets that the options name, one for each homology dimension; refuses what belongs to another teacher."""
    width = layer_width(teacher.model, clouds.tda_layer_t, teacher.num_classes, "--tda_layer_t", image_size)
    assert choice.operator is not None
    folder = clouds_folder(path_t, clouds)
    specs = load_specs([spec_file(folder, dim) for dim in clouds.dims], clouds, teacher.sha256, width)
    for spec, path in zip(specs, ripsnet_files(choice, clouds, folder), strict=True):
        network, content = load_ripsnet(path, choice.operator, width)
        if content.get("spec") != spec.to_dict():
            raise UserError(f"{path}: fitted to other images than those in {folder}; run train_ripsnet.py again")
        fields = {"train_clouds": int, "val_clouds": int}
        quality = check_fields(content.get("quality"), fields, path, "a RipsNet of stage 3")
        yield Fitted(spec, network, CloudSet.of(folder, spec), quality["train_clouds"], quality["val_clouds"])


def description(choice: RipsNetChoice) -> str:
    """Of a RipsNet, for a title."""
    text = f"RipsNet with {choice.operator} pooling"
    return f"{text} fitted to {choice.ripsnet_clouds:,} clouds" if choice.ripsnet_clouds else text


def images_name(clouds: Clouds, choice: RipsNetChoice, dim: int) -> str:
    """Of a RipsNet's images, for a file: with the set of clouds unless it is that of the default options."""
    name = choice.name(dim)
    return name if clouds.folder_name == Clouds().folder_name else f"{clouds.folder_name}_{name}"


def validation_images(fitted: Fitted, name: str, count: int) -> tuple[str, list[Images]]:
    """Text, and panels of at most `count` validation clouds from the smallest to the largest error. name: of the
    teacher."""
    found, exact = fitted.validation()
    errors = (found - exact).square().mean(dim=1)
    ranks = np.linspace(0, len(errors) - 1, min(count, len(errors))).round()
    panels = [
        Images(f"cloud {fitted.first_validation + i}", f"MSE {errors[i]:.4f}", exact[i].numpy(), found[i].numpy())
        for i in errors.argsort()[torch.from_numpy(ranks).long()].tolist()
    ]
    return (
        f"{name}, {len(errors):,} validation clouds of {fitted.spec.points} points, "
        f"$R^2$ = {r2_score(found, exact, fitted.mean_image):.3f}; from the smallest to the largest error"
    ), panels


def network_images(
    fitted: Fitted, networks: Mapping[str, Network], batches: Sequence[Tensor], layer_t: int, layer_s: int
) -> tuple[str, list[Images]]:
    """Text, and a panel for each network, the teacher first, of the first batch; R^2 is over all batches."""
    panels: list[Images] = []
    for name, network in networks.items():
        if panels:
            clouds = torch.stack(layer_outputs(network, batches, layer_s, "--tda_layer_s"))
        else:
            clouds = torch.stack(layer_outputs(network, batches, layer_t, "--tda_layer_t"))
        exact, found = images_of(diagrams_of(clouds, fitted.spec.dim), fitted.spec).float(), None
        note = f"width {clouds.shape[-1]}, RipsNet's {fitted.network.d}"
        if clouds.shape[-1] == fitted.network.d:
            found = fitted.network(clouds)
            note = f"MSE {(found[0] - exact[0]).square().mean():.4f}, $R^2$ {r2_score(found, exact):.3g}"
        panels.append(Images(name, note, exact[0].numpy(), None if found is None else found[0].numpy()))
    return (
        f"a training batch of {fitted.spec.points} images; $R^2$ over {len(batches)} batches, against a network's mean "
        "exact image"
    ), panels


def choose_classes(names: list[str], wanted: list[str], titles: Sequence[str] = ()) -> list[int]:
    """Numbers of the classes, each given by its number, its name, or what it is called (titles)."""
    numbers = {str(number): number for number in range(len(names))}
    known = numbers | {title: number for number, title in enumerate(titles)}
    known |= {name: number for number, name in enumerate(names)}
    chosen = []
    for text in wanted:
        if text not in known:
            near = difflib.get_close_matches(text, known.keys() - numbers.keys(), n=1, cutoff=0)
            hint = f"names: {', '.join(names)}"
            if len(names) > MOST_NAMES:
                hint = f"names such as {near[0]}"
            raise UserError(f"--classes: found '{text}', expected numbers from 0 to {len(names) - 1} or {hint}")
        chosen.append(known[text])
    if len(set(chosen)) < max(2, len(chosen)):
        raise UserError(f"--classes: found {', '.join(wanted)}, expected at least two different classes")
    return chosen


def images_of_classes(images: LabelledImages, classes: list[int], count: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """Indices (N,) of at most `count` random images of each class, and their class's position (N,) in `classes`."""
    rng, labels = np.random.default_rng(seed), images.labels.cpu().numpy()
    drawn = [np.sort(rng.permutation(np.flatnonzero(labels == number))[:count]) for number in classes]
    positions = np.repeat(np.arange(len(classes)), [len(part) for part in drawn])
    return torch.from_numpy(np.concatenate(drawn)).to(images.device), positions


def pooled_features(network: Network, images: LabelledImages, index: Tensor) -> np.ndarray:
    """The pooled features (N, d) of the images with these numbers, not augmented."""
    batches = (batch for batch, _ in images.plain(index.split(usual_test_batch(images))))
    return torch.cat(layer_outputs(network, batches, -1, "--path_s")).numpy()


def available(method: str) -> str:
    """The method, or t-SNE with a line that says so where umap-learn is not installed."""
    if method == "umap":
        try:
            import umap  # noqa: F401
        except ImportError as error:
            print(f"umap-learn cannot be imported ({error}): t-SNE instead; pip install umap-learn", flush=True)
            return "tsne"
    return method


def embed(features: np.ndarray, method: str, seed: int) -> tuple[np.ndarray, str]:
    """Points (N, 2) for features (N, d), and the parameters in words."""
    state = seed % 2**32  # scikit-learn takes no larger one
    if method == "pca":
        return PCA(2, random_state=state).fit_transform(features), "first two components"
    if method == "tsne":
        perplexity = min(30, (len(features) - 1) // 3)
        return TSNE(2, perplexity=perplexity, random_state=state).fit_transform(features), f"perplexity {perplexity}"
    import umap

    neighbours = min(15, len(features) - 1)
    reducer = umap.UMAP(n_neighbors=neighbours, min_dist=0.1, random_state=state, n_jobs=1)
    return reducer.fit_transform(features), f"{neighbours} neighbours, minimum distance 0.1"


def silhouette(points: np.ndarray, classes: np.ndarray) -> float:
    """Mean silhouette of the classes (Rousseeuw, 1987), with Euclidean distances: 1 apart, 0 overlapping."""
    return float(silhouette_score(points, classes))


def read_log(path: Path, columns: Sequence[str]) -> list[Row]:
    """The rows of a log as numbers: the epoch and those of `columns` that are there and not empty."""
    texts = read_csv(path)
    try:
        rows = [{key: float(row[key]) for key in ("epoch", *columns) if row.get(key)} for row in texts]
    except ValueError as error:
        raise UserError(f"{path}: not readable as a log ({error})") from None
    if not rows or not all(math.isfinite(row.get("epoch", math.nan)) and len(row) > 1 for row in rows):
        raise UserError(f"{path}: no epochs found; expected the log.csv of train_teacher.py or train_student.py")
    return rows


def curve_rows(run: str, logs: Sequence[Sequence[Row]], columns: Sequence[str]) -> list[dict[str, Any]]:
    """Mean and sample standard deviation (None for one value) over the logs, for each column and epoch."""
    rows = []
    for column in columns:
        values: dict[int, list[float]] = {}
        for row in (row for log in logs for row in log if column in row):
            values.setdefault(int(row["epoch"]), []).append(row[column])
        rows += [
            {
                "run": run,
                "column": column,
                "epoch": epoch,
                "n": len(found),
                "mean": six_digits(statistics.fmean(found)),
                "std": six_digits(deviation(found)) if len(found) > 1 else None,
            }
            for epoch, found in sorted(values.items())
        ]
    return rows


def six_digits(value: float) -> float:
    return float(f"{value:.6g}")
