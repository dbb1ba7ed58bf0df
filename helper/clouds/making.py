"""What stage 2 computes from a set's chunks: clouds, the numbers that define an image, a sample, and a report."""

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from ripsnet import (
    SIGMA_POINTS,
    ImageSpec,
    birth_persistence,
    diagram_quality,
    released_sigma,
    simplex_tree_diagram,
    subsample_sigma,
)

from .. import distributed
from ..errors import UserError
from ..files.atomic import as_size, clear, npz, write_bytes, write_json
from ..files.paths import quality_file, sample_file
from ..networks import Network
from ..settings import CloudMaking, Clouds, Data
from ..training.progress import Bar
from .embedding import Embedder
from .store import CloudSet, Diagrams, Origin, images_of

Maker = Callable[[int], Any]

SAMPLE = 64  # clouds


def origin_of(teacher: Network, width: int, data: Data, clouds: Clouds, making: CloudMaking) -> Origin:
    """What all clouds have in common that stage 2 makes of a teacher's layer of some width."""
    return Origin(
        teacher_sha256=teacher.sha256,
        teacher_arch=teacher.arch,
        dataset=data.dataset,
        layer=clouds.tda_layer_t,
        points=clouds.points,
        cloud_width=width,
        pcd_bn=clouds.pcd_bn,
        sigma_rule=clouds.sigma_rule,
        seed=making.seed,
        cloud_dtype=making.cloud_dtype,
    )


def check_space(files: CloudSet, kinds: Sequence[str]) -> None:
    """Say how much disk a set takes with these kinds of chunks; UserError if what is missing does not fit."""
    where = files.folder
    while not where.exists():
        where = where.parent
    free = shutil.disk_usage(where).free
    needed = sum(max(0, files.bytes_needed(kind) - files.bytes_present(kind)) for kind in kinds)
    parts = {"clouds": 0, "diagrams": 0, "images": 0}
    for kind in kinds:
        parts[kind.split("_")[0]] += files.bytes_needed(kind)
    text = ", ".join(f"{what} {as_size(size)}" for what, size in parts.items())
    if needed > free:
        advice = "make space, or lower --num_clouds"
        if "clouds" in kinds:
            advice += ", or keep no clouds (--discard_clouds), without which no RipsNet can be fitted"
        raise UserError(
            f"{files.folder}: {as_size(needed)} more are needed ({text}), but only {as_size(free)} are free; {advice}"
        )
    print(f"on disk: {text}; {as_size(needed)} more, {as_size(free)} free", flush=True)


def clouds_of(files: CloudSet, chunk: int, embedder: Embedder) -> np.ndarray:
    """The clouds of a chunk: as they are on disk, or embedded where they are not kept."""
    if files.done("clouds", chunk):
        return files.read("clouds", chunk, mmap=True)
    return embed_chunk(files, chunk, embedder)


def embed_chunk(files: CloudSet, chunk: int, embedder: Embedder) -> np.ndarray:
    """The clouds of a chunk, (count, points, width), in the type in which they are kept."""
    start, stop = files.span(chunk)
    origin = files.origin
    clouds = np.empty((stop - start, origin.points, origin.cloud_width), origin.cloud_dtype)
    filled = 0
    with np.errstate(over="ignore"):  # what float16 cannot hold becomes inf, and is refused below
        for part in embedder.clouds(start, stop):
            clouds[filled : filled + len(part)] = part.cpu().numpy()
            filled += len(part)
    if not np.isfinite(clouds).all():
        raise UserError(f"--cloud_dtype: found {origin.cloud_dtype}, but the clouds hold values beyond it; try float32")
    return clouds


def make_chunks(files: CloudSet, what: str, makers: Mapping[str, Maker]) -> None:
    """Write the missing chunks of some kinds. makers: compute a chunk of each kind by its number, in this order.

    Of several processes each computes a chunk at a time, and process 0 writes them all: a folder has one writer.
    """
    rank, world = distributed.rank(), distributed.world()
    missing = distributed.on_first(_missing, files, list(makers))
    to_do = [chunk for chunk in files.chunks if missing[chunk]]
    with Bar(what, files.num_clouds, "cloud", initial=files.num_clouds - files.count(to_do)) as bar:
        for first in range(0, len(to_do), world):
            turn = to_do[first : first + world]
            for kind, make in makers.items():
                own = [chunk for chunk in turn[rank : rank + 1] if kind in missing[chunk]]
                made = distributed.to_first(distributed.together(_make, make, own))
                distributed.on_first(_write, files, kind, made)
                if rank > 0:
                    files.forget_checksums()
            bar.update(files.count(turn))


