"""What a data set has to say about itself."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

Split = tuple[np.ndarray, np.ndarray]  # images and labels
Span = tuple[int, int, int]  # an epoch, the first of some positions of its order, and their end


class DatasetUnavailable(RuntimeError):
    """The files of a data set are neither on disk nor downloadable; the message says which file to put where."""


@dataclass(frozen=True)
class Recipe:
    """The schedule with which networks are trained on a data set in the literature.

    lr_decay_epochs: the learning rate falls to a tenth AFTER these epochs. lr: at batch_size; for another batch it
    changes in proportion. cloud_size: images of a point cloud, of which a batch holds several.
    """

    epochs: int
    lr_decay_epochs: tuple[int, ...]
    lr: float
    weight_decay: float
    batch_size: int
    cloud_size: int


@dataclass(frozen=True)
class DatasetInfo:
    """One data set: its constants, and the function that reads it, `load` or `open`.

    mean, std: per channel, of the training images scaled to [0, 1].
    padding: black pixels on each side before the random crop back to image_size, for images kept on the device.
    flip: whether a mirrored image still shows the same class.
    load(data_dir): returns (training set, test set), each a pair of images, uint8 (N, image_size, image_size, 3), and
        labels, int64 (N,), which are then kept on the device; raises DatasetUnavailable if there are no files to read.
    open(info, data_dir, device, workers, on_first): returns (training set, test set) of image files, as
        `folder.open_folders` does. It serves a folder <data_dir>/<name>/{train,val}/<class>/ as it is.
    drop_last: whether the short batch at the end of an epoch is left out of the training.
    recipe: None for that of the 32 x 32 images.
    images: how many (training, test) images the complete set has; None where nobody knows.
    class_names(data_dir): the names of the classes in the order of their labels; None where they have numbers only.
    class_titles(names): what the classes of these names, in the order of their labels, are called; None where the names
        say it.
    """

    name: str
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flip: bool
    load: Callable[[str], tuple[Split, Split]] | None = None
    image_size: int = 32
    padding: int = 4
    class_names: Callable[[str], list[str]] | None = None
    class_titles: Callable[[list[str]], list[str]] | None = None
    open: Callable[..., tuple[Any, Any]] | None = None
    drop_last: bool = False
    recipe: Recipe | None = None
    images: tuple[int, int] | None = None

    @property
    def large(self) -> bool:
        """Whether what networks make of a batch of images fills memory sooner than the device is busy."""
        return self.image_size > 64


def check_split(info: DatasetInfo, split: str, images: np.ndarray, labels: np.ndarray) -> None:
    """Raise ValueError with one line if the images and labels that `load` gave are not as DatasetInfo has it.

    split: what the line calls them, 'training set' or 'test set'.
    """

    def refuse(found: str, expected: str):
        raise ValueError(f"{info.name}, {split}: found {found}, expected {expected}")

    if info.num_classes < 2:
        refuse(f"num_classes {info.num_classes}", "at least 2 classes")
    for name, array, dtype, shape in (
        ("images", images, np.dtype(np.uint8), ("N", info.image_size, info.image_size, 3)),
        ("labels", labels, np.dtype(np.int64), ("N",)),
    ):
        if not isinstance(array, np.ndarray):
            refuse(f"{name} as {type(array).__name__}", "a NumPy array")
        if array.dtype != dtype:
            refuse(f"{name} of type {array.dtype}", str(dtype))
        if array.ndim != len(shape) or array.shape[1:] != shape[1:]:
            refuse(f"{name} of shape {array.shape}", str(shape).replace("'", ""))
    if len(images) != len(labels):
        refuse(f"{len(images)} images and {len(labels)} labels", "a label for each image")
    if not len(images):
        refuse("no images", "at least one")
    outside = labels[(labels < 0) | (labels >= info.num_classes)]
    if len(outside):
        refuse(
            f"label {outside[0]} ({len(outside)} of {len(labels)} labels are out of range)",
            f"0 to {info.num_classes - 1}, as num_classes is {info.num_classes}",
        )
