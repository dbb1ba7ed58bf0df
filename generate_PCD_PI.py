"""Stage 2: point clouds of a teacher, their persistence diagrams and persistence images.

    python generate_PCD_PI.py --path_t save_t_models/resnet56_cifar100_trial1/best.pth

reads the training images `--passes` times, augmented and shuffled. The pooled features of a batch, or of --cloud_size
images, are a point cloud, kept in ripsnet/<teacher run>/<set>/ with its diagram and its image, and with

    clouds.json         what the clouds are: teacher, layer, points, seed; checksums.txt beside the chunks proves it
    spec_dim0.json      everything that turns a diagram into its image: sigma, range, maximum, and where they come from
    sample_dim0.npz     the last clouds of the set and their images, for those who have not the set itself
    args.json           the options and the command, which --config repeats
    quality_dim0.json   what the images hold: share of bars in range, distance of the grid points in units of sigma, ...

Run again after an interruption it continues where it stopped; with more --passes it adds the missing clouds, with fewer
it leaves some out. Either replaces the images, and is refused where RipsNets are fitted to them. Of a set that was
published without its clouds they are made again, and its spec stays if the numbers agree up to rounding. With
--discard_clouds it keeps all but the clouds themselves, which take most of the disk and which only stage 3 reads.
Several processes (torchrun) share the chunks of clouds; they must see the same folder.
With --teacher_cache the clouds are read from the table of the teacher's outputs that students share (train_student.py).
"""

import helper.cli.early  # noqa: F401

# isort: split

import dataclasses
import functools
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from helper import distributed
from helper.cli.parser import Parser, read, run
from helper.clouds.embedding import Embedder, cloud_loader
from helper.clouds.layers import layer_width
from helper.clouds.making import (
    Maker,
    bounds,
    check_space,
    clouds_of,
    embed_chunk,
    highest_pixel,
    image_sigma,
    keep_sample,
    make_chunks,
    origin_of,
    report_quality,
)
from helper.clouds.outputs import cached_teacher, uncached
from helper.clouds.store import CHUNK, CloudSet, claim, images_of, is_claimed
from helper.data import image_files, load_data
from helper.errors import UserError
from helper.files import lock
from helper.files.atomic import write_json
from helper.files.paths import clouds_folder, quality_file, spec_file, teacher_run
from helper.files.provenance import device_name, git_commit, versions
from helper.files.run import write_args
from helper.networks import load_network
from helper.settings import CloudMaking, Clouds, Data, Teacher, plain
from helper.student.topology import load_spec
from ripsnet import ImageSpec, dim0_deaths, dim1_diagrams

ROUNDING = 1e-3  # relative: of float16, in which clouds are kept
NUMBERS = ("sigma", "image_range", "maximum")  # of a spec, that are computed from the clouds


def get_args_parser() -> Parser:
    parser = Parser(description=__doc__)
    parser.add_settings("teacher", Teacher)
    parser.add_settings("clouds and images", Clouds)
    parser.add_settings("their number and type", CloudMaking)
    parser.add_settings("data and device", Data)
    parser.add_config()
    return parser


