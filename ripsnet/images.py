"""Persistence images: a persistence diagram as a vector of 20 x 20 pixels.

Adams et al., "Persistence Images: A Stable Vector Representation of Persistent Homology", JMLR 18(8), 2017, with the
conventions of `gudhi.representations.PersistenceImage`: every bar (b, d) becomes the point (b, p) with p = d - b, and
pixel (r, c) is the sum over the bars of

    weight(b, p) * exp(-((b - x_c)^2 + (p - y_r)^2) / (2 sigma^2)) / (2 pi sigma^2),

where x_c and y_r are equally spaced over the image range, both ends included: the Gaussian is sampled, not integrated.
Pixels are flattened as 20 r + c and divided by one number, the largest pixel over the images of a data set.

The Gaussian is separable, so an image is the product of two matrices of K bars by 20 grid points. In dimension 0 every
birth is 0 and the birth axis has no extent: the 20 columns are equal, and 20 values are computed and repeated.

The weight vanishes at (0, 0): bars of length zero in dimension 0, and bars (0, 0) that pad a batch of diagrams, add
exactly nothing. It does not vanish on the rest of the diagonal, which is why diagrams of dimension 1 must not hold
bars of length zero.
"""

import dataclasses
import hashlib
import math

import numpy as np
import torch
from scipy.spatial.distance import cdist, pdist
from torch import Tensor

from .blocks import map_blocks

WEIGHT = "10*tanh(p) + 10*ln(100*b + 1)"
SIGMA_POINTS = 200  # that the released rule looks at
BLOCK_ELEMENTS = 1 << 17  # of the Gaussians held at a time


@dataclasses.dataclass(frozen=True)
class ImageSpec:
    """Everything that turns a persistence diagram into its image, and where the numbers come from.

    Change a field with `dataclasses.replace`.

    Attributes:
        dim: homology dimension, 0 or 1.
        sigma: standard deviation of the Gaussian, in the units of the point clouds.
        sigma_rule: how sigma was chosen, as text: "released" or "subsample".
        range_rule: how image_range was chosen: "all" bars, or "q99", their 1 % to 99 % quantiles.
        image_range: (min b, max b, min p, max p), usually over the diagrams; (0, 0, ...) in dimension 0.
        maximum: the largest pixel before normalisation; every image is divided by it.
        resolution: grid points of the birth and of the persistence axis.
        weight: the weight function; only TopKD's is known.
        layer, points, pcd_bn: teacher's layer, points a cloud, and BatchNorm mode ("eval" or "train").
        teacher_sha256, teacher_arch, teacher_run: the teacher's checkpoint.
        dataset, num_clouds, cloud_dtype, cloud_width, seed, gudhi_version: the clouds behind the numbers.

    Raises:
        ValueError: for values that define no image.
    """

    dim: int
    sigma: float
    sigma_rule: str
    image_range: tuple[float, float, float, float]
    maximum: float
    resolution: tuple[int, int] = (20, 20)
    weight: str = WEIGHT
    layer: int | None = None
    points: int | None = None
    pcd_bn: str | None = None
    teacher_sha256: str | None = None
    teacher_arch: str | None = None
    teacher_run: str | None = None
    dataset: str | None = None
    num_clouds: int | None = None
    cloud_dtype: str | None = None
    cloud_width: int | None = None
    seed: int | None = None
    gudhi_version: str | None = None
    range_rule: str = "all"

    def __post_init__(self):
        try:
            plain = {
                "sigma": float(self.sigma),
                "maximum": float(self.maximum),
                "image_range": tuple(float(bound) for bound in self.image_range),
                "resolution": tuple(int(count) for count in self.resolution),
            }
        except (TypeError, OverflowError) as error:
            raise ValueError(f"image spec: a number is missing, of the wrong type or too large ({error})") from None
        for name, value in plain.items():  # JSON knows lists and no NumPy scalars
            object.__setattr__(self, name, value)
        if self.dim not in (0, 1):
            raise ValueError(f"image spec: dim must be 0 or 1; found {self.dim!r}")
        if not (math.isfinite(self.sigma) and self.sigma > 0):
            raise ValueError(f"image spec: sigma must be positive; found {self.sigma}")
        if not (math.isfinite(self.maximum) and self.maximum > 0):
            raise ValueError(f"image spec: maximum must be positive; found {self.maximum}")
        if self.weight != WEIGHT:
            raise ValueError(f"image spec: weight must be {WEIGHT!r}; found {self.weight!r}")
        if len(self.resolution) != 2 or min(self.resolution) < 1:
            raise ValueError(f"image spec: resolution must be two positive integers; found {self.resolution}")
        if len(self.image_range) != 4 or not all(map(math.isfinite, self.image_range)):
            raise ValueError(f"image spec: image_range must be four finite numbers; found {self.image_range}")
        min_b, max_b, min_p, max_p = self.image_range
        if min_b > max_b or min_p > max_p:
            raise ValueError(f"image spec: image_range must be [min b, max b, min p, max p]; found {self.image_range}")
        if self.dim == 0 and (min_b, max_b) != (0, 0):
            raise ValueError(f"image spec: births of dimension 0 are 0; found the range [{min_b}, {max_b}]")

    @property
    def sha256(self) -> str:
        """SHA-256 of what defines the image, wherever its numbers come from."""
        defining = self.dim, self.sigma, self.image_range, self.maximum, self.resolution, self.weight
        return hashlib.sha256(repr(defining).encode()).hexdigest()

    def to_dict(self) -> dict:
        """The spec as a plain dict that JSON can hold."""
        fields = dataclasses.asdict(self)
        if self.range_rule == "all":
            del fields["range_rule"]  # the default is omitted, in a file too
        return fields | {"image_range": list(self.image_range), "resolution": list(self.resolution)}

    @classmethod
    def from_dict(cls, fields: dict) -> "ImageSpec":
        """The spec from a plain dict; provenance may be absent, what defines the image may not.

        Raises:
            ValueError: for unknown keys, missing keys, or values that define no image.
        """
        known = {field.name: field.default for field in dataclasses.fields(cls)}
        unknown = sorted(set(fields) - set(known))
        required = [name for name, default in known.items() if default is not None and name != "range_rule"]
        missing = [name for name in required if name not in fields]
        if unknown or missing:
            raise ValueError(f"image spec: unknown keys: {unknown or 'none'}; missing keys: {missing or 'none'}")
        return cls(**fields)

    @property
    def pixels(self) -> int:
        """Length of a flattened image."""
        return self.resolution[0] * self.resolution[1]


