"""Point clouds, diagrams and images on disk, in chunks, and the embedding of images that makes the clouds.

Every chunk is a .npy file of at most CHUNK clouds, written whole or not at all, and follows from the options alone:
what a killed run has written is kept, what is missing is computed, and memory does not grow with the number of clouds.
"""

import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from dataset import TrainLoader
from models import feature_shapes, fold_batchnorm
from ripsnet import dim0_images, dim1_images

from .checkpoint import Network, read_json, write_array, write_json
from .options import UserError

CHUNK = 512  # clouds a file
IMAGES_A_FORWARD = {"cpu": 256, "cuda": 1024}  # on a CPU, what its caches hold


def read_layer(features: list[Tensor], logits: Tensor, layer: int) -> Tensor:
    """The tensor a layer index means: 0 the logits, -1 the pooled vector, -2 the last stage's output, and so on."""
    return logits if layer == 0 else features[layer]


def as_cloud(feature: Tensor) -> Tensor:
    """A batch's feature as a point cloud (n, d) in float32; a map (n, d, H, W) is average-pooled to 1 x 1 first."""
    return feature.float().mean(dim=(2, 3)) if feature.ndim == 4 else feature.float()


class CloudSet:
    """The folder of one set of clouds. `kind` is clouds, diagrams_dim0, diagrams_dim1, images_dim0 or images_dim1."""

    def __init__(self, folder: Path, num_clouds: int):
        self.folder, self.num_clouds = folder, num_clouds
        self.chunks = range(-(-num_clouds // CHUNK))

    def span(self, chunk: int) -> tuple[int, int]:
        """First cloud of a chunk, and the one after its last."""
        return chunk * CHUNK, min((chunk + 1) * CHUNK, self.num_clouds)

    def path(self, kind: str, chunk: int) -> Path:
        return self.folder / kind / f"{chunk:05d}.npy"

    def done(self, kind: str, chunk: int) -> bool:
        """Whether the chunk's file is there, whole, and holds as many clouds as it should."""
        try:
            array = self.read(kind, chunk, mmap=True)
        except UserError:
            return False
        start, stop = self.span(chunk)
        if kind == "diagrams_dim1":  # ragged; its first row says how many clouds there are
            return array.shape[1:] == (3,) and array[0, 0] == stop - start
        return len(array) == stop - start

    def read(self, kind: str, chunk: int, mmap: bool = False) -> np.ndarray:
        path = self.path(kind, chunk)
        try:
            return np.load(path, mmap_mode="r" if mmap else None)
        except (OSError, ValueError, EOFError) as error:
            raise UserError(
                f"{path}: missing or damaged ({error}); make it with generate_PCD_PI.py (the same options, "
                f"--num_clouds {self.num_clouds})"
            ) from None

    def write(self, kind: str, chunk: int, array: np.ndarray) -> None:
        write_array(self.path(kind, chunk), array)

    def remove(self, kind: str) -> None:
        for path in (self.folder / kind).glob("*.npy"):
            path.unlink()

    def write_diagrams(self, dim: int, chunk: int, diagrams) -> None:
        """Dimension 0: (N, n-1) death times. Dimension 1: a list of (k, 2), stored as rows (cloud, birth, death)."""
        if dim == 1:
            rows = [np.column_stack([np.full(len(bars), i), bars]) for i, bars in enumerate(diagrams)]
            diagrams = np.concatenate([[[len(diagrams), 0, 0]], *rows])
        self.write(f"diagrams_dim{dim}", chunk, diagrams)

    def read_diagrams(self, dim: int, chunk: int):
        """What write_diagrams was given: a float64 tensor (N, n-1), or a list of (k, 2) arrays."""
        array = self.read(f"diagrams_dim{dim}", chunk)
        if dim == 0:
            return torch.from_numpy(array)
        rows = array[1:]
        ends = np.searchsorted(rows[:, 0], np.arange(1, int(array[0, 0])))
        return np.split(rows[:, 1:], ends)


def images_of(diagrams, spec) -> Tensor:
    """Persistence images (N, 400) of diagrams of the spec's dimension."""
    return dim0_images(diagrams, spec) if spec.dim == 0 else dim1_images(diagrams, spec)


class Embedder:
    """Point clouds of a network: cloud number i is batch i of the shuffled, augmented passes over the training set.

    A pass is an epoch without its short batch; its images follow from (seed, pass). bn: 'eval' uses the running
    statistics, many clouds a forward; 'train' normalises every cloud by its own statistics, one cloud a forward.
    """

    def __init__(self, model: nn.Module, loader: TrainLoader, layer: int, bn: str):
        self.loader, self.layer, self.bn = loader, layer, bn
        if bn == "eval":
            self.model = fold_batchnorm(model)
        else:  # a copy, so that the running statistics of the network itself stay untouched
            self.model = copy.deepcopy(model).train()

    @torch.no_grad()
    def clouds(self, start: int, stop: int) -> Iterator[Tensor]:
        """Clouds start to stop - 1 in order, as float32 tensors (count, n, d), a forward each."""
        points = self.loader.batch_size
        for images, _, _ in self.loader.spans(self.spans(start, stop)):
            features, logits = self.model(images, is_feat=True)
            yield as_cloud(read_layer(features, logits, self.layer)).view(len(images) // points, points, -1)

    def spans(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The images of clouds start to stop - 1, a forward each: a pass, the first of its positions, and their end."""
        n, per_pass = self.loader.batch_size, len(self.loader)
        at_once = max(1, IMAGES_A_FORWARD[self.loader.image_set.device.type] // n) if self.bn == "eval" else 1
        while start < stop:
            number, first = divmod(start, per_pass)
            last = min(first + at_once, per_pass, first + stop - start)
            yield number, first * n, last * n
            start += last - first


def layer_width(model: nn.Module, layer: int, classes: int, option: str) -> int:
    """Channels of a layer index, from a dry forward pass. Raises UserError if the network has no such layer."""
    shapes = feature_shapes(model)
    if -layer > len(shapes):
        raise UserError(f"{option}: found {layer}, expected 0 (logits) or -1 (pooled vector) to -{len(shapes)} (stem)")
    return classes if layer == 0 else shapes[layer][0]


def cloud_loader(images, args) -> TrainLoader:
    """The loader of the passes: the incomplete batch is dropped."""
    if args.batch_size < 2:
        raise UserError("--batch_size: found 1, expected at least 2, because a single point has no diagram")
    if len(images) < args.batch_size:
        raise UserError(
            f"--batch_size: found {args.batch_size}, but {args.dataset} has only {len(images)} training images"
        )
    return TrainLoader(images, args.batch_size, args.seed, drop_last=True)


def origin(args, teacher: Network, width: int) -> dict:
    """What the clouds of a folder have in common; the fields are those of an ImageSpec."""
    return {
        "teacher_sha256": teacher.sha256,
        "teacher_arch": teacher.arch,
        "dataset": args.dataset,
        "layer": args.tda_layer_t,
        "points": args.batch_size,
        "cloud_width": width,
        "pcd_bn": args.pcd_bn,
        "sigma_rule": args.sigma_rule,
        "seed": args.seed,
        "cloud_dtype": args.cloud_dtype,
    }


def claim(folder: Path, expected: dict) -> None:
    """Write clouds.json into a new folder of clouds; refuse a folder whose clouds have another origin."""
    path = folder / "clouds.json"
    if not path.is_file():
        write_json(path, expected)
        return
    found = read_json(path)
    if differing := [key for key in expected if found.get(key) != expected[key]]:
        what = ", ".join(f"{key} was {found.get(key)}, now {expected[key]}" for key in differing)
        raise UserError(f"{folder}: holds clouds of another origin ({what}); give the old options or remove the folder")