@image_files()
def main(args) -> None:
    data, clouds, making = read(args, Data), read(args, Clouds), read(args, CloudMaking)
    if making.teacher_cache and (reason := uncached(data.dataset, clouds.tda_layer_t, clouds.pcd_bn)):
        raise UserError(f"--teacher_cache: {reason}; leave it out")
    teacher = load_network(args.path_t, args.model_t, "--model_t", data.device, data.dataset)
    images, _ = load_data(data)
    width = layer_width(teacher.model, clouds.tda_layer_t, teacher.num_classes, "--tda_layer_t", images.info.image_size)
    loader = cloud_loader(images, clouds, making.seed)
    available = making.passes * len(loader)
    num_clouds = making.num_clouds or available
    if num_clouds > available:
        raise UserError(f"--num_clouds: found {num_clouds}, but --passes {making.passes} make only {available}")

    folder = clouds_folder(args.path_t, clouds)
    origin = origin_of(teacher, width, data, clouds, making)
    files = CloudSet(folder, num_clouds, origin, clouds.resolution**2)
    kinds = [] if making.discard_clouds else ["clouds"]
    kinds += [f"diagrams_dim{dim}" for dim in clouds.dims]
    distributed.on_first(check_space, files, [*kinds, *(f"images_dim{dim}" for dim in clouds.dims)])
    distributed.on_first(lock.hold, folder)
    distributed.on_first(is_claimed, folder, origin)  # refuses clouds of another origin
    asked = "--num_clouds" if making.num_clouds else "--passes"
    distributed.on_first(check_number, folder, num_clouds, clouds.dims, asked)
    distributed.on_first(claim, folder, origin)
    cache = None
    if making.teacher_cache:
        cache = cached_teacher(args.path_t, teacher, images, making.seed)
    began = time.perf_counter()
    embedder = Embedder(teacher.model, loader, clouds.tda_layer_t, clouds.pcd_bn, cache)
    make_clouds(files, embedder, kinds, data.device)
    for dim in clouds.dims:
        spec = make_images(files, dim, clouds, teacher_run(args.path_t), embedder)
        distributed.on_first(keep_sample, files, dim, embedder)
        quality = distributed.on_first(report_quality, files, spec)
        print(
            f"dimension {dim}: sigma {spec.sigma:.4f}, persistence {spec.image_range[2]:.3f} to "
            f"{spec.image_range[3]:.3f}, {100 * quality['in_range']:.1f} % of the bars in range, grid step "
            f"{quality['persistence_step_over_sigma']:.2f} sigma"
        )
    if making.discard_clouds:
        distributed.on_first(files.discard_clouds)
    options = plain(read(args, Teacher), data, clouds, making)
    distributed.on_first(write_args, folder, options, git_commit(), device_name(data.device))
    print(
        f"{num_clouds} clouds of {clouds.points} points, width {width}, in {folder} "
        f"({time.perf_counter() - began:.1f} s)"
    )


def check_number(folder: Path, num_clouds: int, dims: Sequence[int], option: str) -> None:
    """Refuse to replace the images to which RipsNets are fitted, since students would no longer find them; where there
    are none, say what is replaced. dims: whose images are made. option: by which so many clouds were asked for."""
    for dim in (0, 1):
        spec = spec_of(folder, dim)
        kept = spec.num_clouds if spec else None
        if kept is None or kept == num_clouds:
            continue
        shares_a_chunk = min(kept, num_clouds) % CHUNK > 0  # of clouds, which is written again
        if (dim in dims or shares_a_chunk) and (fitted := fitted_to(folder, dim)):
            raise UserError(
                f"{option}: found {num_clouds} clouds, but {folder} holds images of {kept}, to which RipsNets are "
                f"fitted ({fitted}); give as many, or remove these folders"
            )
        if dim in dims and quality_file(folder, dim).is_file():
            what = f"its images of {kept} clouds and dimension {dim} are replaced by those of {num_clouds}"
            print(f"{folder}: {what}", flush=True)


def fitted_to(folder: Path, dim: int) -> str:
    """The folders of the RipsNets that are fitted to a set's images, or begun to be, in words; '' where there are
    none."""
    begun = {path.parent.name for name in ("best", "last") for path in folder.glob(f"ripsnet_dim{dim}_*/{name}.pth")}
    return ", ".join(sorted(begun))


def spec_of(folder: Path, dim: int) -> ImageSpec | None:
    """The spec of a folder's images; None where it is missing or damaged."""
    try:
        spec = load_spec(spec_file(folder, dim))
        CloudSet.of(folder, spec)  # refuses numbers of other types
        return spec
    except UserError:
        return None


