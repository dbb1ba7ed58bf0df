"""Point clouds, their diagrams and images on disk, in chunks that prove what they are.

A set is a folder with `clouds.json`, the origin of its clouds, and a folder for each kind of chunk. A chunk is a .npy
file of at most CHUNK clouds, written whole or not at all, and follows from the options alone: what a killed run has
written is kept, what is missing is computed, and memory does not grow with the number of clouds. Chunks beyond the
number of clouds stay, for a larger set.

Beside the chunks of a kind, `checksums.txt` lists their SHA-256 and that of clouds.json, as `sha256sum` does. A chunk
is listed before it is written: one that is not listed, or otherwise, is none of this set. A folder from before there
were checksums has no list; its chunks are taken for what clouds.json says, and listed when stage 2 runs there again.

The quality, which says that the set is complete, is withdrawn before the first of its chunks is written. The spec stays
until there is a new one: a folder has clouds of one origin, so it goes on to be true of the number that it names.
"""

import contextlib
import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import get_type_hints

import numpy as np
import torch
from torch import Tensor

from ripsnet import ImageSpec, dim0_images, dim1_images

from ..errors import UserError
from ..files import lock
from ..files.atomic import npy, read_json, remove, write_bytes, write_json
from ..files.checkpoint import check_fields
from ..files.paths import quality_file, spec_file

CHUNK = 512  # clouds a file
MOST_CLOUDS = 2**31 - 1
CLAIM, CHECKSUMS = "clouds.json", "checksums.txt"
KINDS = ("clouds", "diagrams_dim0", "diagrams_dim1", "images_dim0", "images_dim1")
LISTED = re.compile(r"([0-9a-f]{64})  (\S+)")

Diagrams = Tensor | list[np.ndarray]


@dataclass(frozen=True)
class Origin:
    """What all clouds of a folder have in common; the fields are those of an ImageSpec."""

    teacher_sha256: str
    teacher_arch: str
    dataset: str
    layer: int
    points: int
    cloud_width: int
    pcd_bn: str
    sigma_rule: str
    seed: int
    cloud_dtype: str


ORIGIN_FIELDS = get_type_hints(Origin)  # types by name


def read_origin(path: Path) -> Origin:
    """The origin that a folder's clouds.json names, or a spec of its images."""
    advice = f"remove {path.parent if path.name == CLAIM else path}, and run generate_PCD_PI.py again"
    content = read_json(path, advice)
    try:
        check_fields(content, ORIGIN_FIELDS, path, "the origin of a set of clouds")
    except UserError as error:
        raise UserError(f"{error}; {advice}") from None
    return Origin(**{name: content[name] for name in ORIGIN_FIELDS})


def is_claimed(folder: Path, origin: Origin) -> bool:
    """Whether a folder is that of clouds of an origin; False if it holds none. UserError if they are others, or specs
    of others, as those of a set that was published without its clouds."""
    if (folder / CLAIM).is_file():
        _refuse_other(folder / CLAIM, origin)
        return True
    unknown = [kind for kind in KINDS if any((folder / kind).glob("*.npy"))]
    if unknown:
        raise UserError(
            f"{folder}: holds {', '.join(unknown)}, but no {CLAIM} that says of which teacher and options they are; "
            "remove these folders, and run generate_PCD_PI.py again"
        )
    for path in (spec_file(folder, dim) for dim in (0, 1)):
        if path.is_file():
            _refuse_other(path, origin)
    return False


def _refuse_other(path: Path, origin: Origin) -> None:
    found, folder = read_origin(path), path.parent
    if found != origin:
        pairs = [(name, getattr(found, name), getattr(origin, name)) for name in ORIGIN_FIELDS]
        what = ", ".join(f"{name} was {old}, now {new}" for name, old, new in pairs if old != new)
        held = "clouds" if path.name == CLAIM else path.name
        raise UserError(f"{folder}: holds {held} of another origin ({what}); give the old options or remove the folder")


