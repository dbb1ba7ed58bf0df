"""How fast training images are read from JPEG files, against torchvision's reference pipeline.

    python -m benchmarks.imagenet_loader --output benchmarks/results/imagenet_loader.txt

Photographs of 500 x 375 pixels, cut from the two that come with scikit-learn, are read, cropped to 224 x 224 and
mirrored, in batches:
- reference: Pillow, RandomResizedCrop, RandomHorizontalFlip, ToTensor and Normalize of torchvision in a DataLoader;
- pillow, torchcodec: FolderSet with either decoder (torchcodec if it is installed).
"one core" is the CPU time of what a worker process does, whatever else the machine does: the reference normalises the
images, ours leaves that to the device; what it takes on a CPU is a variant of its own. With workers it is the elapsed
time to normalised float32 batches on the CPU. A turn is a pass over all files, by workers that are there already; the
variants take turns in one run.
"""

import argparse
import functools
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.datasets import load_sample_images
from torch.utils.data import DataLoader, default_collate
from torchvision import transforms
from torchvision.datasets import ImageFolder

from benchmarks.report import compare, write_report
from dataset import FolderSet, TrainLoader, dataset_dict
from dataset.folder import Reader, Task, best_decoder, decode_with_pillow, decode_with_torchcodec, list_images
from dataset.images import Normalization

INFO = dataset_dict["imagenet"]
BATCH = 64
WORKERS = (1, 2)
ALONE = "one core"


def write_photographs(folder: Path, count: int) -> float:
    """Write JPEG files into two class folders; returns their mean size in KB."""
    photographs = [Image.fromarray(pixels) for pixels in load_sample_images().images]  # 640 x 427
    for i in range(count):
        left, top = i % 71, i % 53
        image = photographs[i % 2].crop((left, top, left + 560, top + 374)).resize((500, 375), Image.Resampling.BICUBIC)
        path = folder / "ab"[i % 2] / f"{i:04}.JPEG"
        path.parent.mkdir(exist_ok=True)
        image.save(path, quality=93)
    return sum(path.stat().st_size for path in folder.rglob("*.JPEG")) / count / 1000


def torchvision_set(folder: Path) -> ImageFolder:
    """torchvision's reference pipeline for training."""
    steps = [
        transforms.RandomResizedCrop(INFO.image_size),
        transforms.RandomHorizontalFlip(),
        transforms.ToTensor(),
        transforms.Normalize(INFO.mean, INFO.std),
    ]
    return ImageFolder(folder, transforms.Compose(steps))


def alone(read: Callable[[np.ndarray], tuple], count: int) -> Callable[[], float]:
    """CPU seconds an image of `read`, which makes a batch of the images with some indices."""

    def measure() -> float:
        began = time.process_time()
        for indices in np.array_split(np.arange(count), -(-count // BATCH)):
            read(indices)
        return (time.process_time() - began) / count

    return measure


def with_workers(start: Callable[[], Iterator], count: int) -> Callable[[], float]:
    """Seconds an image of a pass that `start` begins."""

    def measure() -> float:
        began = time.perf_counter()
        read = sum(len(batch[0]) for batch in start())
        if read != count:
            raise RuntimeError(f"{read} images of {count} were read")
        return (time.perf_counter() - began) / count

    return measure


def main(args) -> None:
    torch.set_num_threads(1)
    decoders = {"pillow": decode_with_pillow}
    if best_decoder() is decode_with_torchcodec:
        decoders["torchcodec"] = decode_with_torchcodec
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        size = write_photographs(folder, args.images)
        listing, plain = list_images(folder), torchvision_set(folder)
        pixels = torch.randint(0, 256, (BATCH, INFO.image_size, INFO.image_size, 3), dtype=torch.uint8)
        normalize = Normalization(INFO, "cpu")
        variants = {
            f"reference, {ALONE}": alone(lambda indices: default_collate([plain[i] for i in indices]), args.images),
            f"normalisation, {ALONE}": alone(lambda indices: normalize(pixels[: len(indices)]), args.images),
        }
        for decoder, decode in decoders.items():
            reader = Reader(listing.folder, listing.names, INFO, decode)
            variants[f"{decoder}, {ALONE}"] = alone(
                lambda indices, reader=reader: reader.__getitems__(Task(indices, seed=0, epoch=0)), args.images
            )
        for workers in WORKERS:
            loader = DataLoader(plain, BATCH, shuffle=True, num_workers=workers, persistent_workers=True)
            variants[f"reference, {workers} workers"] = with_workers(lambda loader=loader: iter(loader), args.images)
            for decoder, decode in decoders.items():
                loader = TrainLoader(FolderSet(listing, INFO, "cpu", workers, decode), BATCH, seed=0)
                start = functools.partial(loader.epoch, 0)
                variants[f"{decoder}, {workers} workers"] = with_workers(start, args.images)
        times = compare(variants, args.repeats)
    lines = [f"{args.images} files of {size:.0f} KB on average, batches of {BATCH}.", ""]
    lines += times.table("ms an image", 1e3)
    for decoder in decoders:
        lines.append(f"- {decoder}: {1 / times.median(f'{decoder}, {ALONE}'):.0f} images a second and core (median)")
        for how in (ALONE, *(f"{workers} workers" for workers in WORKERS)):
            lines.append(times.ratio(f"reference, {how}", f"{decoder}, {how}", "speed over the reference"))
    if "torchcodec" not in decoders:
        lines.append("- torchcodec is not installed, or does not fit this torch: not measured")
    write_report(__doc__, lines, args.output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=128, help="files, and images a turn (default: 128)")
    parser.add_argument("--repeats", type=int, default=9, help="turns (default: 9)")
    parser.add_argument("--output", default=None, help="also write the report to this file")
    main(parser.parse_args())