def _missing(files: CloudSet, kinds: Sequence[str]) -> dict[int, list[str]]:
    for kind in kinds:
        clear(files.folder / kind)
    return {chunk: [kind for kind in kinds if not files.done(kind, chunk)] for chunk in files.chunks}


def _make(make: Maker, chunks: Sequence[int]) -> dict[int, Any]:
    return {chunk: make(chunk) for chunk in chunks}


def _write(files: CloudSet, kind: str, made: Sequence[dict[int, Any]]) -> None:
    for chunk, content in ((chunk, content) for each in made for chunk, content in each.items()):
        if kind.startswith("diagrams"):
            files.write_diagrams(int(kind[-1]), chunk, content)
        else:
            files.write(kind, chunk, content)


def highest_pixel(files: CloudSet, spec: ImageSpec) -> float:
    """The maximum of all images of a set."""
    own = distributed.together(_highest_pixels, files, spec, files.chunks[distributed.rank() :: distributed.world()])
    return max(value for values in distributed.all_states(own) for value in values)


def _highest_pixels(files: CloudSet, spec: ImageSpec, chunks: Sequence[int]) -> list[float]:
    return [images_of(files.read_diagrams(spec.dim, chunk), spec).max().item() for chunk in chunks]


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


def image_sigma(files: CloudSet, dim: int, rule: str, embedder: Embedder) -> float:
    """The width of the image's Gaussian by a rule, 'released' or 'subsample'."""
    try:
        if rule == "released":
            return released_sigma(first_points(files, dim, embedder))
        return sampled_sigma(files, dim)
    except ValueError as error:
        raise UserError(f"--sigma_rule {rule}: {error}") from None


def first_points(files: CloudSet, dim: int, embedder: Embedder) -> np.ndarray:
    """The first points of the set in SimplexTree's order, which is ascending in dimension 0."""
    found = np.empty((0, 2))
    for chunk in files.chunks:
        parts: Iterable[Diagrams]
        if dim == 0:
            parts = [files.read_diagrams(0, chunk)]
        else:
            clouds = clouds_of(files, chunk, embedder)
            parts = ([simplex_tree_diagram(cloud.astype(np.float64), 1)] for cloud in clouds)
        for part in parts:
            found = np.concatenate([found, birth_persistence(part)])
            if len(found) >= SIGMA_POINTS:
                return found[:SIGMA_POINTS]
    return found


def sampled_sigma(files: CloudSet, dim: int, size: int = 2000) -> float:
    """subsample_sigma over all points of the set, of which only the drawn ones are held in memory."""
    seed = files.origin.seed
    counts = [len(birth_persistence(files.read_diagrams(dim, chunk))) for chunk in files.chunks]
    drawn = np.sort(np.random.default_rng(seed).choice(sum(counts), min(size, sum(counts)), replace=False))
    points, before = [], 0
    for chunk, count in zip(files.chunks, counts, strict=True):
        mine = drawn[(drawn >= before) & (drawn < before + count)] - before
        points.append(birth_persistence(files.read_diagrams(dim, chunk))[mine])
        before += count
    return subsample_sigma(np.concatenate(points), seed)


def keep_sample(files: CloudSet, dim: int, embedder: Embedder) -> None:
    """Write the last clouds (N, n, d) of the last chunk and their images (N, 400), N at most SAMPLE, into one file."""
    last = files.chunks[-1]
    clouds, images = clouds_of(files, last, embedder)[-SAMPLE:], files.read(f"images_dim{dim}", last)[-SAMPLE:]
    number = np.arange(files.num_clouds - len(clouds), files.num_clouds)
    write_bytes(sample_file(files.folder, dim), npz({"cloud": number, "points": clouds, "images": images}))


def report_quality(files: CloudSet, spec: ImageSpec) -> dict[str, float]:
    """Numbers on how much of the diagrams the images hold, written beside the spec; marks the set as complete."""
    totals, mean_image = [], np.zeros(files.pixels)
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
