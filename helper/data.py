"""The data set that the options name, with its failures as one clear line."""

import contextlib
import os
from collections.abc import Iterator

from dataset import DatasetUnavailable, LabelledImages, TrainLoader, dataset_dict, load_dataset

from . import distributed
from .errors import UserError
from .settings import Data

MOST_WORKERS = 16


def load_data(data: Data) -> tuple[LabelledImages, LabelledImages]:
    """(training set, test set) of --dataset from --data_dir, on --device."""
    if data.workers is not None and dataset_dict[data.dataset].open is None:
        raise UserError(
            f"--workers: has no effect with --dataset {data.dataset}, whose images are kept on the device; leave it out"
        )
    workers = data.workers
    if workers is None:
        workers = max(1, min(usable_cores() // distributed.local_world(), MOST_WORKERS))
    source = data.dataset, data.data_dir, data.device, workers
    try:
        if dataset_dict[data.dataset].open:
            return load_dataset(*source, distributed.on_first)
        return distributed.after_first(load_dataset, *source)
    except DatasetUnavailable as error:
        raise UserError(str(error)) from None
    except UserError:
        raise
    except Exception as error:  # of a reader that is the user's own, which may raise anything
        reason = str(error) if type(error) in (TypeError, ValueError) else f"{type(error).__name__} ({error})"
        if isinstance(error, OSError) and error.filename is not None:
            reason = f"{error.filename}: {error.strerror}"
        raise UserError(f"--dataset {data.dataset}, --data_dir {data.data_dir}: {reason}") from None


def train_loader(images: LabelledImages, batch_size: int, seed: int) -> TrainLoader:
    """This process's share of the batches of a training set. UserError if the processes cannot share one equally."""
    share_of(batch_size)
    return TrainLoader(images, batch_size, seed, rank=distributed.rank(), world=distributed.world())


def share_of(batch_size: int) -> int:
    """The images of a batch that a process has. UserError if the processes cannot share it equally."""
    share, rest = divmod(batch_size, distributed.world())
    if rest:
        raise UserError(
            f"--batch_size: found {batch_size}, which {distributed.world()} processes cannot share equally; give a "
            f"multiple of {distributed.world()}, or start another number of processes"
        )
    return share


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
