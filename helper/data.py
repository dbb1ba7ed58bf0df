"""The data set that the options name, with its failures as one clear line."""

import contextlib
import os
from collections.abc import Iterator

from dataset import DatasetUnavailable, LabelledImages, dataset_dict, load_dataset

from .errors import UserError
from .settings import Data

MOST_WORKERS = 16


def load_data(data: Data) -> tuple[LabelledImages, LabelledImages]:
    """(training set, test set) of --dataset from --data_dir, on --device."""
    if data.workers is not None and dataset_dict[data.dataset].open is None:
        raise UserError(
            f"--workers: has no effect with --dataset {data.dataset}, whose images are kept on the device; leave it out"
        )
    workers = min(usable_cores(), MOST_WORKERS) if data.workers is None else data.workers
    try:
        return load_dataset(data.dataset, data.data_dir, data.device, workers)
    except DatasetUnavailable as error:
        raise UserError(str(error)) from None
    except (OSError, TypeError, ValueError) as error:  # from the reader of somebody's own data set
        raise UserError(f"--dataset {data.dataset}, --data_dir {data.data_dir}: {error}") from None


def usable_cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextlib.contextmanager
def image_files() -> Iterator[None]:
    """A file that turns out unreadable while images are read ends the program in one line that names it."""
    try:
        yield
    except DatasetUnavailable as error:
        raise UserError(str(error)) from None


def num_classes(dataset: str) -> int:
    return dataset_dict[dataset].num_classes


def image_size(data: Data) -> int:
    """Pixels on each side of an image of --dataset."""
    return dataset_dict[data.dataset].image_size


def class_names(data: Data) -> list[str]:
    """Names of the classes of --dataset in the order of their labels; their numbers where they have no names."""
    info = dataset_dict[data.dataset]
    return info.class_names(data.data_dir) if info.class_names else [str(label) for label in range(info.num_classes)]


def class_titles(data: Data) -> list[str]:
    """What the classes are called where that is not their names, in the order of their labels."""
    info, names = dataset_dict[data.dataset], class_names(data)
    return info.class_titles(names) if info.class_titles else names
