"""Batches of a data set: shuffled and augmented for training, in order for a test.

A data set answers two questions, `augmented` and `plain` (see ImageSet); which images it is asked for is decided here.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property

import torch
from torch import Tensor

from .folder import FolderSet
from .images import EpochPlan, ImageSet
from .info import Span

LabelledImages = ImageSet | FolderSet
LARGE_GPU = 64 << 30  # bytes; a wide network's activations of 5,000 small images take up to 20 GB


class TrainLoader:
    """Shuffled, augmented batches of a data set.

    What an epoch shows follows from (seed, epoch) alone: any batch of any epoch can be had without those before it.
    drop_last leaves out the short batch at the end of an epoch; None: as the data set's training does. batch_size
    counts the images of all `world` processes together; this one, number `rank`, is given a contiguous share of each
    batch, so that a step sees the same images for every number of processes. A short last batch is cut to a multiple of
    `world`.
    ValueError if an epoch would hold no batch, or if the processes cannot share one equally.
    """

    def __init__(
        self,
        image_set: LabelledImages,
        batch_size: int,
        seed: int,
        drop_last: bool | None = None,
        rank: int = 0,
        world: int = 1,
    ):
        if batch_size % world:
            raise ValueError(f"batch_size {batch_size} cannot be shared equally by {world} processes")
        self.image_set = image_set
        self.batch_size = batch_size
        self.seed = seed
        self.drop_last = image_set.info.drop_last if drop_last is None else drop_last
        self.rank, self.world = rank, world
        if batch_size < 1 or not len(self):
            raise ValueError(f"batch_size {batch_size} makes no batch of {len(image_set)} {image_set.info.name} images")

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(len(self.image_set), self.batch_size)
        return whole + (rest >= self.world and not self.drop_last)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Batches start, start + 1, ... of an epoch: images, labels and indices, as `ImageSet.augmented` gives them.

        ValueError unless 0 <= start <= len(self).
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"batch {start} of an epoch of {len(self)} batches")
        return self.spans((epoch, *self.span(batch)) for batch in range(start, len(self)))

    @cached_property
    def plan(self) -> EpochPlan:
        """An epoch's plan that nothing else draws anew: `EpochPlan.draw` makes it another epoch's, in the same memory.

        TypeError for a data set that has none, because its images are not on the device.
        """
        if not isinstance(self.image_set, ImageSet):
            raise TypeError(f"{self.image_set.info.name} has no plan of an epoch")
        return EpochPlan(self.image_set, self.seed, 1)

    def span(self, batch: int) -> tuple[int, int]:
        """The positions of an epoch that make up this process's share of a batch: the first, and the end."""
        first = batch * self.batch_size
        share = min(self.batch_size, len(self.image_set) - first) // self.world
        first += self.rank * share
        return first, first + share

    def spans(self, requests: Iterable[Span]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """A batch for each (epoch, first, last): positions first to last - 1 of the epoch, batches or not."""
        return self.image_set.augmented(self.seed, requests)


def batches_in_order(
    image_set: LabelledImages, batch_size: int | None = None, rank: int = 0, world: int = 1
) -> Iterator[tuple[Tensor, Tensor]]:
    """Every image once, in order and without augmentation: images float32 (B, 3, H, W) in channels_last, labels. Of
    several processes, number `rank` of `world` is given the batches rank, rank + world, ..."""
    if batch_size is None:
        batch_size = usual_test_batch(image_set)
    return image_set.plain(torch.arange(len(image_set)).split(batch_size)[rank::world])


def usual_test_batch(image_set: LabelledImages) -> int:
    """Images at once: the activations of large images take more memory, and a large GPU is idle with few images."""
    if image_set.info.large:
        return 250
    device = image_set.device
    if device.type == "cuda" and torch.cuda.get_device_properties(device).total_memory >= LARGE_GPU:
        return 5000  # of which no map of any network has 2^31 elements
    return 1000
