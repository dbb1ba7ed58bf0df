"""Scores of a trained network on a test set, and how far its predictions and topology agree with a teacher's.

All that is compared comes from one pass of each network over the test set, in eval mode, as it is deployed: the logits,
and the features whose groups of --batch_size, or --cloud_size, consecutive images are the point clouds. A student's
cloud is taken as it is: the projection to a teacher's width belongs to training. Diagrams and their images know
distances between points only, so clouds of different widths can be compared.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset import LabelledImages, Recipe, batches_in_order
from models import create_model
from ripsnet import ImageSpec, RipsNet, diagrams_of, r2_score

from ..clouds.layers import as_points, layer_width, read_layer
from ..clouds.store import images_of
from ..errors import UserError
from ..files import checkpoint
from ..files.paths import clouds_folder, spec_file
from ..networks import TORCHVISION, Network
from ..settings import Clouds, RipsNetChoice
from ..student.pairs import pair_settings
from ..student.topology import load_ripsnet, load_specs, ripsnet_files
from ..student.weights import IMAGE_OPTIONS, refuse_without_effect
from ..training.objective import autocast

ECE_BINS = 15
TOP = 5


@torch.no_grad()
def predict(
    model: nn.Module, images: LabelledImages, amp: str = "off", layer: int | None = None
) -> tuple[Tensor, Tensor | None]:
    """Logits (N, classes) of a test set in its order, and the features (N, d) of a layer if one is named; float32."""
    model.eval()
    logits, points = [], []
    for batch, _ in batches_in_order(images):
        with autocast(batch.device, amp):
            if layer is None:
                found = model(batch)
            else:
                features, found = model(batch, is_feat=True)
                points.append(as_points(read_layer(features, found, layer)))
        logits.append(found.float())
    return torch.cat(logits), torch.cat(points) if points else None


def accuracy_scores(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Top-1 and top-5 accuracy and calibration error in percent, and mean cross entropy in nats.

    logits: (N, classes); labels: (N,). Of equal logits the lower class counts as the more probable, as in argmax.
    """
    ranked = logits.sort(dim=1, descending=True, stable=True).indices[:, :TOP]
    right = ranked == labels.unsqueeze(1)
    return {
        "top1": 100 * right[:, 0].sum().item() / len(labels),
        "top5": 100 * right.any(dim=1).sum().item() / len(labels),
        "loss": F.cross_entropy(logits.double(), labels).item(),
        "ece": calibration_error(logits, labels),
    }


def calibration_error(logits: Tensor, labels: Tensor, bins: int = ECE_BINS) -> float:
    """Expected calibration error in percent.

    Guo, Pleiss, Sun, Weinberger, "On Calibration of Modern Neural Networks", ICML 2017, equation 3: the mean over the
    images of |accuracy - confidence| of their bin; bin m of M holds the confidences in ((m - 1) / M, m / M].
    """
    confidence = logits.double().softmax(dim=1).amax(dim=1)
    gap = (logits.argmax(dim=1) == labels).double() - confidence
    inner_edges = torch.linspace(0, 1, bins + 1, dtype=torch.float64, device=logits.device)[1:-1]
    return 100 * torch.bincount(torch.bucketize(confidence, inner_edges), gap).abs().sum().item() / len(labels)


def class_accuracies(logits: Tensor, labels: Tensor) -> list[float | None]:
    """Accuracy on the images of each class in percent, None for a class without images."""
    classes = logits.shape[1]
    images = torch.bincount(labels, minlength=classes).tolist()
    right = torch.bincount(labels[logits.argmax(dim=1) == labels], minlength=classes).tolist()
    return [100 * k / n if n else None for k, n in zip(right, images, strict=True)]


def agreement(student: Tensor, teacher: Tensor) -> dict[str, float]:
    """Share of equal predictions in percent, and the mean over the images of KL(teacher || student) in nats, at
    temperature 1, for logits (N, classes)."""
    equal = student.argmax(dim=1) == teacher.argmax(dim=1)
    log_s, log_t = (logits.double().log_softmax(dim=1) for logits in (student, teacher))
    return {
        "equal_predictions": 100 * equal.sum().item() / len(equal),
        "kl": F.kl_div(log_s, log_t, reduction="batchmean", log_target=True).item(),
    }


def parameter_count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def bottleneck(one: np.ndarray, other: np.ndarray) -> float:
    """Bottleneck distance of two diagrams (k, 2) and (l, 2)."""
    from gudhi import bottleneck_distance

    return bottleneck_distance(one, other)


