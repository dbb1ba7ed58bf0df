"""Images in folders, <folder>/{train,val}/<class>/<file>, read and decoded by worker processes while a network trains.

Training batches have the distribution of torchvision's RandomResizedCrop and RandomHorizontalFlip, test images are cut
as by Resize and CenterCrop (224 of 256 pixels). Workers keep no state: crop and flip of an image follow from
(seed, epoch, index), whatever the batch, the number of workers, and the batch from which a run is resumed.
"""

import atexit
import importlib.metadata
import multiprocessing
import os
import signal
import warnings
import weakref
from collections.abc import Callable, Generator, Iterable, Iterator
from functools import partial
from io import BytesIO
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.datasets.folder import IMG_EXTENSIONS
from torchvision.transforms import RandomResizedCrop
from torchvision.transforms.v2 import functional as TF

from .images import Normalization, check_span
from .info import DatasetInfo, DatasetUnavailable, Span
from .strong import strong_view

SCALE, RATIO = (0.08, 1.0), (3 / 4, 4 / 3)  # area and shape of a training crop: torchvision's defaults
ORDER_SEED = 0
PREFETCH = 2  # batches that each worker has ready; one of 256 images of 224 x 224 takes 38.5 MB of shared memory


class Listing(NamedTuple):
    """The image files of one split.

    names: (N,) bytes of fixed width, relative to `folder`; labels: int64 (N,), numbers of `classes`, the sorted names
    of the class folders.
    """

    folder: str
    names: np.ndarray
    labels: np.ndarray
    classes: list[str]


def class_folders(folder: Path) -> list[str]:
    """The sorted names of the class folders of a split."""
    return sorted(entry.name for entry in os.scandir(folder) if entry.is_dir())


def list_images(folder: Path) -> Listing:
    """Every image file below the class folders of a split, in an order that mixes the classes, always the same for the
    same names: consecutive images are a sample of all classes, as in CIFAR's files.

    ValueError if there is no class folder, or one without images.
    """
    classes = class_folders(folder)
    if not classes:
        raise ValueError(
            f"{folder}: found no class folders but {len(os.listdir(folder))} files, expected <class>/<image> there"
        )
    names, labels = [], []
    for label, name in enumerate(classes):
        files = sorted(file for file in os.listdir(folder / name) if file.lower().endswith(IMG_EXTENSIONS))
        if not files:
            raise ValueError(f"{folder / name}: found no images, expected at least one in the folder of a class")
        names += [f"{name}/{file}".encode() for file in files]
        labels += [label] * len(files)
    order = np.random.RandomState(ORDER_SEED).permutation(len(names))  # the same in every release of NumPy
    # An array of fixed width, not a list: processes forked from this one would copy a list page by page.
    return Listing(str(folder), np.array(names)[order], np.array(labels)[order], classes)


def list_splits(info: DatasetInfo, folder: Path) -> tuple[Listing, Listing]:
    """The files of <folder>/train and <folder>/val; prints how many there are.

    DatasetUnavailable if a split is missing; ValueError for another number of classes than the data set has, for
    classes that differ between the splits, and as by `list_images`.
    """
    listings = []
    for split in ("train", "val"):
        if not (folder / split).is_dir():
            raise DatasetUnavailable(
                f"{folder / split}: no such folder; put the images of {info.name} into {folder}/train/<class>/ and "
                f"{folder}/val/<class>/, or make {folder} a link to a folder that has them"
            )
        listings.append(list_images(folder / split))
        if len(listings[-1].classes) != info.num_classes:
            raise ValueError(
                f"{folder / split}: found {len(listings[-1].classes)} class folders, expected {info.num_classes}"
            )
    train, test = listings
    if unlike := sorted(set(train.classes) ^ set(test.classes)):
        raise ValueError(f"{folder}: class folder {unlike[0]} is in only one of train and val, expected it in both")
    line = f"{info.name}: {len(train.names):,} training and {len(test.names):,} test images in {folder}"
    if info.images and info.images != (len(train.names), len(test.names)):
        line += "; warning: the complete set has {:,} and {:,}".format(*info.images)
    print(line, flush=True)
    return train, test


def subfolder(name: str, data_dir: str) -> Path:
    return Path(data_dir) / name


def call(function: Callable, *arguments):
    return function(*arguments)


