"""Data sets. To add one: write a file with a DatasetInfo beside cifar.py, and name it in dataset_dict."""

from collections.abc import Callable
from difflib import get_close_matches

import torch

from .cifar import cifar10, cifar100
from .digits import digits
from .folder import FolderSet, call, decoder_name, open_folders
from .imagenet import imagenet, imagenette
from .images import EpochPlan, ImageSet
from .info import DatasetInfo, DatasetUnavailable, Recipe, check_split
from .loader import LabelledImages, TrainLoader, batches_in_order, usual_test_batch

__all__ = [
    "DatasetInfo",
    "DatasetUnavailable",
    "EpochPlan",
    "FolderSet",
    "ImageSet",
    "LabelledImages",
    "Recipe",
    "TrainLoader",
    "batches_in_order",
    "dataset_dict",
    "decoder_name",
    "load_dataset",
    "open_folders",
    "usual_test_batch",
]

dataset_dict: dict[str, DatasetInfo] = {info.name: info for info in (cifar100, cifar10, digits, imagenet, imagenette)}


def load_dataset(
    name: str, data_dir: str, device: torch.device | str = "cpu", workers: int = 0, on_first: Callable = call
) -> tuple[LabelledImages, LabelledImages]:
    """The training and the test set of a name in dataset_dict: whole on the device as uint8, or as image files.

    workers: processes for each of the two sets that read image files ahead; 0 reads them in this one.
    on_first(function, *arguments): runs a function in one of several processes and gives its result to all, so that
    only one searches folders.
    ValueError for an unknown name, and for images or labels that are not as its DatasetInfo has it;
    DatasetUnavailable if its files are not in data_dir and cannot be downloaded.
    """
    if name not in dataset_dict:
        near = get_close_matches(name.lower(), dataset_dict, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown data set {name!r}: did you mean {near!r}? Known: {', '.join(dataset_dict)}")
    info = dataset_dict[name]
    if info.open:
        return info.open(info, data_dir, device, workers, on_first)
    if info.load is None:
        raise ValueError(f"{name}: its DatasetInfo has neither load nor open, expected one of them")
    sets = []
    for split, (images, labels) in zip(("training set", "test set"), info.load(data_dir), strict=True):
        check_split(info, split, images, labels)
        sets.append(ImageSet(torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device), info))
    train, test = sets
    return train, test