def wasserstein(one: np.ndarray, other: np.ndarray) -> float:
    """2-Wasserstein distance of two diagrams with Euclidean costs, by Hera, to a relative error of 0.0001."""
    from gudhi.hera import wasserstein_distance

    return wasserstein_distance(one, other, order=2, internal_p=2, delta=1e-4)


DIAGRAM_DISTANCES = {"bottleneck": bottleneck, "wasserstein": wasserstein}


def bars(diagram: Tensor | np.ndarray) -> np.ndarray:
    """A diagram as GUDHI takes it, (k, 2) births and deaths, from death times (m,) of dimension 0 or from (k, 2)."""
    if isinstance(diagram, np.ndarray):
        return diagram
    deaths = diagram[diagram > 0].double().cpu().numpy()
    return np.column_stack([np.zeros_like(deaths), deaths])


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """What is compared of the topology of a student and a teacher.

    topology: 'images' and names of DIAGRAM_DISTANCES. spec: files, one a dimension, or none to find them. ripsnet: None
    for no RipsNet; files, one a dimension, or none to find them. choice: which RipsNet. tda_layer_s: the student's
    layer; the teacher's is of the clouds.
    """

    topology: tuple[str, ...] = ()
    spec: tuple[str, ...] = ()
    ripsnet: tuple[str, ...] | None = None
    choice: RipsNetChoice = RipsNetChoice()
    clouds: Clouds = Clouds()
    tda_layer_s: int = -1

    @property
    def with_topology(self) -> bool:
        return bool(self.topology) or self.ripsnet is not None

    @property
    def with_images(self) -> bool:
        return "images" in self.topology or self.ripsnet is not None

    def check_effect(self, recipe: Recipe | None) -> None:
        """Refuse options that would do nothing. recipe: of the data set, where it has one."""
        images = {name: getattr(self.clouds, name) for name in IMAGE_OPTIONS}
        of_ripsnet = {"operator": self.choice.operator, "ripsnet_clouds": self.choice.ripsnet_clouds}
        others = {"dim": self.clouds.dim, "tda_layer_t": self.clouds.tda_layer_t, "tda_layer_s": self.tda_layer_s}
        others |= {"batch_size": self.clouds.batch_size, "cloud_size": self.clouds.cloud_size}
        if not self.with_images:
            where = "no --topology images and no --ripsnet"
            if self.spec:
                raise UserError(f"--spec: has no effect with {where}; leave it out")
            refuse_without_effect(images, where, recipe)
        if self.ripsnet is None:
            refuse_without_effect(of_ripsnet, "no --ripsnet", recipe)
        elif self.ripsnet:
            refuse_without_effect({"ripsnet_clouds": self.choice.ripsnet_clouds}, "--ripsnet PATH", recipe)
        if not self.with_topology:
            refuse_without_effect(others, "no --topology and no --ripsnet", recipe)


