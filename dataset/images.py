"""Images on the device, and their augmentation as batched tensor work there.

Training batches have the distribution of torchvision's RandomCrop(32, padding=4), RandomHorizontalFlip, ToTensor and
Normalize, and equal it bit for bit given the same offsets.
"""

from collections.abc import Iterable, Iterator
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .info import DatasetInfo, Span
from .strong import strong_view


class Normalization:
    """uint8 (B, H, W, 3) to float32 (B, 3, H, W) in channels_last, bit-equal to ToTensor and Normalize."""

    def __init__(self, info: DatasetInfo, device: torch.device):
        # Tensors on the device, 255 too: CUDA divides by a Python number by multiplying with its rounded reciprocal.
        self.white, self.mean, self.std = (
            torch.tensor(value, dtype=torch.float32, device=device) for value in (255.0, info.mean, info.std)
        )

    def __call__(self, images: Tensor) -> Tensor:
        return images.float().div_(self.white).sub_(self.mean).div_(self.std).permute(0, 3, 1, 2)

    def undone(self, images: Tensor) -> Tensor:
        """The uint8 images (B, H, W, 3) that were normalised to float32 (B, 3, H, W)."""
        pixels = images.permute(0, 2, 3, 1) * self.std + self.mean
        return (pixels * self.white).round_().to(torch.uint8)