def open_folders(
    info: DatasetInfo,
    data_dir: str,
    device: torch.device | str,
    workers: int,
    on_first: Callable = call,
    find: Callable[[str, str], Path] = subfolder,
) -> tuple["FolderSet", "FolderSet"]:
    """The training and the test set of a folder.

    find(name, data_dir) gives the folder. on_first(function, *arguments) runs a function in one of several processes
    and gives its result to all: only that one searches the folders.
    """
    if workers < 0:
        raise ValueError(f"workers: found {workers}, expected at least 0")
    folder = on_first(find, info.name, data_dir)
    train, test = on_first(list_splits, info, folder)
    return FolderSet(train, info, device, workers), FolderSet(test, info, device, workers)


class Task(NamedTuple):
    """What a worker makes a batch of: the images with these indices, as they are shown in an epoch, or plain."""

    indices: np.ndarray
    seed: int | None = None
    epoch: int | None = None


class FolderSet:
    """A labelled set of image files; it answers as ImageSet does, in the same shapes.

    workers: processes that read ahead; 0 reads in this process, when a batch is asked for. The workers belong to the
    set, so one iterator of a set can be used at a time: beginning another ends the one before.
    """

    host_bound = "its images are read from files"  # why a batch takes work of the host

    def __init__(
        self,
        listing: Listing,
        info: DatasetInfo,
        device: torch.device | str = "cpu",
        workers: int = 0,
        decode: Callable[[bytes], Tensor] | None = None,
    ):
        self.info = info
        self.device = torch.device(device)
        self.labels = torch.from_numpy(listing.labels).to(self.device)
        self.normalize = Normalization(info, self.device)
        self._tasks = Tasks()
        closing = multiprocessing.RawValue("b", False)
        atexit.register(setattr, closing, "value", True)
        self._loader = DataLoader(
            Reader(listing.folder, listing.names, info, decode or best_decoder()),
            batch_sampler=self._tasks,  # type: ignore[arg-type]  # what it yields need not be lists
            num_workers=workers,
            collate_fn=as_it_is,
            pin_memory=self.device.type == "cuda",
            worker_init_fn=partial(prepare_worker, closing),
            generator=torch.Generator(),  # else every pass would take a number from the global one
            prefetch_factor=PREFETCH if workers else None,
            persistent_workers=workers > 0,
        )
        self._order: tuple[tuple[int, int], np.ndarray] | None = None

    def __len__(self) -> int:
        return len(self.labels)

    def augmented(self, seed: int, requests: Iterable[Span]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """As ImageSet.augmented; the requests are taken ahead of the batches."""

        def tasks():
            for epoch, first, last in requests:
                check_span(first, last, len(self))
                yield Task(self._epoch_order(seed, epoch)[first:last], seed, epoch)

        return self._batches(tasks())

    def plain(self, requests: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """As ImageSet.plain; the requests are taken ahead of the batches."""
        batches = self._batches(Task(indices.cpu().numpy()) for indices in requests)
        return ((images, labels) for images, labels, _ in batches)

    def strong_view(self, seed: int, epoch: int, images: Tensor, indices: Tensor) -> Tensor:
        """As ImageSet.strong_view, but of `images` as `augmented` has cropped them."""
        return self.normalize(strong_view(self.normalize.undone(images), seed, epoch, indices))

    def _epoch_order(self, seed: int, epoch: int) -> np.ndarray:
        if self._order is None or self._order[0] != (seed, epoch):
            rng = np.random.default_rng(np.random.SeedSequence((seed, epoch)))
            self._order = (seed, epoch), rng.permutation(len(self))
        return self._order[1]

    def _batches(self, tasks: Generator[Task, None, None]) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        self._tasks.current = weakref.ref(tasks)
        answers = iter(self._loader)
        while True:
            if self._tasks.current() is not tasks:
                raise RuntimeError(f"{self.info.name}: another pass over this set has begun, which ended this one")
            answer = next(answers, None)
            if answer is None:
                return
            if isinstance(answer, str):
                raise DatasetUnavailable(answer)
            pixels, indices = (part.to(self.device, non_blocking=True) for part in answer)
            yield self.normalize(pixels), self.labels[indices], indices


class Tasks:
    """The batch sampler of a DataLoader that lives longer than one pass: each pass has tasks of its own.

    Whoever takes the batches keeps the pass. Kept here too, it would close a circle through the loader, and workers of
    a loader in a circle are not told to end: each is waited for for ten seconds.
    """

    current: Callable[[], Iterator[Task] | None] = staticmethod(lambda: None)

    def __iter__(self) -> "Tasks":
        return self

    def __next__(self) -> Task:
        return next(self.current() or iter(()))


class Reader(Dataset):
    """What a worker has and does. It is copied into other processes, hence it has no tensors of a GPU.

    folder, names: as in Listing. decode: encoded bytes -> uint8 (3, H, W).
    """

    def __init__(self, folder: str, names: np.ndarray, info: DatasetInfo, decode: Callable[[bytes], Tensor]):
        self.folder, self.names, self.decode = folder, names, decode
        self.size, self.flip = info.image_size, info.flip

    def __getitems__(self, task: Task) -> tuple[Tensor, Tensor] | str:
        """Images uint8 (B, size, size, 3), and their indices; a line of text for a file that cannot be read."""
        images = torch.empty(len(task.indices), self.size, self.size, 3, dtype=torch.uint8)
        with torch.random.fork_rng(devices=[]):  # torchvision's transforms know the global generator only
            for image, index in zip(images, task.indices.tolist(), strict=True):
                path = os.path.join(self.folder, self.names[index].decode())
                try:
                    with open(path, "rb") as file:
                        pixels = self.decode(file.read())
                except Exception as error:  # a decoder meets anything in a damaged file
                    reason = " ".join(f"{type(error).__name__}: {error}".split())
                    return f"{path}: not readable as an image ({reason}); replace the file by an intact one"
                if task.seed is None or task.epoch is None:
                    pixels = central_crop(pixels, self.size)
                else:
                    numbers = np.random.SeedSequence((task.seed, task.epoch, index)).generate_state(1)
                    torch.default_generator.manual_seed(int(numbers[0]))  # torch.manual_seed would seed CUDA as well
                    pixels = random_crop(pixels, self.size, self.flip)
                image.copy_(pixels.permute(1, 2, 0))
        return images, torch.from_numpy(task.indices)


def random_crop(pixels: Tensor, size: int, flip: bool) -> Tensor:
    """RandomResizedCrop(size), then RandomHorizontalFlip if flip, of uint8 (3, H, W), with torchvision's numbers."""
    top, left, height, width = RandomResizedCrop.get_params(pixels, SCALE, RATIO)
    crop = pixels[:, top : top + height, left : left + width]
    # As a batch with the channels last, in memory of its own, it is resized as fast as can be.
    crop = crop[None].contiguous(memory_format=torch.channels_last)
    crop = TF.resize(crop, [size, size], antialias=True)[0]
    return crop.flip(-1) if flip and torch.rand(1).item() < 0.5 else crop


def central_crop(pixels: Tensor, size: int) -> Tensor:
    """Resize(256), then CenterCrop(224), of uint8 (3, H, W); in the same proportion for another size than 224."""
    return TF.center_crop(TF.resize(pixels, [size * 256 // 224], antialias=True), [size, size])


def decode_with_pillow(data: bytes) -> Tensor:
    """An image file as uint8 RGB (3, H, W), by its content, not its name. An EXIF orientation is not applied."""
    with Image.open(BytesIO(data)) as image:
        return TF.pil_to_tensor(image.convert("RGB"))


def decode_with_torchcodec(data: bytes) -> Tensor:
    """As decode_with_pillow, with the same pixels, in less time for a JPEG."""
    from torchcodec.decoders import decode_jpeg

    # torchcodec applies an EXIF orientation.
    if data[:2] == b"\xff\xd8" and b"Exif" not in data:
        return decode_jpeg(data, mode="RGB")
    return decode_with_pillow(data)


def best_decoder() -> Callable[[bytes], Tensor]:
    """torchcodec's if it is installed and can be loaded, else Pillow's."""
    try:
        from torchcodec.decoders import decode_jpeg  # noqa: F401
    except (ImportError, OSError, RuntimeError):  # absent, or built for another torch
        return decode_with_pillow
    return decode_with_torchcodec


def decoder_name() -> str:
    """What decodes the image files, with its version: 'Pillow 12.0.0'."""
    package = "torchcodec" if best_decoder() is decode_with_torchcodec else "Pillow"
    return f"{package} {importlib.metadata.version(package)}"


def prepare_worker(closing, number: int) -> None:
    """Signals that are sent to the whole group or job are the parent's to answer: its last step needs the workers.

    closing: shared with the parent; true when its program ends. Then multiprocessing ends its processes with SIGTERM.
    """

    def terminate(*_):
        if closing.value:
            os._exit(0)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, terminate)
    warnings.filterwarnings("ignore", module="PIL")  # of damaged EXIF data, which are not read


def as_it_is(batch):
    return batch
