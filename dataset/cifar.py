"""CIFAR-100 and CIFAR-10: 50,000 training and 10,000 test images of 32 x 32 pixels.

A. Krizhevsky, "Learning Multiple Layers of Features from Tiny Images", 2009. torchvision checks the md5 of the files
before it reads them, and downloads them once if they are absent or damaged.
"""

from functools import partial
from http.client import HTTPException
from pathlib import Path

import numpy as np
from torchvision.datasets import CIFAR10, CIFAR100

from .info import DatasetInfo, DatasetUnavailable, Split


def _load(source: type[CIFAR10], data_dir: str) -> tuple[Split, Split]:
    try:
        train = source(data_dir, train=True)
    except RuntimeError:  # absent, or another md5
        train = _download(source, Path(data_dir))
    test = source(data_dir, train=False)
    return (train.data, np.array(train.targets)), (test.data, np.array(test.targets))


def _download(source: type[CIFAR10], data_dir: Path) -> CIFAR10:
    try:
        return source(data_dir, train=True, download=True)
    except (OSError, RuntimeError, HTTPException) as error:
        raise DatasetUnavailable(
            f"no intact {source.__name__} in {data_dir / source.base_folder}, and the download failed "
            f"({' '.join(str(error).split())}): put {source.filename} from https://www.cs.toronto.edu/~kriz/cifar.html "
            f"into {data_dir.resolve()} and start again"
        ) from None


def _class_names(source: type[CIFAR10], data_dir: str) -> list[str]:
    return source(data_dir, train=False).classes


# Mean and standard deviation are those over all pixels of the training images; CIFAR-100's are the values the field has
# always used, up to 0.0002 off what the files give, and published networks were trained with them.
cifar100 = DatasetInfo(
    name="cifar100",
    num_classes=100,
    mean=(0.5071, 0.4867, 0.4408),
    std=(0.2675, 0.2565, 0.2761),
    flip=True,
    load=partial(_load, CIFAR100),
    images=(50_000, 10_000),
    class_names=partial(_class_names, CIFAR100),
)
cifar10 = DatasetInfo(
    name="cifar10",
    num_classes=10,
    mean=(0.4914, 0.4822, 0.4465),
    std=(0.2470, 0.2435, 0.2616),
    flip=True,
    load=partial(_load, CIFAR10),
    images=(50_000, 10_000),
    class_names=partial(_class_names, CIFAR10),
)