def make_clouds(files: CloudSet, embedder: Embedder, kinds: list[str], device: torch.device) -> None:
    """Write the missing chunks of these kinds, of clouds and of their diagrams."""

    @functools.lru_cache(maxsize=1)  # for both dimensions
    def clouds(chunk: int) -> torch.Tensor:
        return torch.from_numpy(np.array(clouds_of(files, chunk, embedder))).to(device)

    makers: dict[str, Maker] = {
        "clouds": lambda chunk: embed_chunk(files, chunk, embedder),
        "diagrams_dim0": lambda chunk: dim0_deaths(clouds(chunk)).cpu().numpy(),
        "diagrams_dim1": lambda chunk: dim1_diagrams(clouds(chunk)),
    }
    make_chunks(files, "clouds, diagrams", {kind: makers[kind] for kind in kinds})


def make_images(files: CloudSet, dim: int, clouds: Clouds, teacher_name: str, embedder: Embedder) -> ImageSpec:
    """Fix the image from all diagrams, then write the missing chunks of images, each divided by the global maximum."""
    (min_b, min_p), (max_b, max_p) = distributed.on_first(bounds, files, dim, clouds.range)
    fields = {
        "dim": dim,
        "sigma": distributed.on_first(image_sigma, files, dim, clouds.sigma_rule, embedder),
        "image_range": (min_b, max_b, min_p, max_p),
        "resolution": (clouds.resolution, clouds.resolution),
        "range_rule": clouds.range,
        "num_clouds": files.num_clouds,
        "teacher_run": teacher_name,
        "gudhi_version": versions()["gudhi"],
        **dataclasses.asdict(files.origin),
    }
    try:
        spec = ImageSpec(maximum=1.0, **fields)
        spec = dataclasses.replace(spec, maximum=highest_pixel(files, spec))
    except ValueError as error:
        raise UserError(f"{files.folder}: no image of dimension {dim} for these clouds and options ({error})") from None

    spec = distributed.on_first(write_spec, spec, files)
    kind = f"images_dim{dim}"
    make_chunks(files, kind, {kind: lambda chunk: images_of(files.read_diagrams(dim, chunk), spec).float().numpy()})
    return spec


def write_spec(spec: ImageSpec, files: CloudSet) -> ImageSpec:
    """The set's spec: the one that is there if it agrees with this one, so that what was made with it stays valid; else
    this one, which is written, and images of another one are removed. UserError if RipsNets are fitted to them."""
    path, earlier = spec_file(files.folder, spec.dim), spec_of(files.folder, spec.dim)
    if earlier is not None and agree(earlier, spec):
        return earlier
    if earlier is not None and (fitted := fitted_to(files.folder, spec.dim)):
        what = ", ".join(f"{name} was {getattr(earlier, name)}, now {getattr(spec, name)}" for name in NUMBERS)
        raise UserError(
            f"{path}: these clouds have other images ({what}), but RipsNets are fitted to the earlier ones ({fitted}); "
            "remove these folders, or make the clouds as they were made before"
        )
    files.remove(f"images_dim{spec.dim}")
    write_json(path, spec.to_dict())
    return spec


def agree(spec: ImageSpec, other: ImageSpec) -> bool:
    """Whether two specs differ in the rounding of their numbers alone, as those of two devices do."""
    of_one = {name: getattr(spec, name) for name in NUMBERS}
    if dataclasses.replace(other, **of_one, gudhi_version=spec.gudhi_version) != spec:
        return False
    low_b, high_b, low_p, high_p = spec.image_range
    extents = high_b - low_b, high_b - low_b, high_p - low_p, high_p - low_p
    bounds_agree = np.abs(np.subtract(spec.image_range, other.image_range)) <= ROUNDING * np.array(extents)
    factors = spec.sigma / other.sigma, spec.maximum / other.maximum
    return bool(bounds_agree.all()) and np.allclose(factors, 1.0, rtol=0, atol=ROUNDING)


if __name__ == "__main__":
    run(main, get_args_parser, several=True)
