"""Data sets. To add one: write a file with a DatasetInfo beside cifar.py, and name it in dataset_dict."""

from difflib import get_close_matches

import torch

from .cifar import cifar10, cifar100
from .digits import digits
from .info import DatasetInfo, DatasetUnavailable
from .loader import EpochPlan, ImageSet, TrainLoader, test_batches

__all__ = [
    "DatasetInfo",
    "DatasetUnavailable",
    "EpochPlan",
    "ImageSet",
    "TrainLoader",
    "dataset_dict",
    "load_dataset",
    "test_batches",
]

dataset_dict: dict[str, DatasetInfo] = {info.name: info for info in (cifar100, cifar10, digits)}


def load_dataset(name: str, data_dir: str, device: torch.device | str = "cpu") -> tuple[ImageSet, ImageSet]:
    """The training and the test set of a name in dataset_dict, whole on the device as uint8.

    ValueError for an unknown name; DatasetUnavailable if its files are not in data_dir and cannot be downloaded.
    """
    if name not in dataset_dict:
        near = get_close_matches(name.lower(), dataset_dict, n=1, cutoff=0.0)[0]
        raise ValueError(f"unknown data set {name!r}: did you mean {near!r}? Known: {', '.join(dataset_dict)}")
    info = dataset_dict[name]
    train, test = (
        ImageSet(torch.from_numpy(images).to(device), torch.from_numpy(labels).to(device), info)
        for images, labels in info.load(data_dir)
    )
    return train, test