def _gaussians(values: Tensor, low: float, high: float, count: int, sigma: float) -> Tensor:
    """One factor of the separable Gaussian at the grid points of an axis: (..., K) -> (..., K, count)."""
    grid = torch.linspace(low, high, count, dtype=values.dtype, device=values.device)
    return (values.unsqueeze(-1) - grid).square().mul_(-0.5 / sigma**2).exp_()  # in place saves a third of the time


def _scale(spec: ImageSpec) -> float:
    return 1 / (2 * math.pi * spec.sigma**2 * spec.maximum)


def _require_dim(spec: ImageSpec, dim: int) -> None:
    if spec.dim != dim:
        raise ValueError(f"this image spec is of homology dimension {spec.dim}; expected dimension {dim}")


def dim0_images(deaths: Tensor, spec: ImageSpec) -> Tensor:
    """Persistence images of diagrams of dimension 0, differentiable.

    Args:
        deaths: (N, m) death times in any order; bars of length zero add nothing.
        spec: an `ImageSpec` of dimension 0.

    Returns:
        (N, 400) in the dtype and on the device of `deaths`.
    """
    _require_dim(spec, 0)
    columns, rows = spec.resolution
    _, _, low, high = spec.image_range

    def distinct_pixels(block):
        weights = 10 * _scale(spec) * torch.tanh(block)
        return (weights.unsqueeze(-1) * _gaussians(block, low, high, rows, spec.sigma)).sum(dim=1)

    block_size = BLOCK_ELEMENTS // (rows * max(1, deaths.shape[1]))
    return map_blocks(distinct_pixels, deaths, block_size).unsqueeze(-1).expand(-1, -1, columns).flatten(1)


def diagram_image(births: Tensor, persistences: Tensor, spec: ImageSpec) -> Tensor:
    """Persistence image of one diagram, or of a batch padded with bars (0, 0), differentiable.

    Args:
        births, persistences: (..., K) birth times and lengths of the bars.
        spec: an `ImageSpec`; any dimension.

    Returns:
        (..., 400) in the dtype and on the device of the bars.
    """
    columns, rows = spec.resolution
    min_b, max_b, min_p, max_p = spec.image_range
    weights = 10 * _scale(spec) * (torch.tanh(persistences) + torch.log1p(100 * births))
    on_columns = _gaussians(births, min_b, max_b, columns, spec.sigma)
    on_rows = _gaussians(persistences, min_p, max_p, rows, spec.sigma) * weights.unsqueeze(-1)
    return (on_rows.mT @ on_columns).flatten(-2)