def claim(folder: Path, origin: Origin) -> None:
    """Make a folder that of clouds of an origin, and list chunks that are there without checksums.

    The folder must be locked. UserError if it holds clouds of another origin, of none that is known, or a list of
    checksums that is damaged.
    """
    if not is_claimed(folder, origin):
        write_json(folder / CLAIM, asdict(origin))
    for kind in KINDS:
        chunks = sorted((folder / kind).glob("*.npy"))
        if _read_checksums(folder, kind) is None and chunks:
            print(f"{folder / kind}: its chunks have no checksums, and are taken for what {CLAIM} says", flush=True)
            _write_checksums(folder, kind, {path.name: _sha256(path.read_bytes()) for path in chunks})


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold a folder of clouds for a while; without one there is nothing to hold. InUse if stage 2 works there."""
    if folder.is_dir():
        lock.hold(folder)
    try:
        yield
    finally:
        lock.release(folder)


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def _claim_sum(folder: Path) -> str:
    try:
        return _sha256((folder / CLAIM).read_bytes())
    except OSError as error:
        raise UserError(f"{folder / CLAIM}: not readable ({error.strerror}); remove {folder}") from None


def _write_checksums(folder: Path, kind: str, sums: dict[str, str]) -> None:
    listed = {f"../{CLAIM}": _claim_sum(folder), **dict(sorted(sums.items()))}
    write_bytes(folder / kind / CHECKSUMS, "".join(f"{found}  {name}\n" for name, found in listed.items()).encode())


def _read_checksums(folder: Path, kind: str) -> dict[str, str] | None:
    """The SHA-256 of a kind's chunks by their names; None where there is no list."""
    path = folder / kind / CHECKSUMS
    if not path.is_file():
        return None
    lines = path.read_bytes().decode(errors="replace").splitlines()
    matches = [LISTED.fullmatch(line) for line in lines]
    sums = {match[2]: match[1] for match in matches if match}
    if len(sums) < len(lines) or sums.pop(f"../{CLAIM}", None) != _claim_sum(folder):
        raise UserError(
            f"{path}: not of the clouds that {folder / CLAIM} names, or damaged; remove {path.parent}, and run "
            "generate_PCD_PI.py again"
        )
    return sums


