"""Milliseconds a point cloud, from the cloud to its persistence image: the released recipe against this project's.

    python benchmarks/persistence.py
    python benchmarks/persistence.py --clouds 1024 --repeats 9 --output results/persistence.md

The released recipe builds a GUDHI SimplexTree for every cloud and images the diagrams with GUDHI's PersistenceImage; it
has one thread. Ours takes the same clouds at once, with one thread and with all cores. The clouds look like pooled
features after a ReLU: 64 images of a few classes, non-negative, stored in float16. Methods take turns in every repeat,
so that a busy machine slows all of them; every method's images are checked against the released ones.
"""

import argparse
import os
import platform
import statistics
import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import gudhi
import numpy as np
import torch
from gudhi.representations import PersistenceImage

from ripsnet import (
    ImageSpec,
    birth_persistence,
    dim0_deaths,
    dim0_images,
    dim1_diagrams,
    dim1_images,
    released_sigma,
    simplex_tree_diagram,
)


def get_args_parser():
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n", 1)[0], formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--clouds", type=int, default=512, help="clouds a repeat of ours")
    parser.add_argument("--released_clouds", type=int, default=32, help="clouds a repeat of the released recipe")
    parser.add_argument("--points", type=int, default=64, help="points a cloud")
    parser.add_argument("--width", type=int, default=64, help="width of the clouds")
    parser.add_argument("--repeats", type=int, default=7, help="repeats, of which minimum and median are printed")
    parser.add_argument("--seed", type=int, default=0, help="of the clouds")
    parser.add_argument("--device", default="cpu", help="device of ours in dimension 0, for example cuda")
    parser.add_argument("--output", type=Path, help="file to write the table to as well")
    return parser


def make_clouds(count, points, width, seed):
    """Clouds (count, points, width) in float16: sparse class centres plus noise, through a ReLU."""
    generator = torch.Generator().manual_seed(seed)
    centres = 2 * torch.randn(100, width, generator=generator).relu()
    labels = torch.randint(100, (count, points), generator=generator)
    noise = 0.7 * torch.randn(count, points, width, generator=generator)
    return (centres[labels] + noise).relu().half()


def released_images(clouds, dim, spec):
    diagrams = [simplex_tree_diagram(cloud, dim) for cloud in clouds.double().numpy()]
    image = PersistenceImage(
        bandwidth=spec.sigma,
        weight=lambda x: 10 * np.tanh(x[1]) + 10 * np.log(100 * x[0] + 1),
        resolution=list(spec.resolution),
        im_range=list(spec.image_range),
    )
    return torch.from_numpy(image.fit_transform(diagrams) / spec.maximum)


def our_images(clouds, dim, spec, dtype, threads):
    if dim == 1:
        return dim1_images(dim1_diagrams(clouds, n_jobs=threads), spec)
    return dim0_images(dim0_deaths(clouds.to(dtype)), spec).cpu()


def make_spec(clouds, dim):
    diagrams = dim0_deaths(clouds) if dim == 0 else dim1_diagrams(clouds)
    points = birth_persistence(diagrams)
    (min_b, min_p), (max_b, max_p) = points.min(axis=0), points.max(axis=0)
    return ImageSpec(
        dim=dim,
        sigma=released_sigma(points),
        sigma_rule="released",
        image_range=(min_b, max_b, min_p, max_p),
        maximum=1.0,
    )


def measure(methods, repeats):
    """Milliseconds a cloud of every method (clouds, function, threads): a list of `repeats` numbers each."""
    times = [[] for _ in methods]
    for repeat in range(-1, repeats):  # the first turn warms up
        for (clouds, function, threads), record in zip(methods, times, strict=True):
            torch.set_num_threads(threads)
            start = time.perf_counter()
            function(clouds)
            if repeat >= 0:
                record.append(1e3 * (time.perf_counter() - start) / len(clouds))
    return times


def benchmark(clouds, dim, args, cores):
    spec = make_spec(clouds, dim)
    few = clouds[: args.released_clouds]
    ours = [
        (f"ours, {str(dtype).removeprefix('torch.')}", dtype, threads)
        for dtype in ([torch.float32, torch.float64] if dim == 0 else [torch.float64])
        for threads in dict.fromkeys((1, cores))
    ]
    device = args.device if dim == 0 else "cpu"
    methods = [(few, lambda clouds: released_images(clouds, dim, spec), 1)]
    for _, dtype, threads in ours:

        def images(clouds, dtype=dtype, threads=threads):
            return our_images(clouds, dim, spec, dtype, threads)

        methods.append((clouds.to(device), images, threads))
    reference = released_images(few, dim, spec)
    for _, images, _ in methods[1:]:
        torch.testing.assert_close(
            images(few.to(device)).double(), reference, rtol=0, atol=1e-4 * reference.max().item()
        )

    times = measure(methods, args.repeats)
    base = [min(times[0]), statistics.median(times[0])]
    rows = []
    for (name, threads), record in zip(
        [("released recipe", 1), *((name, threads) for name, _, threads in ours)], times, strict=True
    ):
        least, middle = min(record), statistics.median(record)
        rows.append(
            f"| {dim} | {name} | {threads} | {least:.4f} | {middle:.4f} | "
            f"{base[0] / least:.1f} | {base[1] / middle:.1f} |"
        )
    return rows


def processor():
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def main(args):
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    clouds = make_clouds(args.clouds, args.points, args.width, args.seed)
    device = processor()
    if args.device.startswith("cuda"):
        device += f"; dimension 0 of ours on {torch.cuda.get_device_name(args.device)}"
    lines = [
        f"Milliseconds a cloud ({args.points} points, d = {args.width}), diagram and image; minimum and median of "
        f"{args.repeats} interleaved repeats,",
        f"{min(args.released_clouds, args.clouds)} clouds a repeat for the released recipe and {args.clouds} for ours.",
        "",
        "| dimension | method | threads | min ms | median ms | times faster (min) | times faster (median) |",
        "|---|---|---|---|---|---|---|",
        *benchmark(clouds, 0, args, cores),
        *benchmark(clouds, 1, args, cores),
        "",
        f"{device}, {cores} cores; Python {platform.python_version()}, PyTorch {torch.__version__}, "
        f"GUDHI {gudhi.__version__}, NumPy {np.__version__}",
    ]
    text = "\n".join(lines)
    print(text)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main(get_args_parser().parse_args())