class TopologyComparison:
    """Measures what a Comparison asks for on a test set. What does not fit is refused here, before any image is seen.

    path_t: the teacher's checkpoint, by which clouds and RipsNets are found.
    """

    def __init__(self, asked: Comparison, path_t: str, student: Network, teacher: Network, images: LabelledImages):
        clouds, option, size = asked.clouds, asked.clouds.points_option, images.info.image_size
        self.dims, self.points = clouds.dims, clouds.points
        self.widths = (
            layer_width(student.model, asked.tda_layer_s, student.num_classes, "--tda_layer_s", size),
            layer_width(teacher.model, clouds.tda_layer_t, teacher.num_classes, "--tda_layer_t", size),
        )
        self.specs: dict[int, ImageSpec] = {}
        self.ripsnets: dict[int, RipsNet] = {}
        self.distances = {name: distance for name, distance in DIAGRAM_DISTANCES.items() if name in asked.topology}
        if self.points < 2:
            raise UserError(f"{option}: found {self.points}, expected at least 2 points in a cloud")
        if self.points > len(images):
            raise UserError(f"{option}: found {self.points}, but the test set has only {len(images)} images")
        if self.distances or 1 in self.dims:
            self._require_gudhi()
        folder = clouds_folder(path_t, clouds)
        if asked.with_images:
            self._load_specs(asked, folder, teacher)
        if asked.ripsnet is not None:
            own = pair_settings(teacher.arch, student.arch).operator
            choice = replace(asked.choice, operator=asked.choice.operator or own)
            self._load_ripsnets(choice, clouds, folder, asked.ripsnet, images.device)

    @staticmethod
    def _require_gudhi() -> None:
        try:
            import gudhi.hera  # noqa: F401
        except ImportError as error:
            raise UserError(f"--topology: needs GUDHI ({error}): pip install gudhi scikit-learn") from None

    def _load_specs(self, asked: Comparison, folder: Path, teacher: Network) -> None:
        clouds = asked.clouds
        if asked.spec and len(asked.spec) != len(self.dims):
            raise UserError(
                f"--spec: found {len(asked.spec)} files, expected one for each dimension of --dim {clouds.dim}"
            )
        paths = [Path(path) for path in asked.spec] or [spec_file(folder, dim) for dim in self.dims]
        specs = load_specs(paths, clouds, teacher.sha256, self.widths[1])
        self.specs = dict(zip(self.dims, specs, strict=True))

    def _load_ripsnets(
        self, choice: RipsNetChoice, clouds: Clouds, folder: Path, given: Sequence[str], device: torch.device
    ) -> None:
        assert choice.operator is not None
        for dim, path in zip(self.dims, ripsnet_files(choice, clouds, folder, given), strict=True):
            network, content = load_ripsnet(path, choice.operator, self.widths[1])
            if content.get("spec") not in (None, self.specs[dim].to_dict()):
                raise UserError(
                    f"{path}: fitted to other images than those of the spec; give its own with --spec, or run "
                    "train_ripsnet.py again"
                )
            self.ripsnets[dim] = network.to(device)

    def measure(self, student: Tensor, teacher: Tensor) -> dict[str, Any]:
        """Means over the clouds that features (N, d) make, for each dimension; the short last cloud is omitted.

        image_distance is the Euclidean distance of the exact images, image_mse the mean squared difference of their
        pixels, which is what `--topology exact` trains; r2 are RipsNet's, against the mean of the exact images.
        """
        count, rest = divmod(len(teacher), self.points)
        clouds = [points[: count * self.points].unflatten(0, (count, -1)) for points in (student, teacher)]
        found = {"clouds": count, "points": self.points, "images_left_out": rest, "widths": list(self.widths)}
        return found | {f"dim{dim}": self._measure_dim(dim, clouds) for dim in self.dims}

    @torch.no_grad()
    def _measure_dim(self, dim: int, clouds: list[Tensor]) -> dict[str, float | None]:
        diagrams = [diagrams_of(part, dim) for part in clouds]
        found: dict[str, float | None] = {}
        if dim in self.specs:
            images = [images_of(part, self.specs[dim]).double().cpu() for part in diagrams]
            difference = images[0] - images[1]
            found["image_distance"] = difference.norm(dim=1).mean().item()
            found["image_mse"] = difference.square().mean().item()
        if dim in self.ripsnets:
            network = self.ripsnets[dim]
            for name, part, exact in zip(("student", "teacher"), clouds, images, strict=True):
                fits = part.shape[2] == network.d
                found[f"ripsnet_r2_{name}"] = r2_score(network(part).cpu(), exact) if fits else None
        for name, distance in self.distances.items():
            pairs = zip(*diagrams, strict=True)
            found[name] = float(np.mean([distance(bars(one), bars(other)) for one, other in pairs]))
        return found


NETWORK_ROWS = [
    ("top-1 accuracy, %", "top1", ".2f"),
    ("of torchvision's weights, as published, %", "published_top1", ".3f"),
    ("top-5 accuracy, %", "top5", ".2f"),
    ("cross entropy, nats", "loss", ".4f"),
    (f"calibration error (ECE, {ECE_BINS} bins), %", "ece", ".2f"),
    ("parameters", "parameters", ",d"),
]
AGREEMENT_ROWS = [("equal predictions, %", "equal_predictions", ".2f"), ("KL(teacher || student), nats", "kl", ".4f")]
TOPOLOGY_ROWS = [
    ("exact images: Euclidean distance", "image_distance", ".4f"),
    ("exact images: mean squared difference", "image_mse", ".3e"),
    ("RipsNet: R^2 on the student's clouds", "ripsnet_r2_student", ".3f"),
    ("RipsNet: R^2 on the teacher's clouds", "ripsnet_r2_teacher", ".3f"),
    ("diagrams: bottleneck distance", "bottleneck", ".4f"),
    ("diagrams: 2-Wasserstein distance", "wasserstein", ".4f"),
]


