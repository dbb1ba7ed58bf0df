"""What the figures show: networks and their clouds, RipsNets and their validation clouds, embeddings, and logs."""

import csv
import re
import statistics
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from sklearn.decomposition import PCA
from sklearn.manifold import TSNE
from sklearn.metrics import silhouette_score
from torch import Tensor

from dataset import ImageSet
from ripsnet import ImageSpec, RipsNet, dim0_deaths, dim1_diagrams

from .checkpoint import Network, load_network
from .clouds import CloudSet, as_cloud, cloud_loader, layer_width, read_layer
from .data import load_data
from .figures import Images, pixel_grid
from .options import UserError, dims
from .ripsnet_fit import CloudData, predict
from .runs import clouds_folder, ripsnet_folder, spec_file, teacher_run
from .topology import check_spec, load_ripsnet, load_spec

EMBEDDINGS = {"umap": "UMAP", "tsne": "t-SNE", "pca": "PCA"}
IMAGES_A_FORWARD = 500


def load_networks(args) -> dict[str, Network]:
    """The teacher and the students of --path_t and --path_s, in eval mode, by the headings of their panels.

    A folder stands for all checkpoints of its run in the order of their epochs, each set of weights once.
    """
    teacher = load_network(args.path_t, args.model_t, "--model_t", args.device, args.dataset)
    groups = [(Path(args.path_t), [teacher])]
    for path in map(Path, args.path_s):
        files = [found for name in ("previous", "best", "last") if (found := path / f"{name}.pth").is_file()]
        if path.is_dir() and not files:
            raise UserError(f"{path}: no checkpoint in this folder; expected best.pth, last.pth or previous.pth")
        students = [
            load_network(file, args.model_s, "--model_s", args.device, args.dataset) for file in files or [path]
        ]
        unlike = {student.sha256: student for student in students}.values()
        groups.append((path, sorted(unlike, key=lambda student: student.epoch or 0)))
    labels = args.labels or [label(path, networks[0], args.dataset) for path, networks in groups]
    if len(labels) != len(groups):
        raise UserError(
            f"--labels: found {len(labels)}, expected {len(groups)}: the teacher's and one for each --path_s"
        )
    shown = {}
    for name, (path, networks) in zip(labels, groups, strict=True):
        for network in networks:
            heading = f"{name}, epoch {network.epoch}" if path.is_dir() else name
            if heading in shown:
                raise UserError(f"{path}: a second network called '{heading}'; tell them apart with --labels")
            shown[heading] = network
    return shown


def label(path: Path, network: Network, dataset: str) -> str:
    """Architecture and, from the name of a student's run, the method; the run's name where it was given by hand."""
    run = run_of(path)
    known = re.escape(f"{network.arch}_{dataset}")
    found = re.fullmatch(rf"(?:.+-)?{known}(?:_(.+))?_trial\d+", run)
    return f"{network.arch} {found[1] or ''}".rstrip() if found else f"{network.arch} {run}"


def run_of(path: Path) -> str:
    """The name of the run that a checkpoint, a log or a folder belongs to."""
    path = path.resolve()
    inside = path.suffix == ".pth" or path.name == "log.csv"
    return path.parent.name if inside else path.name.removesuffix(".csv")


def network_runs(args) -> str:
    """For the name of a file: the students' runs, or the teacher's where there is no student."""
    paths = [Path(path) for path in args.path_s or [args.path_t]]
    return several([run_of(path) if path.is_dir() else teacher_run(path) for path in paths])


def several(names: list[str]) -> str:
    """A file's name for one run or several: what their names share in front, else the first and how many more."""
    shared = common_front(names)
    if len(names) == 1 or not shared:
        return names[0] + f"_and_{len(names) - 1}_more" * (len(names) > 1)
    return shared


def common_front(names: list[str]) -> str:
    """The parts between underscores with which all names begin."""
    parts = zip(*(name.split("_") for name in names), strict=False)
    same = [part[0] if len(set(part)) == 1 else None for part in parts]
    return "_".join(same[: same.index(None)] if None in same else same)


def mini_batches(args, count: int) -> list[Tensor]:
    """The images (B, 3, H, W) of the first `count` whole training batches, shuffled and augmented by --seed."""
    train_set, _ = load_data(args)
    return [images for images, _, _ in islice(cloud_loader(train_set, args).epoch(0), count)]


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


def fitted_ripsnets(args, teacher: Network) -> Iterator[Fitted]:
    """The RipsNets that the options name, one for each homology dimension; refuses what belongs to another teacher."""
    width = layer_width(teacher.model, args.tda_layer_t, teacher.num_classes, "--tda_layer_t")
    folder = clouds_folder(args)
    for dim in dims(args):
        spec = load_spec(spec_file(folder, dim))
        check_spec(spec, spec_file(folder, dim), teacher, width, dim, args)
        path = ripsnet_folder(folder, dim, args.operator) / "best.pth"
        if not path.is_file():
            raise UserError(f"{path}: no RipsNet there; fit it with train_ripsnet.py (same options)")
        network, content = load_ripsnet(path, args.operator, width)
        if content["spec"] != spec.to_dict():
            raise UserError(f"{path}: fitted to other images than those in {folder}; run train_ripsnet.py again")
        yield Fitted(spec, network, CloudSet(folder, spec.num_clouds), content["quality"]["train_clouds"])


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


def find_logs(paths: list[Path]) -> dict[str, Path]:
    """Run's name -> its log, for logs, folders of runs, and folders of logs."""
    logs = {}
    for path in paths:
        files = [path] if path.is_file() else [path / "log.csv"] if (path / "log.csv").is_file() else []
        for file in files or sorted(path.glob("*.csv")):
            if (run := run_of(file)) in logs:
                raise UserError(f"{file}: the run {run} comes twice, also in {logs[run]}")
            logs[run] = file
        if not files and not any(path.glob("*.csv")):
            raise UserError(
                f"{path}: no log there; expected a log, the folder of a run, or one of logs, as results/logs"
            )
    return logs


def read_log(path: Path, columns: list[str]) -> list[dict[str, float]]:
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


def repetitions(names: list[str]) -> dict[str, list[str]]:
    """Group -> its runs: names that differ only in _trial<n> are one group."""
    groups = {}
    for name in names:
        groups.setdefault(re.sub(r"_trial\d+", "", name), []).append(name)
    return groups


def curve_rows(run: str, logs: list[list[dict[str, float]]], columns: list[str]) -> list[dict]:
    """Mean and sample standard deviation (None for one value) over the logs, for each column and epoch."""
    rows = []
    for column in columns:
        values = {}
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