def dim1_images(diagrams: list[np.ndarray], spec: ImageSpec) -> Tensor:
    """Persistence images of diagrams of dimension 1, in float64.

    Args:
        diagrams: list of N arrays (k, 2) of finite birth and death times without bars of length zero.
        spec: an `ImageSpec` of dimension 1.

    Returns:
        (N, 400) float64 tensor.
    """
    _require_dim(spec, 1)
    counts = np.array([len(diagram) for diagram in diagrams], dtype=np.int64)
    longest = max(1, counts.max(initial=0))
    block = max(1, BLOCK_ELEMENTS // (sum(spec.resolution) * longest))
    images = [torch.empty(0, spec.pixels, dtype=torch.float64)]
    for start in range(0, len(diagrams), block):
        part = counts[start : start + block]
        bars = np.zeros((len(part), longest, 2))
        bars[np.arange(longest) < part[:, None]] = np.concatenate(diagrams[start : start + block])
        births, deaths = torch.from_numpy(bars).unbind(-1)
        images.append(diagram_image(births, deaths - births, spec))
    return torch.cat(images)


def birth_persistence(diagrams: Tensor | list[np.ndarray]) -> np.ndarray:
    """All bars of a set of diagrams as points (b, p), diagram by diagram, bars of length zero left out.

    Args:
        diagrams: (N, m) death times of dimension 0, or a list of arrays (k, 2) of birth and death times.

    Returns:
        (K, 2) float64 array.
    """
    if isinstance(diagrams, list):
        bars = np.concatenate([np.empty((0, 2)), *diagrams])
        points = np.stack([bars[:, 0], bars[:, 1] - bars[:, 0]], axis=1)
    else:
        lengths = torch.as_tensor(diagrams).detach().double().cpu().numpy().ravel()
        points = np.stack([np.zeros_like(lengths), lengths], axis=1)
    return points[points[:, 1] > 0]


def _sigma(distances: np.ndarray) -> float:
    distances = distances[distances > 1e-5]
    if not distances.size:
        raise ValueError("sigma: no two points of the diagrams are further apart than 1e-5; are all clouds alike?")
    return float(np.quantile(distances, 0.2))


def released_sigma(points: np.ndarray) -> float:
    """Sigma as TopKD's released code chooses it.

    The 0.2-quantile of the distances above 1e-5 in the full symmetric distance matrix of the first 200 points. It
    depends on which cloud comes first.

    Args:
        points: (K, 2) births and persistences, as `birth_persistence` lists them.

    Raises:
        ValueError: when no distance exceeds 1e-5.
    """
    first = np.asarray(points, dtype=np.float64)[:SIGMA_POINTS]
    return _sigma(cdist(first, first).ravel())


def subsample_sigma(points: np.ndarray, seed: int = 0, size: int = 2000) -> float:
    """The quantile of `released_sigma`, over the pairs of a random subsample of all points.

    Drawn from the whole data set, it hardly depends on the order of the clouds.

    Args:
        points: (K, 2) births and persistences.
        seed: of the subsample.
        size: points drawn, without replacement; all of them when there are fewer.

    Raises:
        ValueError: when no distance exceeds 1e-5.
    """
    points = np.asarray(points, dtype=np.float64)
    drawn = np.random.default_rng(seed).choice(len(points), size=min(size, len(points)), replace=False)
    return _sigma(pdist(points[drawn]) if len(drawn) > 1 else np.empty(0))


def r2_on_device(prediction: Tensor, target: Tensor, baseline: Tensor | None = None) -> Tensor:
    """`r2_score` as a scalar that stays on the device, for which the host does not wait."""
    prediction, target = prediction.double(), target.double()
    baseline = target.mean(dim=0) if baseline is None else baseline.double()
    return 1 - (prediction - target).square().mean() / (baseline - target).square().mean()


def r2_score(prediction: Tensor, target: Tensor, baseline: Tensor | None = None) -> float:
    """Coefficient of determination, 1 - MSE(prediction) / MSE(baseline), over all images and pixels, in float64.

    Args:
        prediction, target: (N, 400).
        baseline: (400,) image of the constant predictor; by default the mean of `target`. For a validation set, pass
            the mean image of the training set.

    Returns:
        A float; 0 for a prediction no better than the baseline. Targets that equal the baseline give nan or -inf.
    """
    return float(r2_on_device(prediction, target, baseline))


def diagram_quality(diagrams: Tensor | list[np.ndarray], spec: ImageSpec) -> dict[str, float]:
    """How well an image spec covers a set of diagrams.

    Args:
        diagrams: (N, m) death times of dimension 0, or a list of arrays (k, 2) of birth and death times.
        spec: the `ImageSpec`.

    Returns:
        A dict of floats. "bars" and "zero_bars" count the bars with and without extent; "in_range" is the share of the
        former inside the image range (nan without bars); "birth_step_over_sigma" and "persistence_step_over_sigma" are
        the distance of neighbouring grid points in units of sigma: well above 1, bars can fall between grid points.
    """
    points = birth_persistence(diagrams)
    total = sum(map(len, diagrams)) if isinstance(diagrams, list) else torch.as_tensor(diagrams).numel()
    low, high = np.reshape(spec.image_range, (2, 2)).T
    inside = ((points >= low) & (points <= high)).all(axis=1)
    columns, rows = spec.resolution
    birth_step, persistence_step = (high - low) / (max(1, columns - 1), max(1, rows - 1))
    return {
        "bars": float(len(points)),
        "zero_bars": float(total - len(points)),
        "in_range": float(inside.mean()) if len(points) else math.nan,
        "birth_step_over_sigma": float(birth_step / spec.sigma),
        "persistence_step_over_sigma": float(persistence_step / spec.sigma),
    }