def aligned(rows: list[list[str]]) -> list[str]:
    """Lines of a table: the first column to the left, the others to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join([row[0].ljust(widths[0]), *(cell.rjust(w) for cell, w in zip(row[1:], widths[1:], strict=True))])
        for row in rows
    ]


def cells(columns: Sequence[dict[str, Any]], layout: Sequence[tuple[str, str, str]]) -> list[list[str]]:
    """Rows of a table from dicts, one a column; a number that is missing in some column is a dash."""
    return [
        [label, *("-" if column.get(key) is None else format(column[key], form) for column in columns)]
        for label, key, form in layout
        if any(key in column for column in columns)
    ]


def report_text(report: dict[str, Any], per_class: bool) -> str:
    """The report of evaluate.py as it is printed."""
    networks = {role: report[role] for role in ("network", "teacher") if role in report}
    columns = list(networks.values())
    precision = "float32" if report["amp"] == "off" else report["amp"]
    ends = {"network": "", "teacher": " (teacher)"}
    head = [["", *(network["arch"] + ends[role] for role, network in networks.items())]]
    lines = [f"{network['path']}: {network['arch']}" for network in columns]
    lines += [f"{report['images']:,} test images of {report['dataset']}, {precision}", ""]
    lines += aligned(head + cells(columns, NETWORK_ROWS))
    if "agreement" in report:
        lines += ["", *aligned(cells([report["agreement"]], AGREEMENT_ROWS))]
    if topology := report.get("topology"):
        lines += [
            "",
            f"topology: means over {topology['clouds']} clouds of {topology['points']} consecutive test images; "
            f"{topology['images_left_out']} left out",
        ]
        dims = [name for name in topology if name.startswith("dim")]
        head_of_dims = [["", *(f"dimension {name[-1]}" for name in dims)]]
        lines += aligned(head_of_dims + cells([topology[name] for name in dims], TOPOLOGY_ROWS))
        if topology["widths"][0] != topology["widths"][1]:
            widths = "{} and {}".format(*topology["widths"])
            lines.append(f"clouds of widths {widths}: RipsNet, made for the teacher's, cannot read the student's")
    if per_class:
        layout = [(name, name, ".2f") for name in columns[0]["per_class"]]
        lines += ["", *aligned(head + cells([network["per_class"] for network in columns], layout))]
    if "adopted" in report:
        lines += ["", f"written to {report['adopted']}, with the accuracy measured here"]
    return "\n".join(line.rstrip() for line in lines)


def network_report(
    network: Network, path: str, logits: Tensor, labels: Tensor, names: Sequence[str], dataset: str
) -> dict[str, Any]:
    """What the report says of one network; names: of the classes. On `imagenet`, `published_top1` is the accuracy of
    torchvision's weights of this architecture."""
    report: dict[str, Any] = {
        "path": path,
        "arch": network.arch,
        "sha256": network.sha256,
        "parameters": parameter_count(network.model),
        **accuracy_scores(logits, labels),
        "per_class": dict(zip(names, class_accuracies(logits, labels), strict=True)),
    }
    if dataset == "imagenet" and network.arch in TORCHVISION:
        report["published_top1"] = TORCHVISION[network.arch].accuracy
    return report


# Adopting a network of another code base


def check_adoption(path: Path, network: Network, source: str, merged: bool = False) -> None:
    """Refuse to write over a file, or to adopt a network that is in this project's format. source: its checkpoint.
    merged: whether it is another than the one in there."""
    if path.suffix != ".pth":
        raise UserError(f"--adopt: found {path}, expected a file such as save_t_models/<name>/best.pth")
    if path.exists():
        raise UserError(f"--adopt: {path} exists, and is not written over; give another path, or remove it")
    if merged:
        return
    with torch.device("meta"):  # names only
        own = create_model(network.arch, network.num_classes).state_dict().keys()
    replaced = network.model.state_dict().keys() != own  # which no file but this project's says
    if replaced or None not in (network.dataset, network.accuracy):
        raise UserError(f"--adopt: {source} is in this project's format already; use it as it is")


def adopt(path: Path, network: Network, dataset: str, accuracy: float) -> None:
    """Write a network in this project's format. accuracy: top-1 in percent, as measured."""
    content = {
        "arch": network.arch,
        "num_classes": network.num_classes,
        "dataset": dataset,
        "model": network.model.state_dict(),
        "accuracy": accuracy,
    }
    if network.epoch is not None:
        content["epoch"] = network.epoch
    checkpoint.save(path, content, option="--adopt")
