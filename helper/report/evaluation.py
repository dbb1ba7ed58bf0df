"""Scores of a trained network on a test set, and how far its predictions and topology agree with a teacher's.

All that is compared comes from one pass of each network over the test set, in eval mode, as it is deployed: the logits,
and the features whose groups of --batch_size consecutive images are the point clouds. A student's cloud is taken as it
is: the projection to a teacher's width belongs to training. Diagrams and their images know distances between points
only, so clouds of different widths can be compared.
"""

from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dataset import ImageSet, test_batches
from ripsnet import ImageSpec, RipsNet, dim0_deaths, dim1_diagrams, r2_score

from . import runs
from .checkpoint import Network
from .clouds import as_cloud, images_of, layer_width, read_layer
from .loop import autocast
from .options import UserError, dims
from .topology import check_spec, load_ripsnet, load_spec, ripsnet_files

ECE_BINS = 15
TOP = 5


@torch.no_grad()
def predict(
    model: nn.Module, images: ImageSet, amp: str = "off", layer: int | None = None, batch_size: int = 1000
) -> tuple[Tensor, Tensor | None]:
    """Logits (N, classes) of a test set in its order, and the features (N, d) of a layer if one is named; float32."""
    model.eval()
    logits, points = [], []
    for batch, _ in test_batches(images, batch_size):
        with autocast(batch.device, amp):
            features, found = (None, model(batch)) if layer is None else model(batch, is_feat=True)
        logits.append(found.float())
        if layer is not None:
            points.append(as_cloud(read_layer(features, found, layer)))
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


def bars(diagram) -> np.ndarray:
    """A diagram as GUDHI takes it, (k, 2) births and deaths, from death times (m,) of dimension 0 or from (k, 2)."""
    if isinstance(diagram, np.ndarray):
        return diagram
    deaths = diagram[diagram > 0].double().cpu().numpy()
    return np.column_stack([np.zeros_like(deaths), deaths])


class TopologyComparison:
    """What --topology and --ripsnet ask for on a test set of so many images. What does not fit is refused here, before
    any image is seen.
    """

    def __init__(self, args, student: Network, teacher: Network, images: int):
        self.dims, self.points = dims(args), args.batch_size
        self.widths = (
            layer_width(student.model, args.tda_layer_s, student.num_classes, "--tda_layer_s"),
            layer_width(teacher.model, args.tda_layer_t, teacher.num_classes, "--tda_layer_t"),
        )
        self.specs: dict[int, ImageSpec] = {}
        self.ripsnets: dict[int, RipsNet] = {}
        kinds = args.topology or []
        self.distances = {name: distance for name, distance in DIAGRAM_DISTANCES.items() if name in kinds}
        if self.points < 2:
            raise UserError(f"--batch_size: found {self.points}, expected at least 2 points in a cloud")
        if self.points > images:
            raise UserError(f"--batch_size: found {self.points}, but the test set has only {images} images")
        if self.distances or 1 in self.dims:
            self._require_gudhi()
        if "images" in kinds or args.ripsnet is not None:
            self._load_specs(args, teacher)
        elif args.spec:
            raise UserError("--spec: of no use without --topology images or --ripsnet; leave it out")
        if args.ripsnet is not None:
            self._load_ripsnets(args)

    @staticmethod
    def _require_gudhi():
        try:
            import gudhi.hera  # noqa: F401
        except ImportError as error:
            raise UserError(f"--topology: needs GUDHI ({error}): pip install gudhi scikit-learn") from None

    def _load_specs(self, args, teacher: Network) -> None:
        if args.spec and len(args.spec) != len(self.dims):
            raise UserError(
                f"--spec: found {len(args.spec)} files, expected one for each dimension of --dim {args.dim}"
            )
        paths = args.spec or [runs.spec_file(runs.clouds_folder(args), dim) for dim in self.dims]
        for dim, path in zip(self.dims, map(Path, paths), strict=True):
            self.specs[dim] = load_spec(path)
            check_spec(self.specs[dim], path, teacher, self.widths[1], dim, args)

    def _load_ripsnets(self, args) -> None:
        for dim, path in zip(self.dims, ripsnet_files(args, runs.clouds_folder(args)), strict=True):
            network, content = load_ripsnet(path, args.operator, self.widths[1])
            if content.get("spec") not in (None, self.specs[dim].to_dict()):
                raise UserError(
                    f"{path}: fitted to other images than those of the spec; give its own with --spec, or run "
                    "train_ripsnet.py again"
                )
            self.ripsnets[dim] = network.to(args.device)

    def measure(self, student: Tensor, teacher: Tensor) -> dict:
        """Means over the clouds that features (N, d) make, for each dimension; the short last cloud is left out.

        image_distance is the Euclidean distance of the exact images, image_mse the mean squared difference of their
        pixels, which is what `--topology exact` trains; r2 are RipsNet's, against the mean of the exact images.
        """
        count, rest = divmod(len(teacher), self.points)
        clouds = [points[: count * self.points].unflatten(0, (count, -1)) for points in (student, teacher)]
        found = {"clouds": count, "points": self.points, "images_left_out": rest, "widths": list(self.widths)}
        return found | {f"dim{dim}": self._measure_dim(dim, clouds) for dim in self.dims}

    @torch.no_grad()
    def _measure_dim(self, dim: int, clouds: list[Tensor]) -> dict[str, float | None]:
        diagrams = [dim0_deaths(part) if dim == 0 else dim1_diagrams(part) for part in clouds]
        found = {}
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


def finite(value):
    """The same nested dict with None for numbers that are not finite, which JSON cannot hold."""
    if isinstance(value, dict):
        return {key: finite(item) for key, item in value.items()}
    return None if isinstance(value, float) and not np.isfinite(value) else value


NETWORK_ROWS = [
    ("top-1 accuracy, %", "top1", ".2f"),
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


def cells(columns: list[dict], layout) -> list[list[str]]:
    """Rows of a table from dicts, one a column; a number that is missing in some column is a dash."""
    return [
        [label, *("-" if column.get(key) is None else format(column[key], form) for column in columns)]
        for label, key, form in layout
        if any(key in column for column in columns)
    ]


def report_text(report: dict, per_class: bool) -> str:
    """The report of evaluate.py as it is printed."""
    networks = {role: report[role] for role in ("network", "teacher") if role in report}
    columns = list(networks.values())
    precision = "float32" if report["amp"] == "off" else report["amp"]
    head = [[""] + [f"{network['arch']}{' (teacher)' * (role == 'teacher')}" for role, network in networks.items()]]
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
        names = [name for name in topology if name.startswith("dim")]
        head_of_dims = [["", *(f"dimension {name[-1]}" for name in names)]]
        lines += aligned(head_of_dims + cells([topology[name] for name in names], TOPOLOGY_ROWS))
        if topology["widths"][0] != topology["widths"][1]:
            widths = "{} and {}".format(*topology["widths"])
            lines.append(f"clouds of widths {widths}: RipsNet, made for the teacher's, cannot read the student's")
    if per_class:
        layout = [(name, name, ".2f") for name in columns[0]["per_class"]]
        lines += ["", *aligned(head + cells([network["per_class"] for network in columns], layout))]
    return "\n".join(line.rstrip() for line in lines)


def network_report(network: Network, path, logits: Tensor, labels: Tensor, names: list[str]) -> dict:
    """What the report says of one network; names: of the classes."""
    return {
        "path": str(path),
        "arch": network.arch,
        "sha256": network.sha256,
        "parameters": parameter_count(network.model),
        **accuracy_scores(logits, labels),
        "per_class": dict(zip(names, class_accuracies(logits, labels), strict=True)),
    }
