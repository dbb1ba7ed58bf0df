"""What a data set has to say about itself."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

Split = tuple[np.ndarray, np.ndarray]


class DatasetUnavailable(RuntimeError):
    """The files of a data set are neither on disk nor downloadable; the message says which file to put where."""


@dataclass(frozen=True)
class DatasetInfo:
    """One data set: its constants, and the function that reads it.

    mean, std: per channel, of the training images scaled to [0, 1].
    padding: black pixels on each side before the random crop back to image_size.
    flip: whether a mirrored image still shows the same class.
    load(data_dir): returns (training set, test set), each a pair of images, uint8 (N, image_size, image_size, 3), and
        labels, int64 (N,); raises DatasetUnavailable if there are no files to read.
    class_names(data_dir): the names of the classes by their number, None where they have none.
    """

    name: str
    num_classes: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    flip: bool
    load: Callable[[str], tuple[Split, Split]]
    image_size: int = 32
    padding: int = 4
    class_names: Callable[[str], list[str]] | None = None
