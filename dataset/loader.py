"""Images on the device, and their augmentation as batched tensor work there.

Training batches have the distribution of torchvision's RandomCrop(32, padding=4), RandomHorizontalFlip, ToTensor and
Normalize, and equal it bit for bit given the same offsets.
"""

from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F

from .info import DatasetInfo

Batch = tuple[torch.Tensor, torch.Tensor]


class ImageSet:
    """A labelled set of images, whole on one device.

    images: uint8 (N, H, W, 3); labels: int64 (N,); both on the same device. TypeError or ValueError otherwise.
    """

    def __init__(self, images: torch.Tensor, labels: torch.Tensor, info: DatasetInfo):
        if images.dtype != torch.uint8 or labels.dtype != torch.int64:
            raise TypeError(f"{info.name}: images {images.dtype}, labels {labels.dtype}; expected uint8 and int64")
        if images.ndim != 4 or images.shape[3] != 3 or labels.shape != images.shape[:1]:
            found = f"images {tuple(images.shape)}, labels {tuple(labels.shape)}"
            raise ValueError(f"{info.name}: {found}; expected (N, H, W, 3) and (N,)")
        self.images = images.contiguous()
        self.labels = labels
        self.info = info
        # Tensors on the device, 255 too: CUDA divides by a Python number by multiplying with its rounded reciprocal.
        self._white, self._mean, self._std = (
            torch.tensor(value, dtype=torch.float32, device=images.device) for value in (255.0, info.mean, info.std)
        )

    def __len__(self) -> int:
        return len(self.images)

    @property
    def device(self) -> torch.device:
        return self.images.device

    def normalize(self, images: torch.Tensor) -> torch.Tensor:
        """uint8 (B, H, W, 3) to float32 (B, 3, H, W) in channels_last, bit-equal to ToTensor and Normalize."""
        return images.float().div_(self._white).sub_(self._mean).div_(self._std).permute(0, 3, 1, 2)


class EpochPlan:
    """Every random choice of one epoch, as tensors on the device; position i shows image order[i].

    order, top, left: int64 (N,), the image and the upper left corner of its crop in the padded image;
    flip: bool (N,); labels: int64 (N,), in the epoch's order.
    """

    def __init__(self, loader: "TrainLoader", epoch: int):
        info, count = loader.image_set.info, len(loader.image_set)
        rng = np.random.default_rng(np.random.SeedSequence((loader.seed, epoch)))
        choices = np.empty((4, count), dtype=np.int64)
        choices[0] = rng.permutation(count)
        choices[1:3] = rng.integers(0, 2 * info.padding + 1, size=(2, count))
        choices[3] = rng.integers(0, 2, size=count) if info.flip else 0

        self._loader = loader
        self.order, self.top, self.left, flip = torch.from_numpy(choices).to(loader.image_set.device)
        self.flip = flip.bool()
        self.labels = loader.image_set.labels[self.order]

    def images(self, start: int, stop: int) -> Batch:
        """The augmented images at positions start to stop - 1, float32 (B, 3, H, W) in channels_last, and their labels.

        The images do not depend on how the epoch is cut into batches. ValueError unless 0 <= start < stop <= N.
        """
        if not 0 <= start < stop <= len(self.order):
            raise ValueError(f"positions {start} to {stop} of an epoch of {len(self.order)} images")
        span = slice(start, stop)
        crops = self._loader.crop(self.order[span], self.top[span], self.left[span], self.flip[span])
        return self._loader.image_set.normalize(crops), self.labels[span]


class TrainLoader:
    """Shuffled, augmented batches of an ImageSet.

    The random numbers of an epoch depend on (seed, epoch) alone and are drawn at once on the CPU: any batch of any
    epoch can be had without those before it, on CPU and GPU alike, and the global generators stay untouched.
    drop_last leaves out the short batch at the end of an epoch. ValueError if an epoch would hold no batch.
    """

    def __init__(self, image_set: ImageSet, batch_size: int, seed: int, drop_last: bool = False):
        if batch_size < 1 or len(image_set) < (batch_size if drop_last else 1):
            raise ValueError(f"batch_size {batch_size} makes no batch of {len(image_set)} {image_set.info.name} images")
        self.image_set = image_set
        self.batch_size = batch_size
        self.seed = seed
        self.drop_last = drop_last

        padding = image_set.info.padding
        # Padded with 0 before normalisation: the border is black, not the mean colour.
        padded = F.pad(image_set.images, (0, 0, padding, padding, padding, padding))
        _, self._height, self._width, _ = padded.shape
        self._pixels = padded.view(-1, 3)
        self._rows, self._columns = (torch.arange(n, device=image_set.device) for n in image_set.images.shape[1:3])

    def __len__(self) -> int:
        """Batches in an epoch."""
        whole, rest = divmod(len(self.image_set), self.batch_size)
        return whole + (rest > 0 and not self.drop_last)

    def plan(self, epoch: int) -> EpochPlan:
        return EpochPlan(self, epoch)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """Batches start, start + 1, ... of an epoch: images float32 (B, 3, H, W) in channels_last, labels int64 (B,).

        ValueError unless 0 <= start <= len(self).
        """
        if not 0 <= start <= len(self):
            raise ValueError(f"batch {start} of an epoch of {len(self)} batches")
        plan = self.plan(epoch)
        return (plan.images(*self.span(i)) for i in range(start, len(self)))

    def span(self, batch: int) -> tuple[int, int]:
        """The positions of an epoch that make a batch: the first, and the one after the last."""
        return batch * self.batch_size, min((batch + 1) * self.batch_size, len(self.image_set))

    def crop(self, index: torch.Tensor, top: torch.Tensor, left: torch.Tensor, flip: torch.Tensor) -> torch.Tensor:
        """Crops of the padded images, mirrored where flip is set.

        index, top, left: int64 (B,); flip: bool (B,). Returns uint8 (B, H, W, 3).
        """
        # One gather of whole pixels crops and mirrors at once: faster than a strided view of all crops and a flip.
        rows = (index * self._height + top)[:, None] + self._rows
        columns = left[:, None] + torch.where(flip[:, None], self._columns.flip(0), self._columns)
        position = rows[:, :, None] * self._width + columns[:, None, :]
        return self._pixels.index_select(0, position.view(-1)).view(*position.shape, 3)


def test_batches(image_set: ImageSet, batch_size: int = 1000) -> Iterator[Batch]:
    """Every image once, in order and without augmentation: images float32 (B, 3, H, W) in channels_last, labels."""
    for images, labels in zip(image_set.images.split(batch_size), image_set.labels.split(batch_size), strict=True):
        yield image_set.normalize(images), labels


test_batches.__test__ = False  # pytest would take it for a test wherever a test file imports it
