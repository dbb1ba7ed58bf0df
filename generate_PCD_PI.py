"""Stage 2: point clouds of a teacher, their persistence diagrams and persistence images.

    python generate_PCD_PI.py --path_t save_t_models/resnet56_cifar100_trial1/best.pth

reads the training images `--passes` times, augmented and shuffled. Every batch of pooled features is a point cloud,
kept in ripsnet/<teacher run>/<set>/ with its diagram and its image, and with

    spec_dim0.json      everything that turns a diagram into its image: sigma, range, maximum, and where they come from
    sample_dim0.npz     the last clouds of the set and their images, for those who have not the set itself
    quality_dim0.json   what the images hold: share of bars in range, distance of the grid points in units of sigma, ...

Run again after an interruption it continues where it stopped; with more --passes it adds the missing clouds.
"""

import dataclasses
import time

import numpy as np
import torch
from tqdm import tqdm

from helper.checkpoint import load_network, npz, read_json, write_bytes, write_json
from helper.clouds import CloudSet, Embedder, claim, cloud_loader, images_of, layer_width, origin
from helper.data import load_data
from helper.options import (
    Parser,
    UserError,
    add_batch_size,
    add_cloud_options,
    add_data_options,
    add_teacher_options,
    dims,
    positive,
    run,
    whole,
)
from helper.runs import clouds_folder, quality_file, sample_file, spec_file, teacher_run, versions
from ripsnet import (
    ImageSpec,
    birth_persistence,
    diagram_quality,
    dim0_deaths,
    dim1_diagrams,
    released_sigma,
    simplex_tree_diagram,
    subsample_sigma,
)

SAMPLE = 64  # clouds


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    add_teacher_options(parser)
    add_data_options(parser)
    add_batch_size(parser)
    add_cloud_options(parser)
    parser.add_argument(
        "--passes", type=positive, default=256, help="passes over the training set (default: %(default)s)"
    )
    parser.add_argument(
        "--num_clouds", type=positive, default=None, help="stop after so many clouds (default: all passes)"
    )
    parser.add_argument(
        "--cloud_dtype",
        choices=["float16", "float32"],
        default="float16",
        help="how clouds are kept; they are rounded before their diagrams are computed (default: float16)",
    )
    parser.add_argument("--seed", type=whole, default=1, help="of shuffling and augmentation (default: %(default)s)")
    return parser


def main(args) -> None:
    teacher = load_network(args.path_t, args.model_t, "--model_t", args.device, args.dataset)
    width = layer_width(teacher.model, args.tda_layer_t, teacher.num_classes, "--tda_layer_t")
    images, _ = load_data(args)
    loader = cloud_loader(images, args)
    available = args.passes * len(loader)
    num_clouds = available if args.num_clouds is None else args.num_clouds
    if num_clouds > available:
        raise UserError(f"--num_clouds: found {num_clouds}, but --passes {args.passes} make only {available}")

    folder = clouds_folder(args)
    found_in = origin(args, teacher, width)
    claim(folder, found_in)
    files = CloudSet(folder, num_clouds)
    began = time.perf_counter()
    make_clouds(files, Embedder(teacher.model, loader, args.tda_layer_t, args.pcd_bn), width, args)
    for dim in dims(args):
        spec = make_images(files, dim, found_in | {"teacher_run": teacher_run(args.path_t)}, args)
        keep_sample(files, dim)
        quality = report_quality(files, spec)
        print(
            f"dimension {dim}: sigma {spec.sigma:.4f}, persistence {spec.image_range[2]:.3f} to "
            f"{spec.image_range[3]:.3f}, {100 * quality['in_range']:.1f} % of the bars in range, grid step "
            f"{quality['persistence_step_over_sigma']:.2f} sigma"
        )
    print(
        f"{num_clouds} clouds of {args.batch_size} points, width {width}, in {folder} "
        f"({time.perf_counter() - began:.1f} s)"
    )


def make_clouds(files: CloudSet, embedder: Embedder, width: int, args) -> None:
    """Write the missing chunks of clouds and of their diagrams."""
    with tqdm(total=files.num_clouds, desc="clouds, diagrams", unit="cloud", disable=None) as bar:
        for chunk in files.chunks:
            start, stop = files.span(chunk)
            if not files.done("clouds", chunk):
                files.write("clouds", chunk, embed_chunk(embedder, start, stop, width, args))
            for dim in dims(args):
                if not files.done(f"diagrams_dim{dim}", chunk):
                    clouds = torch.from_numpy(files.read("clouds", chunk)).to(args.device)
                    diagrams = dim0_deaths(clouds).cpu().numpy() if dim == 0 else dim1_diagrams(clouds)
                    files.write_diagrams(dim, chunk, diagrams)
            bar.update(stop - start)


def embed_chunk(embedder: Embedder, start: int, stop: int, width: int, args) -> np.ndarray:
    """Clouds start to stop - 1, (stop - start, n, width), in the type in which they are kept."""
    clouds = np.empty((stop - start, args.batch_size, width), args.cloud_dtype)
    filled = 0
    with np.errstate(over="ignore"):  # what float16 cannot hold becomes inf, and is refused below
        for part in embedder.clouds(start, stop):
            clouds[filled : filled + len(part)] = part.cpu().numpy()
            filled += len(part)
    if not np.isfinite(clouds).all():
        raise UserError(f"--cloud_dtype: found {args.cloud_dtype}, but the clouds hold values beyond it; try float32")
    return clouds


