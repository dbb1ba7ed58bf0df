"""What the figures show: networks and their clouds, RipsNets and their validation clouds, embeddings, and logs.

What a run is stands in its row of results, or in the options that its folder holds; its name is shown, not read.
"""

import csv
import statistics
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
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

from dataset import ImageSet, TrainLoader
from ripsnet import ImageSpec, RipsNet, dim0_deaths, dim1_diagrams

from ..clouds.fitting import CloudData, predict
from ..clouds.layers import as_cloud, layer_width, read_layer
from ..clouds.store import CloudSet
from ..errors import UserError
from ..files.atomic import read_json
from ..files.checkpoint import check_fields
from ..files.paths import clouds_folder, row_file, spec_file, teacher_run
from ..networks import Network, load_network
from ..settings import NOT_PART_OF_A_RUN, Clouds, Data, RipsNetChoice
from ..student.topology import check_spec, load_ripsnet, load_spec, ripsnet_files
from .figures import Images, pixel_grid

# What a run is known by in its row, whichever repetition it is.
IDENTITY = ("dataset", "teacher", "student", "teacher_sha256", "method", "variant", "schedule")
REPETITION = ("trial", "seed")
EMBEDDINGS = {"umap": "UMAP", "tsne": "t-SNE", "pca": "PCA"}
IMAGES_A_FORWARD = 500
Row = dict[str, float]


@dataclass(frozen=True)
class Identity:
    """What a run is known by.

    name: of the run. key: equal for the repetitions of a run, and for them alone.
    pair: 'resnet20-resnet8_cifar100', of a network trained alone 'resnet20_cifar100'. loss: the method's name, and
    where its settings depart from its own. schedule: where training departs from the published one. The three are empty
    where the run has no row.
    """

    name: str
    key: tuple
    pair: str = ""
    loss: str = ""
    schedule: str = ""
    alone: bool = False

    @classmethod
    def of_row(cls, name: str, row: dict[str, str]) -> "Identity":
        networks = "-".join(part for part in (row["teacher"], row["student"]) if part)
        return cls(
            name,
            tuple(row[column] for column in IDENTITY),
            pair=f"{networks}_{row['dataset']}",
            loss=f"{row['method']} {row['variant']}".rstrip(),
            schedule=row["schedule"],
            alone=not row["teacher"],
        )

    @classmethod
    def of_options(cls, name: str, options: dict[str, Any]) -> "Identity":
        """Of a run that has not ended: the options in its folder, less those of the repetition."""
        others = NOT_PART_OF_A_RUN.union(REPETITION)
        return cls(name, tuple(sorted((key, repr(value)) for key, value in options.items() if key not in others)))

    @property
    def text(self) -> str:
        """All of it, as it is shown."""
        parts = [part for part in (self.pair, self.loss, self.schedule) if part]
        return " ".join(parts) or self.name


def identity(name: str, row: Path, folder: Path | None) -> Identity:
    """The identity of a run. row: where its row would be; folder: its folder, where one is at hand.

    A row of an earlier version, without the columns of IDENTITY, and a run without a row or options, are known by their
    names.
    """
    if row.is_file():
        found = _first_row(row)
        if all(found.get(column) is not None for column in IDENTITY):
            return Identity.of_row(name, found)
    elif folder is not None and (folder / "args.json").is_file():
        path = folder / "args.json"
        content = check_fields(read_json(path), {"args": dict}, path, "the options of a run")
        return Identity.of_options(name, content["args"])
    return Identity(name, (name,))


def _first_row(path: Path) -> dict[str, str]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            return next(csv.DictReader(file), {})
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not readable as CSV ({error}); copy it again or remove it") from None


def identity_of_network(path: Path) -> Identity:
    """Of the run that a checkpoint or a folder belongs to."""
    name = run_of(path)
    return identity(name, row_file(name), path if path.is_dir() else path.parent)


def identity_of_log(path: Path) -> Identity:
    """Of a run's log: in the run's folder, or in a folder `logs` beside a folder `runs` with the rows."""
    name = run_of(path)
    if path.name == "log.csv":
        return identity(name, row_file(name), path.parent)
    return identity(name, path.parent.with_name("runs") / path.name, None)


@dataclass(frozen=True)
class Names:
    """How a figure names several runs: `front`, what they share, and a label for each that tells it from the others."""

    front: str
    schedule: str
    labels: list[str]


