"""ImageNet-1K, and Imagenette, ten of its classes that can be downloaded.

O. Russakovsky et al., "ImageNet Large Scale Visual Recognition Challenge", IJCV 2015: 1,281,167 training and 50,000
validation images, which serve as the test set; the images may not be passed on, so they have to be there.
J. Howard, Imagenette, https://github.com/fastai/imagenette: 9,469 and 3,925 images.
"""

import re
from collections.abc import Callable
from functools import partial
from http.client import HTTPException
from pathlib import Path

from torchvision.datasets import Imagenette
from torchvision.models import ResNet34_Weights

from .folder import class_folders, open_folders, subfolder
from .info import DatasetInfo, DatasetUnavailable, Recipe

WORDNET = re.compile(r"n\d{8}")  # what WordNet's numbers look like


def _imagenette_folder(name: str, data_dir: str) -> Path:
    """<data_dir>/imagenette, else imagenette2 as torchvision has it, downloaded if neither is there."""
    folder = subfolder(name, data_dir)
    if folder.is_dir():
        return folder
    downloaded = folder.with_name("imagenette2")
    if not downloaded.is_dir():
        try:
            Imagenette(data_dir, download=True)
        except (OSError, RuntimeError, HTTPException) as error:
            raise DatasetUnavailable(
                f"no {folder}, and the download failed ({' '.join(str(error).split())}): unpack imagenette2.tgz from "
                f"https://github.com/fastai/imagenette in {Path(data_dir).resolve()} and start again"
            ) from None
    return downloaded


def _class_names(find: Callable[[str, str], Path], name: str, data_dir: str) -> list[str]:
    """The names of the class folders: WordNet's numbers."""
    return class_folders(find(name, data_dir) / "val")


IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


def _titles(names: list[str]) -> list[str]:
    """What the classes are called; the names of folders that are no numbers of WordNet's stay as they are."""
    if len(names) == 1000 and all(WORDNET.fullmatch(name) for name in names):
        return list(ResNet34_Weights.IMAGENET1K_V1.meta["categories"])
    return [IMAGENETTE.get(name, name) for name in names]


# The schedule of the literature (He et al., CVPR 2016, with torchvision's 0.1 a batch of 256, and steps at 30, 60, 90).
# A cloud is as large as the published ones of CIFAR-100, so that a batch is cut into four; this is assumed.
RECIPE = Recipe(epochs=100, lr_decay_epochs=(30, 60, 90), lr=0.1, weight_decay=1e-4, batch_size=256, cloud_size=64)

# Mean and standard deviation are those with which torchvision's published networks were trained.
imagenet, imagenette = (
    DatasetInfo(
        name=name,
        num_classes=classes,
        mean=(0.485, 0.456, 0.406),
        std=(0.229, 0.224, 0.225),
        flip=True,
        image_size=224,
        drop_last=True,
        recipe=RECIPE,
        images=images,
        class_names=partial(_class_names, find, name),
        class_titles=_titles,
        open=partial(open_folders, find=find),
    )
    for name, classes, images, find in (
        ("imagenet", 1000, (1_281_167, 50_000), subfolder),
        ("imagenette", 10, (9_469, 3_925), _imagenette_folder),
    )
)