def make_images(files: CloudSet, dim: int, found_in: dict, args) -> ImageSpec:
    """Fix the image from all diagrams, then write the missing chunks of images, each divided by the global maximum."""
    (min_b, min_p), (max_b, max_p) = bounds(files, dim, args.range)
    try:
        sigma = (
            released_sigma(first_points(files, dim))
            if args.sigma_rule == "released"
            else sampled_sigma(files, dim, args)
        )
    except ValueError as error:
        raise UserError(f"--sigma_rule {args.sigma_rule}: {error}") from None
    spec = ImageSpec(
        dim=dim,
        sigma=sigma,
        image_range=(min_b, max_b, min_p, max_p),
        maximum=1.0,
        resolution=(args.resolution, args.resolution),
        range_rule=args.range,
        num_clouds=files.num_clouds,
        gudhi_version=versions()["gudhi"],
        **found_in,
    )
    maximum = max(images_of(files.read_diagrams(dim, chunk), spec).max().item() for chunk in files.chunks)
    spec = dataclasses.replace(spec, maximum=maximum)

    kind, path = f"images_dim{dim}", spec_file(files.folder, dim)
    if not path.is_file() or read_json(path) != spec.to_dict():
        quality_file(files.folder, dim).unlink(missing_ok=True)  # the set is not complete any more
        files.remove(kind)  # images of another spec: made from fewer clouds
        write_json(path, spec.to_dict())
    for chunk in tqdm(files.chunks, desc=f"images, dimension {dim}", unit="file", disable=None):
        if not files.done(kind, chunk):
            files.write(kind, chunk, images_of(files.read_diagrams(dim, chunk), spec).float().numpy())
    return spec


def bounds(files: CloudSet, dim: int, rule: str) -> tuple[np.ndarray, np.ndarray]:
    """The lowest and the highest (birth, persistence) that an image spans."""
    parts = []
    for chunk in files.chunks:
        points = birth_persistence(files.read_diagrams(dim, chunk))
        if len(points):  # quantiles need all points at once, 16 bytes each; extremes do not
            parts.append(points if rule == "q99" else np.stack([points.min(axis=0), points.max(axis=0)]))
    if not parts:
        raise UserError(f"{files.folder}: no bar of dimension {dim} in {files.num_clouds} clouds, so there is no image")
    low, high = np.quantile(np.concatenate(parts), [0.01, 0.99] if rule == "q99" else [0, 1], axis=0)
    return low, high


def first_points(files: CloudSet, dim: int, count: int = 200) -> np.ndarray:
    """The first points of the set in SimplexTree's order, which is ascending in dimension 0."""
    found = np.empty((0, 2))
    for chunk in files.chunks:
        diagrams = (
            files.read_diagrams(dim, chunk)
            if dim == 0
            else (
                [simplex_tree_diagram(cloud.astype(np.float64), 1)] for cloud in files.read("clouds", chunk, mmap=True)
            )
        )
        for part in [diagrams] if dim == 0 else diagrams:
            found = np.concatenate([found, birth_persistence(part)])
            if len(found) >= count:
                return found[:count]
    return found


def sampled_sigma(files: CloudSet, dim: int, args, size: int = 2000) -> float:
    """subsample_sigma over all points of the set, of which only the drawn ones are held in memory."""
    counts = [len(birth_persistence(files.read_diagrams(dim, chunk))) for chunk in files.chunks]
    drawn = np.sort(np.random.default_rng(args.seed).choice(sum(counts), min(size, sum(counts)), replace=False))
    points, before = [], 0
    for chunk, count in zip(files.chunks, counts, strict=True):
        mine = drawn[(drawn >= before) & (drawn < before + count)] - before
        points.append(birth_persistence(files.read_diagrams(dim, chunk))[mine])
        before += count
    return subsample_sigma(np.concatenate(points), args.seed)


def keep_sample(files: CloudSet, dim: int) -> None:
    """Write the last clouds (N, n, d) of the last chunk and their images (N, 400), N at most SAMPLE, into one file."""
    last = files.chunks[-1]
    clouds, images = (files.read(kind, last)[-SAMPLE:] for kind in ("clouds", f"images_dim{dim}"))
    number = np.arange(files.num_clouds - len(clouds), files.num_clouds)
    write_bytes(sample_file(files.folder, dim), npz({"cloud": number, "points": clouds, "images": images}))


def report_quality(files: CloudSet, spec: ImageSpec) -> dict:
    """Numbers on how much of the diagrams the images hold, written beside the spec; marks the set as complete."""
    totals, mean_image = [], 0
    for chunk in files.chunks:
        diagrams = files.read_diagrams(spec.dim, chunk)
        totals.append(diagram_quality(diagrams, spec))
        mean_image = mean_image + files.read(f"images_dim{spec.dim}", chunk).sum(axis=0, dtype=np.float64)
    bars = sum(part["bars"] for part in totals)
    rows = np.sort((mean_image / files.num_clouds).reshape(spec.resolution[::-1]).sum(axis=1))[::-1]
    quality = totals[0] | {
        "bars": bars,
        "zero_bars": sum(part["zero_bars"] for part in totals),
        "in_range": sum(part["in_range"] * part["bars"] for part in totals if part["bars"]) / bars,
        "rows_with_98_percent_of_the_mean_image": int(np.searchsorted(np.cumsum(rows) / rows.sum(), 0.98)) + 1,
    }
    write_json(quality_file(files.folder, spec.dim), quality)
    return quality


if __name__ == "__main__":
    run(main, get_args_parser())