def distinguish(runs: Sequence[Identity]) -> Names:
    """Names for runs that differ in their keys."""
    front, schedule, labels = "", "", [run.text for run in runs]
    if runs[0].pair and all(run.pair == runs[0].pair for run in runs):
        front = runs[0].pair
        if all(run.schedule == runs[0].schedule for run in runs):
            schedule, labels = runs[0].schedule, [run.loss for run in runs]
        else:
            labels = [f"{run.loss} {run.schedule}".rstrip() for run in runs]
    for place, run in enumerate(runs):
        if labels.count(labels[place]) > 1:  # such as students of two teachers of one architecture
            labels[place] = f"{labels[place]} ({run.name})"
    return Names(front, schedule, labels)


def several(runs: Sequence[Identity]) -> str:
    """A file's name for one run or several: the run's; else what they share, or the first and how many more."""
    first = runs[0]
    if len(runs) == 1:
        return first.name
    if not first.pair or any(run.pair != first.pair for run in runs):
        return f"{first.name}_and_{len(runs) - 1}_more"
    if all(run.loss == first.loss for run in runs):
        return f"{first.pair}_{first.loss}".replace(" ", "_")
    return first.pair


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
        """The students' runs, or the teacher's where there is no student."""
        if not self.students:
            return teacher_run(self.path_t)
        runs = [identity_of_network(path) for path in self.students]
        names = [run_of(path) if path.is_dir() else teacher_run(path) for path in self.students]
        return several([replace(run, name=name) for run, name in zip(runs, names, strict=True)])


def load_networks(shown: Shown, data: Data) -> dict[str, Network]:
    """The teacher and the students, in eval mode, by the headings of their panels.

    A folder stands for all checkpoints of its run in the order of their epochs, each set of weights once.
    """
    teacher = load_network(shown.path_t, shown.arch_t, "--model_t", data.device, data.dataset)
    groups = [(Path(shown.path_t), [teacher])]
    for path in shown.students:
        files = [found for name in ("previous", "best", "last") if (found := path / f"{name}.pth").is_file()]
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
    found = {}
    for name, (path, networks) in zip(labels, groups, strict=True):
        for network in networks:
            heading = f"{name}, epoch {network.epoch}" if path.is_dir() else name
            if heading in found:
                raise UserError(f"{path}: a second network called '{heading}'; name each with --labels")
            found[heading] = network
    return found


def label(path: Path, network: Network) -> str:
    """The architecture and the method; the run's name where the run has no row, no method of one trained alone."""
    run = identity_of_network(path)
    if not run.pair:
        return f"{network.arch} {run.name}"
    return network.arch if run.alone else f"{network.arch} {run.loss}"


def run_of(path: Path) -> str:
    """The name of the run that a checkpoint, a log or a folder belongs to."""
    path = path.resolve()
    inside = path.suffix == ".pth" or path.name == "log.csv"
    return path.parent.name if inside else path.name.removesuffix(".csv")


def mini_batches(loader: TrainLoader, count: int) -> list[Tensor]:
    """The images (B, 3, H, W) of the first `count` training batches."""
    return [images for images, _, _ in islice(loader.epoch(0), count)]


@torch.no_grad()
def layer_outputs(network: Network, batches: Iterable[Tensor], layer: int, option: str) -> list[Tensor]:
    """A layer's output for each batch, as a point cloud (B, d) in float32 on the CPU."""
    layer_width(network.model, layer, network.num_classes, option)
    outputs = (network.model(images, is_feat=True) for images in batches)
    return [as_cloud(read_layer(*output, layer)).cpu() for output in outputs]


def bars(name: str, cloud: Tensor) -> list[dict]:
    """A row for every bar of the persistence diagrams of a cloud (n, d), in dimension 0 and 1."""
    clouds = cloud.double().unsqueeze(0)
    ends = [(0, 0.0, death) for death in dim0_deaths(clouds)[0].tolist()]
    ends += [(1, birth, death) for birth, death in dim1_diagrams(clouds)[0].tolist()]
    return [{"network": name, "dim": dim, "birth": birth, "death": death} for dim, birth, death in ends]


@dataclass
class Fitted:
    """A RipsNet of stage 3 with the clouds and images it was fitted to; the clouds from `train_clouds` on validate."""

    spec: ImageSpec
    network: RipsNet
    files: CloudSet
    train_clouds: int

    def validation(self) -> tuple[Tensor, Tensor]:
        """RipsNet's images and the exact ones of the validation clouds, each (N, 400)."""
        data = self._data(self.train_clouds, self.spec.num_clouds)
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


