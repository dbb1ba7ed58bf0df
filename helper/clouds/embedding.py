"""The point clouds of a network: its features on the images of the shuffled, augmented passes."""

import copy
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from dataset import LabelledImages, TrainLoader
from models import fold_batchnorm

from ..errors import UserError
from ..settings import Clouds
from .layers import as_points, read_layer
from .outputs import CachedTeacher

IMAGES_A_FORWARD = {"cpu": 256, "cuda": 1024}  # on a CPU, what its caches hold
LARGE_IMAGES_A_FORWARD = 256  # as in training: workers hold as many in shared memory, and the activations are large


class Embedder:
    """Point clouds of a network: cloud number i is batch i of the shuffled, augmented passes over the training set.

    loader: of batches that are a cloud each, as `cloud_loader` makes it. A pass is an epoch without its short batch;
    its images follow from (seed, pass). bn: 'eval' uses the running statistics, many clouds a forward; 'train'
    normalises every cloud by its own statistics, one cloud a forward.
    cache: the network's outputs on these images, looked up in place of running it.
    """

    def __init__(self, model: nn.Module, loader: TrainLoader, layer: int, bn: str, cache: CachedTeacher | None = None):
        self.loader, self.layer, self.bn, self.cache = loader, layer, bn, cache
        if bn == "eval":
            self.model = fold_batchnorm(model)
        else:  # a copy, so that the running statistics of the network itself stay untouched
            self.model = copy.deepcopy(model).train()

    @torch.no_grad()
    def clouds(self, start: int, stop: int) -> Iterator[Tensor]:
        """Clouds start to stop - 1 in order, as float32 tensors (count, n, d), a forward each."""
        points = self.loader.batch_size
        for features, logits in self.outputs(start, stop):
            yield as_points(read_layer(features, logits, self.layer)).view(len(logits) // points, points, -1)

    def outputs(self, start: int, stop: int) -> Iterator[tuple[list[Tensor], Tensor]]:
        """(features, logits) of the network on the images of clouds start to stop - 1, a forward each."""
        spans = self.spans(start, stop)
        if self.cache is None:
            for images, _, _ in self.loader.spans(spans):
                yield self.model(images, is_feat=True)
            return
        for number, first, last in spans:
            self.cache.begin(number)
            yield self.cache.at(self.cache.images.plan(self.loader.seed, number).order[first:last])

    def spans(self, start: int, stop: int) -> Iterator[tuple[int, int, int]]:
        """The images of clouds start to stop - 1, a forward each: a pass, the first of its positions, and their end."""
        n, per_pass = self.loader.batch_size, len(self.loader)
        at_once = 1
        if self.bn == "eval":
            images = self.loader.image_set
            most = LARGE_IMAGES_A_FORWARD if images.info.large else IMAGES_A_FORWARD[images.device.type]
            at_once = max(1, most // n)
        while start < stop:
            number, first = divmod(start, per_pass)
            last = min(first + at_once, per_pass, first + stop - start)
            yield number, first * n, last * n
            start += last - first


def cloud_loader(images: LabelledImages, clouds: Clouds, seed: int) -> TrainLoader:
    """The loader of the passes, a cloud in each batch; the incomplete cloud at a pass's end is dropped."""
    points, option = clouds.points, clouds.points_option
    if points < 2:
        raise UserError(f"{option}: found {points}, expected at least 2, because a single point has no diagram")
    if len(images) < points:
        raise UserError(f"{option}: found {points}, but {images.info.name} has only {len(images)} training images")
    return TrainLoader(images, points, seed, drop_last=True)