class ImageSet:
    """A labelled set of images, whole on one device.

    images: uint8 (N, H, W, 3); labels: int64 (N,); both on the same device (`load_dataset` checks them).
    """

    host_bound = ""  # why a batch takes work of the host, in words

    def __init__(self, images: Tensor, labels: Tensor, info: DatasetInfo):
        self.images = images.contiguous()
        self.labels = labels
        self.info = info
        self.normalize = Normalization(info, images.device)
        self._plan: EpochPlan | None = None

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> torch.device:
        return self.images.device

    def augmented(self, seed: int, requests: Iterable[Span]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Shuffled and augmented images, a batch for each request, in the order of the requests.

        requests: (epoch, first, last) asks for positions first to last - 1 of that epoch's order. What stands at a
        position follows from (seed, epoch) alone, however an epoch is cut into batches.
        Yields images float32 (B, 3, H, W) in channels_last, labels int64 (B,), and indices int64 (B,) in this set.
        """
        plan = None
        for epoch, first, last in requests:
            if plan is None or plan.epoch != epoch:
                plan = self.plan(seed, epoch)  # kept here: others may ask for another seed's in between
            yield plan.images(first, last)

    def plain(self, requests: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Images without augmentation, a batch for each request; a request is an int64 tensor (B,) of indices.

        Yields images float32 (B, 3, H, W) in channels_last, and labels int64 (B,).
        """
        for indices in requests:
            indices = indices.to(self.device)
            yield self.normalize(self.images[indices]), self.labels[indices]

    def strong_view(self, seed: int, epoch: int, images: Tensor, indices: Tensor) -> Tensor:
        """A strongly augmented view, with a crop of its own, of the images with the indices (B,), as `augmented` gives
        images. `images`, which that has made of them, are not needed here."""
        view = strong_view(self.images[indices], seed, epoch, indices, self.info.padding, self.info.flip)
        return self.normalize(view)

    def plan(self, seed: int, epoch: int) -> "EpochPlan":
        """The random choices of an epoch; those last asked for are kept."""
        if self._plan is None or (self._plan.seed, self._plan.epoch) != (seed, epoch):
            self._plan = EpochPlan(self, seed, epoch)
        return self._plan

    @property
    def view_count(self) -> int:
        """The views that augmentation may make of an image: a crop for each corner, twice where images are mirrored."""
        return (2 * self.info.padding + 1) ** 2 * (1 + self.info.flip)

    def views(self, seed: int, epoch: int) -> Tensor:
        """The number of the view in which an epoch shows each image, int64 (N,), by the image's index."""
        plan = self.plan(seed, epoch)
        numbers = plan.top * (2 * self.info.padding + 1) + plan.left
        if self.info.flip:
            numbers = 2 * numbers + plan.flip
        return torch.empty_like(numbers).scatter_(0, plan.order, numbers)

    def view(self, number: int, indices: Tensor) -> Tensor:
        """The view of that number, of the images with the indices (B,), as `augmented` gives images."""
        corner, flip = divmod(number, 2) if self.info.flip else (number, 0)
        top, left = (torch.full_like(indices, number) for number in divmod(corner, 2 * self.info.padding + 1))
        return self.normalize(self.crop(indices, top, left, torch.full_like(indices, flip, dtype=torch.bool)))

    def crop(self, indices: Tensor, top: Tensor, left: Tensor, flip: Tensor) -> Tensor:
        """Crops of the padded images, mirrored where flip is set.

        indices, top, left: int64 (B,), the latter in the padded image; flip: bool (B,). Returns uint8 (B, H, W, 3).
        """
        _, height, width, _ = self._padded.shape
        down, across = self._axes
        # One gather of whole pixels crops and mirrors at once: faster than a strided view of all crops and a flip.
        rows = (indices * height + top)[:, None] + down
        columns = left[:, None] + torch.where(flip[:, None], across.flip(0), across)
        position = rows[:, :, None] * width + columns[:, None, :]
        return self._padded.view(-1, 3).index_select(0, position.view(-1)).view(*position.shape, 3)

    @cached_property
    def _padded(self) -> Tensor:
        """The images with padding of 0 before normalisation: the border is black, not the mean colour."""
        padding = self.info.padding
        return F.pad(self.images, (0, 0, padding, padding, padding, padding))

    @cached_property
    def _axes(self) -> list[Tensor]:
        """The numbers of the rows and of the columns of an image."""
        return [torch.arange(n, device=self.device) for n in self.images.shape[1:3]]


class EpochPlan:
    """Every random choice of one epoch, as tensors on the device; position i shows image order[i].

    The numbers follow from (seed, epoch) alone and are drawn at once on the CPU: any batch of any epoch can be had
    without those before it, on CPU and GPU alike, and the global generators stay untouched.

    choices: int64 (4, N); its rows are order, top and left, the image and the upper left corner of its crop in the
    padded image, and flip, 0 or 1. They stay where they are in memory, whatever epoch is drawn.
    """

    def __init__(self, image_set: ImageSet, seed: int, epoch: int):
        self._set = image_set
        self.choices = torch.empty(4, len(image_set), dtype=torch.int64, device=image_set.device)
        self.draw(seed, epoch)

    def draw(self, seed: int, epoch: int) -> None:
        """Become the plan of another epoch, in place."""
        info, count = self._set.info, len(self._set)
        rng = np.random.default_rng(np.random.SeedSequence((seed, epoch)))
        choices = np.empty((4, count), dtype=np.int64)
        choices[0] = rng.permutation(count)
        choices[1:3] = rng.integers(0, 2 * info.padding + 1, size=(2, count))
        choices[3] = rng.integers(0, 2, size=count) if info.flip else 0
        self.seed, self.epoch = seed, epoch
        self.choices.copy_(torch.from_numpy(choices))

    @property
    def order(self) -> Tensor:
        return self.choices[0]

    @property
    def top(self) -> Tensor:
        return self.choices[1]

    @property
    def left(self) -> Tensor:
        return self.choices[2]

    @property
    def flip(self) -> Tensor:
        return self.choices[3].bool()

    def at(self, positions: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and indices at positions int64 (B,), which are on the device and are not checked: the host
        need not know them."""
        order, top, left, flip = self.choices.index_select(1, positions)
        crops = self._set.crop(order, top, left, flip.bool())
        return self._set.normalize(crops), self._set.labels[order], order

    def images(self, first: int, last: int) -> tuple[Tensor, Tensor, Tensor]:
        """Images, labels and indices at positions first to last - 1. ValueError unless 0 <= first < last <= N."""
        check_span(first, last, len(self.order))
        return self.at(torch.arange(first, last, device=self.choices.device))


def check_span(first: int, last: int, count: int) -> None:
    if not 0 <= first < last <= count:
        raise ValueError(f"positions {first} to {last} of an epoch of {count} images")