def fitted_ripsnets(path_t: str, clouds: Clouds, choice: RipsNetChoice, teacher: Network) -> Iterator[Fitted]:
    """The RipsNets that the options name, one for each homology dimension; refuses what belongs to another teacher."""
    width = layer_width(teacher.model, clouds.tda_layer_t, teacher.num_classes, "--tda_layer_t")
    folder = clouds_folder(path_t, clouds)
    specs = []
    for dim in clouds.dims:
        path = spec_file(folder, dim)
        specs.append(load_spec(path))
        check_spec(specs[-1], path, clouds.expected(teacher.sha256, width, dim))
    for spec, path in zip(specs, ripsnet_files(choice, clouds, folder), strict=True):
        network, content = load_ripsnet(path, choice.operator, width)
        if content.get("spec") != spec.to_dict():
            raise UserError(f"{path}: fitted to other images than those in {folder}; run train_ripsnet.py again")
        quality = check_fields(content.get("quality"), {"train_clouds": int}, path, "a RipsNet of stage 3")
        yield Fitted(spec, network, CloudSet(folder, spec.num_clouds), quality["train_clouds"])


def choose_classes(names: list[str], wanted: list[str]) -> list[int]:
    """Numbers of the classes, each given by its number or its name."""
    chosen = []
    for text in wanted:
        if text not in names and not (text.isdecimal() and int(text) < len(names)):
            raise UserError(
                f"--classes: found '{text}', expected numbers from 0 to {len(names) - 1} or names: {', '.join(names)}"
            )
        chosen.append(names.index(text) if text in names else int(text))
    if len(set(chosen)) < max(2, len(chosen)):
        raise UserError(f"--classes: found {', '.join(wanted)}, expected at least two different classes")
    return chosen


def images_of_classes(images: ImageSet, classes: list[int], count: int, seed: int) -> tuple[Tensor, np.ndarray]:
    """Indices (N,) of at most `count` random images of each class, and their class's position (N,) in `classes`."""
    rng, labels = np.random.default_rng(seed), images.labels.cpu().numpy()
    drawn = [np.sort(rng.permutation(np.flatnonzero(labels == number))[:count]) for number in classes]
    positions = np.repeat(np.arange(len(classes)), [len(part) for part in drawn])
    return torch.from_numpy(np.concatenate(drawn)).to(images.device), positions


def pooled_features(network: Network, images: ImageSet, index: Tensor) -> np.ndarray:
    """The pooled features (N, d) of the images with these numbers, not augmented."""
    batches = (batch for batch, _ in images.plain(index.split(IMAGES_A_FORWARD)))
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
    if method == "pca":
        return PCA(2, random_state=seed).fit_transform(features), "first two components"
    if method == "tsne":
        perplexity = min(30, (len(features) - 1) // 3)
        return TSNE(2, perplexity=perplexity, random_state=seed).fit_transform(features), f"perplexity {perplexity}"
    import umap

    neighbours = min(15, len(features) - 1)
    reducer = umap.UMAP(n_neighbors=neighbours, min_dist=0.1, random_state=seed, n_jobs=1)
    return reducer.fit_transform(features), f"{neighbours} neighbours, minimum distance 0.1"


def silhouette(points: np.ndarray, classes: np.ndarray) -> float:
    """Mean silhouette of the classes (Rousseeuw, 1987), with Euclidean distances: 1 apart, 0 overlapping."""
    return float(silhouette_score(points, classes))


def find_logs(paths: Sequence[Path]) -> dict[Identity, list[Path]]:
    """The logs by what their runs are, for logs, folders of runs, and folders of logs; the first of several repetitions
    gives the name."""
    found: dict[str, Path] = {}
    for path in paths:
        files = [path] if path.is_file() else [path / "log.csv"] if (path / "log.csv").is_file() else []
        for file in files or sorted(path.glob("*.csv")):
            if (run := run_of(file)) in found:
                raise UserError(f"{file}: the run {run} is duplicated, also in {found[run]}; give one of them")
            found[run] = file
        if not files and not any(path.glob("*.csv")):
            raise UserError(
                f"{path}: no log there; expected a log, the folder of a run, or one of logs, as results/logs"
            )
    groups: dict[tuple, tuple[Identity, list[Path]]] = {}
    for file in found.values():
        run = identity_of_log(file)
        groups.setdefault(run.key, (run, []))[1].append(file)
    return dict(groups.values())


def read_log(path: Path, columns: Sequence[str]) -> list[Row]:
    """The rows of a log as numbers: the epoch and those of `columns` that are there and not empty."""
    try:
        with open(path, newline="") as file:
            rows = [
                {key: float(row[key]) for key in ("epoch", *columns) if row.get(key)} for row in csv.DictReader(file)
            ]
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: not readable as a log ({error})") from None
    if not rows or not all("epoch" in row and len(row) > 1 for row in rows):
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
                "std": six_digits(statistics.stdev(found)) if len(found) > 1 else None,
            }
            for epoch, found in sorted(values.items())
        ]
    return rows


def six_digits(value: float) -> float:
    return float(f"{value:.6g}")