class CloudSet:
    """A set of clouds in its folder. `kind` is clouds, diagrams_dim0, diagrams_dim1, images_dim0 or images_dim1.

    pixels: of an image. The folder must have been claimed before anything is written.
    """

    def __init__(self, folder: Path, num_clouds: int, origin: Origin, pixels: int):
        self.folder, self.num_clouds, self.origin, self.pixels = folder, num_clouds, origin, pixels
        self.chunks = range(-(-num_clouds // CHUNK))
        self._sums: dict[str, dict[str, str] | None] = {}

    @classmethod
    def of(cls, folder: Path, spec: ImageSpec) -> "CloudSet":
        """The set behind an image spec of stage 2. UserError if the folder holds clouds of another origin."""
        path = spec_file(folder, spec.dim)
        content = check_fields(spec.to_dict(), {**ORIGIN_FIELDS, "num_clouds": int}, path, "a spec of stage 2")
        count = content["num_clouds"]
        if not 1 <= count <= MOST_CLOUDS:
            raise UserError(f"{path}: 'num_clouds' is {count}, expected 1 to {MOST_CLOUDS}")
        origin = Origin(**{name: content[name] for name in ORIGIN_FIELDS})
        is_claimed(folder, origin)
        return cls(folder, count, origin, spec.pixels)

    def span(self, chunk: int) -> tuple[int, int]:
        """First cloud of a chunk, and the one after its last."""
        return chunk * CHUNK, min((chunk + 1) * CHUNK, self.num_clouds)

    def count(self, chunks: Sequence[int]) -> int:
        """Clouds in some chunks."""
        return sum(stop - start for start, stop in map(self.span, chunks))

    def path(self, kind: str, chunk: int) -> Path:
        return self.folder / kind / f"{chunk:05d}.npy"

    def read(self, kind: str, chunk: int, mmap: bool = False) -> np.ndarray:
        """A chunk. UserError if it is missing, or has not the shape and type that it should have."""
        path = self.path(kind, chunk)
        try:
            array = np.lib.format.open_memmap(path, mode="r")
        except Exception as error:  # NumPy raises many kinds for a header that is damaged
            if kind == "clouds" and not self.bytes_present(kind):
                raise UserError(
                    f"{path.parent}: holds no clouds, which were discarded (--discard_clouds) or removed; make them "
                    f"with generate_PCD_PI.py (the same options, --num_clouds {self.num_clouds}, no --discard_clouds)"
                ) from None
            reason = getattr(error, "strerror", None) or str(error).partition("\n")[0]
            raise UserError(f"{path}: missing or damaged ({reason}); {self._advice}") from None
        if wrong := self._wrong(kind, chunk, array):
            raise UserError(f"{path}: {wrong}; {self._advice}")
        return array if mmap else np.array(array)

    def verified(self, kind: str, chunk: int) -> np.ndarray:
        """A chunk, memory-mapped, of which every byte has been looked at. UserError if it is none of this set, or
        holds values that are not finite."""
        array, path, sums = self.read(kind, chunk, mmap=True), self.path(kind, chunk), self._checksums(kind)
        if sums is not None and sums.get(path.name) != _sha256(path.read_bytes()):
            raise UserError(f"{path}: not the chunk that {path.with_name(CHECKSUMS)} lists; {self._advice}")
        if not _all_finite(array):
            raise UserError(f"{path}: holds values that are not finite (nan or inf); {self._advice}")
        return array

    def done(self, kind: str, chunk: int) -> bool:
        """Whether a chunk is there, whole, and of this set."""
        try:
            self.verified(kind, chunk)
        except UserError:
            return False
        return True

    @property
    def _advice(self) -> str:
        return f"make it with generate_PCD_PI.py (the same options, --num_clouds {self.num_clouds})"

    def _wrong(self, kind: str, chunk: int, array: np.ndarray) -> str | None:
        """What is wrong with the shape and type of a chunk, if anything is."""
        start, stop = self.span(chunk)
        if kind == "diagrams_dim1":
            return _wrong_bars(array, stop - start)
        shape, dtype = [stop - start], "float32"
        if kind == "clouds":
            shape, dtype = [*shape, self.origin.points, self.origin.cloud_width], self.origin.cloud_dtype
        elif kind == "diagrams_dim0":
            shape.append(self.origin.points - 1)
        else:
            shape.append(self.pixels)
        if array.shape == tuple(shape) and str(array.dtype) == dtype:
            return None
        return f"holds {array.dtype} {array.shape}, expected {dtype} {tuple(shape)}"

    def _checksums(self, kind: str) -> dict[str, str] | None:
        if kind not in self._sums:
            self._sums[kind] = _read_checksums(self.folder, kind)
        return self._sums[kind]

    def forget_checksums(self) -> None:
        """Read the lists again where they are needed: another process may have written them."""
        self._sums.clear()

    def write(self, kind: str, chunk: int, array: np.ndarray) -> None:
        """List a chunk and write it, after what says that the set is complete has been withdrawn; clouds that had been
        discarded change nothing in their images.

        InUse if a RipsNet is being fitted to what would be changed.
        """
        path, data = self.path(kind, chunk), npy(array)
        if path.exists():
            self._refuse_in_use()
        if path.exists() or kind != "clouds":
            self._withdraw(kind)
        sums = self._checksums(kind) or {}
        sums[path.name] = _sha256(data)
        self._sums[kind] = sums
        _write_checksums(self.folder, kind, sums)
        write_bytes(path, data)

    def remove(self, kind: str) -> None:
        """Remove all chunks of a kind. InUse if a RipsNet is being fitted to them."""
        self._remove_chunks(kind, withdraw=True)

    def discard_clouds(self) -> None:
        """Remove the chunks of clouds alone: what was made of them stays complete. InUse if a RipsNet is being fitted
        to them."""
        self._remove_chunks("clouds", withdraw=False)

    def _remove_chunks(self, kind: str, withdraw: bool) -> None:
        paths = sorted((self.folder / kind).glob("*.npy"))
        if paths:
            self._refuse_in_use()
        if withdraw:
            self._withdraw(kind)
        for path in [*paths, self.folder / kind / CHECKSUMS]:  # the list last: chunks without one are of an old folder
            remove(path)
        self._sums[kind] = None

    def bytes_needed(self, kind: str) -> int:
        """Of all chunks of a kind; of diagrams of dimension 1 about, as if a cloud had as many bars as points."""
        origin = self.origin
        if kind == "clouds":
            a_cloud = origin.points * origin.cloud_width * np.dtype(origin.cloud_dtype).itemsize
        elif kind == "diagrams_dim0":
            a_cloud = 4 * (origin.points - 1)
        elif kind == "diagrams_dim1":
            a_cloud = 24 * origin.points
        else:
            a_cloud = 4 * self.pixels
        return a_cloud * self.num_clouds

    def bytes_present(self, kind: str) -> int:
        """Of those chunks of a kind that are on disk."""
        paths = [path for chunk in self.chunks if (path := self.path(kind, chunk)).is_file()]
        return sum(path.stat().st_size for path in paths)

    def _withdraw(self, kind: str) -> None:
        """Remove what says that the images of a dimension are complete."""
        dims = (0, 1) if kind == "clouds" else (int(kind[-1]),)
        paths = [path for path in (quality_file(self.folder, dim) for dim in dims) if path.exists()]
        if paths:
            self._refuse_in_use()
        for path in paths:
            remove(path)

    def _refuse_in_use(self) -> None:
        for folder in sorted(self.folder.glob("ripsnet_dim*")):
            if (who := lock.in_use(folder)) is not None:
                raise lock.InUse(
                    f"{folder}: in use by {who}, which fits a RipsNet to clouds that would change; wait until it ends, "
                    "or stop it"
                )

    def write_diagrams(self, dim: int, chunk: int, diagrams: np.ndarray | list[np.ndarray]) -> None:
        """Dimension 0: (N, n-1) death times. Dimension 1: a list of (k, 2), stored as rows (cloud, birth, death)."""
        if dim == 0:
            self.write("diagrams_dim0", chunk, np.asarray(diagrams))
            return
        rows = [np.column_stack([np.full(len(bars), i), bars]) for i, bars in enumerate(diagrams)]
        self.write("diagrams_dim1", chunk, np.concatenate([[[len(diagrams), 0, 0]], *rows]))

    def read_diagrams(self, dim: int, chunk: int) -> Diagrams:
        """What write_diagrams was given: a float32 tensor (N, n-1), or a list of (k, 2) float64 arrays."""
        array = self.read(f"diagrams_dim{dim}", chunk)
        if dim == 0:
            return torch.from_numpy(array)
        rows = array[1:]
        ends = np.searchsorted(rows[:, 0], np.arange(1, int(array[0, 0])))
        return np.split(rows[:, 1:], ends)


def _wrong_bars(array: np.ndarray, count: int) -> str | None:
    """What is wrong with the diagrams of dimension 1, whose first row says how many clouds there are."""
    if array.dtype != np.float64 or array.ndim != 2 or array.shape[1] != 3 or not len(array):
        return f"holds {array.dtype} {array.shape}, expected float64 rows (cloud, birth, death)"
    if array[0, 0] != count:
        return f"holds the diagrams of {array[0, 0]:g} clouds, expected {count}"
    clouds = array[1:, 0]
    if len(clouds) and not (clouds[0] >= 0 and clouds[-1] < count and (np.diff(clouds) >= 0).all()):
        return "its bars are not in the order of the clouds"
    return None


def _all_finite(array: np.ndarray) -> bool:
    if array.dtype == np.float16:  # in which NumPy computes slowly; an exponent of ones alone means inf or nan
        return bool(((array.view(np.uint16) & 0x7C00) != 0x7C00).all())
    return bool(np.isfinite(array).all())


def images_of(diagrams: Diagrams, spec: ImageSpec) -> Tensor:
    """Persistence images (N, pixels) of diagrams of the spec's dimension: death times (N, m), or a list of (k, 2)."""
    return dim0_images(diagrams, spec) if isinstance(diagrams, Tensor) else dim1_images(diagrams, spec)
