"""From point clouds to persistence images: the released recipe, cloud by cloud, against this project's, in bulk.

    python -m benchmarks.persistence --output benchmarks/results/persistence.txt

The released recipe builds a GUDHI SimplexTree for every cloud and images its diagram with GUDHI's PersistenceImage,
which uses one thread. Ours takes the same clouds at once, with one thread and with all cores. The clouds (64 points,
d = 64) look like pooled features after a ReLU: images of a few classes, non-negative, stored in float16. The methods
take turns; every method's images are first checked against the released ones.
"""

import argparse
import os
import time
from collections.abc import Callable

import numpy as np
import torch
from gudhi.representations import PersistenceImage
from torch import Tensor

from benchmarks.report import compare, write_report
from ripsnet import (
    ImageSpec,
    birth_persistence,
    diagrams_of,
    dim0_deaths,
    dim0_images,
    dim1_diagrams,
    dim1_images,
    released_sigma,
    simplex_tree_diagram,
)

POINTS, WIDTH = 64, 64
Images = Callable[[Tensor, ImageSpec, int], Tensor]  # clouds, spec, threads -> images


def make_clouds(count: int) -> Tensor:
    """Clouds (count, 64, 64) in float16: sparse class centres plus noise, through a ReLU."""
    generator = torch.Generator().manual_seed(0)
    centres = 2 * torch.randn(100, WIDTH, generator=generator).relu()
    labels = torch.randint(100, (count, POINTS), generator=generator)
    noise = 0.7 * torch.randn(count, POINTS, WIDTH, generator=generator)
    return (centres[labels] + noise).relu().half()


def make_spec(clouds: Tensor, dim: int) -> ImageSpec:
    points = birth_persistence(diagrams_of(clouds, dim))
    (min_b, min_p), (max_b, max_p) = points.min(axis=0), points.max(axis=0)
    sigma, image_range = released_sigma(points), (min_b, max_b, min_p, max_p)
    return ImageSpec(dim=dim, sigma=sigma, sigma_rule="released", image_range=image_range, maximum=1.0)


def released(clouds: Tensor, spec: ImageSpec, threads: int) -> Tensor:
    images = PersistenceImage(
        bandwidth=spec.sigma,
        weight=lambda point: 10 * np.tanh(point[1]) + 10 * np.log(100 * point[0] + 1),
        resolution=list(spec.resolution),
        im_range=list(spec.image_range),
    )
    diagrams = [simplex_tree_diagram(cloud, spec.dim) for cloud in clouds.double().numpy()]
    return torch.from_numpy(images.fit_transform(diagrams))


def dimension0(dtype: torch.dtype) -> Images:
    return lambda clouds, spec, threads: dim0_images(dim0_deaths(clouds.to(dtype)), spec)


def dimension1(clouds: Tensor, spec: ImageSpec, threads: int) -> Tensor:
    return dim1_images(dim1_diagrams(clouds, n_jobs=threads), spec)


def main(args) -> None:
    cores = len(os.sched_getaffinity(0))
    clouds = make_clouds(args.clouds)
    few = clouds[: args.released_clouds]
    ours: dict[int, dict[str, Images]] = {
        0: {"ours, float32 (stage 2)": dimension0(torch.float32), "ours, float64": dimension0(torch.float64)},
        1: {"ours, float64 (stage 2)": dimension1},
    }
    variants, ratios = {}, []

    def add(name: str, images: Images, batch: Tensor, spec: ImageSpec, threads: int) -> str:
        name = f"dimension {spec.dim}, {name}, {threads} thread{'s' * (threads > 1)}"

        def measure() -> float:
            torch.set_num_threads(threads)
            began = time.perf_counter()
            images(batch, spec, threads)
            return (time.perf_counter() - began) / len(batch)

        variants[name] = measure
        return name

    for dim, methods in ours.items():
        spec = make_spec(clouds, dim)
        reference = released(few, spec, 1)
        base = add("released recipe", released, few, spec, 1)
        for name, images in methods.items():
            torch.testing.assert_close(
                images(few, spec, 1).double(), reference, rtol=0, atol=1e-4 * reference.max().item()
            )
            for threads in dict.fromkeys((1, cores)):
                ratios.append((base, add(name, images, clouds, spec, threads)))

    times = compare(variants, args.repeats)
    lines = times.table("ms a cloud", 1e3)
    lines += [times.ratio(base, name, "times faster") for base, name in ratios]
    write_report(__doc__, lines, args.output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clouds", type=int, default=2048, help="clouds a turn of ours (default: 2048)")
    parser.add_argument(
        "--released_clouds", type=int, default=64, help="clouds a turn of the released recipe (default: 64)"
    )
    parser.add_argument("--repeats", type=int, default=9, help="turns (default: 9)")
    parser.add_argument("--output", default=None, help="also write the report to this file")
    main(parser.parse_args())
