"""All outputs of a frozen teacher on a training set, as a table in files that its students and stage 2 share.

Augmentation shows an image in one of few views (162 for CIFAR-100), of which a network in eval mode makes the same
every time. So the teacher sees every view of every image once, and what would run it again looks its logits and pooled
vectors up, in a folder beside its checkpoint:

    outputs.json            of which teacher and images they are
    logits.npy, pooled.npy  float32, row view * images + image
    done.json               how many blocks are in the files for good

A block is BLOCK images in one view, always the same and a forward of its own, so that the numbers do not depend on who
computes them or where a computation that was cut off goes on. Blocks are appended in order and flushed to the disk
before they are counted. The files are written as files and mapped only to be read: a disk that is full kills a process
that writes through a map.
"""

import contextlib
import hashlib
import io
import json
import os
import shutil
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from dataset import ImageSet, LabelledImages, dataset_dict
from models import feature_shapes, fold_batchnorm

from .. import distributed
from ..errors import Interrupted, RunStopped, UserError
from ..files import lock
from ..files.atomic import as_size, cannot_write, read_json, write_json
from ..files.paths import outputs_folder
from ..files.provenance import device_name, versions
from ..networks import Network
from ..training.interrupts import StopRequest
from ..training.progress import Bar

BLOCK = 500  # images a forward
AT_ONCE = {"cpu": 1, "cuda": 16}  # blocks between looks at the device
SAVE_EVERY = 20.0  # seconds of computing that a kill may cost
LOOK_EVERY = 1.0  # seconds between looks at one who computes
KINDS = ("logits", "pooled")
CLAIM, DONE = "outputs.json", "done.json"
FLOAT = np.dtype("<f4")


def uncached(dataset: str, layer: int, bn: str = "eval") -> str | None:
    """Why the clouds of a teacher's layer cannot be read from its table; None where they can."""
    if dataset_dict[dataset].open is not None:
        return f"--dataset {dataset} consists of image files, whose crops are too many to keep their outputs"
    if layer not in (0, -1):
        return f"--tda_layer_t is {layer}, and the outputs that are kept are the logits (0) and the pooled vector (-1)"
    if bn != "eval":
        return f"--pcd_bn {bn} makes of an image what depends on the others in its batch"
    return None


class OutputFiles:
    """The table of a teacher's outputs in its folder.

    origin: what the outputs are determined by, as plain values: `origin_of`. shapes: (rows, width) of each of KINDS.
    """

    def __init__(self, folder: Path, origin: Mapping[str, Any]):
        self.folder = folder
        self.origin = json.loads(json.dumps(origin))  # as a file gives it back
        self.images, self.views = int(origin["images"]), int(origin["views"])
        self.blocks_a_view = -(-self.images // BLOCK)
        self.blocks = self.views * self.blocks_a_view
        self.shapes = {"logits": (self.rows(self.blocks), origin["classes"])}
        self.shapes["pooled"] = (self.rows(self.blocks), origin["width"])

    def path(self, kind: str) -> Path:
        return self.folder / f"{kind}.npy"

    def rows(self, blocks: int) -> int:
        """Rows in the first blocks."""
        whole, rest = divmod(blocks, self.blocks_a_view)
        return whole * self.images + rest * BLOCK  # a short block ends its view

    def span(self, block: int) -> tuple[int, int, int]:
        """What a block consists of: the view, the first image, and the one after its last."""
        view, number = divmod(block, self.blocks_a_view)
        return view, number * BLOCK, min((number + 1) * BLOCK, self.images)

    def header(self, kind: str) -> bytes:
        file = io.BytesIO()
        about = {"descr": FLOAT.str, "fortran_order": False, "shape": self.shapes[kind]}
        np.lib.format.write_array_header_1_0(file, about)
        return file.getvalue()

    def size(self, kind: str, blocks: int) -> int:
        """Bytes of a file that holds the first blocks."""
        return len(self.header(kind)) + self.rows(blocks) * self.shapes[kind][1] * FLOAT.itemsize

    @property
    def done(self) -> int:
        """Blocks that are in the files for good; fewer than were counted where a file has been cut since."""
        if not (self.folder / DONE).is_file():
            return 0
        count = read_json(self.folder / DONE).get("blocks")
        if not isinstance(count, int) or not 0 <= count <= self.blocks:
            raise UserError(
                f"{self.folder / DONE}: 'blocks' is {count}, expected 0 to {self.blocks}; remove {self.folder} to have "
                "the outputs computed again"
            )
        for kind in KINDS:
            path = self.path(kind)
            size = path.stat().st_size if path.is_file() else 0
            while count and size < self.size(kind, count):
                count -= 1
        return count

    @property
    def is_claimed(self) -> bool:
        """Whether the folder is that of these outputs; False if of none. UserError if of others."""
        path = self.folder / CLAIM
        if not path.is_file():
            return False
        found = read_json(path, f"remove {self.folder} to have the outputs computed again")
        pairs = [(name, found.get(name), value) for name, value in self.origin.items()]
        wrong = [f"{name} was {_short(old)}, now {_short(new)}" for name, old, new in pairs if old != new]
        if wrong:
            raise UserError(
                f"{self.folder}: holds the outputs of another teacher or other images ({', '.join(wrong)}); remove the "
                "folder, or leave out --teacher_cache"
            )
        return True

    @property
    def is_complete(self) -> bool:
        return self.is_claimed and self.done == self.blocks

    def claim(self, about: Mapping[str, Any]) -> None:
        """Make the folder that of these outputs; it must be locked. about: further facts, which nobody compares."""
        if self.is_claimed:
            return
        with contextlib.suppress(FileNotFoundError):  # counted for files that had another origin
            (self.folder / DONE).unlink()
        write_json(self.folder / CLAIM, {**self.origin, **about})

    def check_room(self) -> None:
        """Say how much is to be written, and refuse if the disk has not that much."""
        done, free = self.done, shutil.disk_usage(self.folder).free
        missing = sum(self.size(kind, self.blocks) - self.size(kind, done) for kind in KINDS)
        if missing > free:
            raise RunStopped(
                f"--teacher_cache: the teacher's outputs take {as_size(missing)} more in {self.folder}, where "
                f"{as_size(free)} are free; make room, or leave the option out"
            )
        print(
            f"{self.folder}: computing the teacher's outputs on {self.views} views of {self.images:,} images, "
            f"{as_size(missing)}, for all that read them with --teacher_cache",
            flush=True,
        )

    def fill(self, teacher: nn.Module, images: ImageSet) -> None:
        """Compute the blocks that are missing. The folder must be locked; where a file system has no locks, several
        may compute the same. Interrupted after a signal, when what was computed is saved."""
        done = self.done
        write_json(self.folder / DONE, {"blocks": done})  # fewer than it said where a file has been cut
        at_once = AT_ONCE.get(images.device.type, 1)
        with contextlib.ExitStack() as stack:
            files = {kind: stack.enter_context(self._opened(kind)) for kind in KINDS}
            stop = stack.enter_context(StopRequest())
            bar = stack.enter_context(
                Bar("the teacher's outputs", self.rows(self.blocks), "view", initial=self.rows(done))
            )
            saved = time.perf_counter()
            while done < self.blocks:
                group = range(done, min(done + at_once, self.blocks))
                parts = [self._outputs(teacher, images, block) for block in group]
                for (kind, file), kind_parts in zip(files.items(), zip(*parts, strict=True), strict=True):
                    self._write(file, self.size(kind, done), torch.cat(kind_parts))
                bar.update(self.rows(group.stop) - self.rows(done))
                done = group.stop
                if stop.requested or done == self.blocks or time.perf_counter() - saved >= SAVE_EVERY:
                    self._count(files, done)
                    saved = time.perf_counter()
                if stop.requested and done < self.blocks:
                    raise Interrupted(
                        f"stopped after {self.rows(done):,} of {self.rows(self.blocks):,} outputs of the teacher, "
                        "which are kept; run the same command again"
                    )

    @torch.no_grad()
    def _outputs(self, teacher: nn.Module, images: ImageSet, block: int) -> tuple[Tensor, Tensor]:
        """Logits and pooled vectors of a block."""
        view, first, last = self.span(block)
        features, logits = teacher(images.view(view, torch.arange(first, last, device=images.device)), is_feat=True)
        return logits, features[-1]

    def _opened(self, kind: str) -> Any:
        """A file with its header, in which blocks are written to their places: whatever another process does, the bytes
        of a block are those of that block."""
        try:
            self.path(kind).touch()
            file = open(self.path(kind), "r+b", buffering=0)  # a buffer would try again to fill a full disk when closed
            file.write(self.header(kind))
        except OSError as error:
            raise cannot_write(self.path(kind), error) from None
        return file

    @staticmethod
    def _write(file: Any, place: int, rows: Tensor) -> None:
        try:
            data = rows.float().cpu().contiguous().numpy().astype(FLOAT, copy=False).data.cast("B")
            file.seek(place)
            while data:
                data = data[file.write(data) :]
        except OSError as error:
            raise cannot_write(Path(file.name), error) from None

    def _count(self, files: Mapping[str, Any], done: int) -> None:
        """Say that the first blocks are in the files, once they are."""
        for file in files.values():
            try:
                os.fsync(file.fileno())
            except OSError as error:
                raise cannot_write(Path(file.name), error) from None
        write_json(self.folder / DONE, {"blocks": done})

    def tables(self) -> dict[str, Tensor]:
        """Each of KINDS as a tensor (rows, width), mapped from its file."""
        found = {}
        for kind, shape in self.shapes.items():
            path, header = self.path(kind), self.header(kind)
            try:
                with open(path, "rb") as file:
                    is_table = file.read(len(header)) == header
                # mode 'c', because PyTorch warns of a map that it could not write to; nobody writes
                array = np.memmap(path, FLOAT, "c", len(header), shape)
            except (OSError, ValueError) as error:
                raise UserError(f"{path}: not readable ({getattr(error, 'strerror', None) or error})") from None
            if not is_table:
                raise UserError(
                    f"{path}: not a table of {shape[0]} rows of {shape[1]} float32 numbers; remove {self.folder} to "
                    "have the outputs computed again"
                )
            found[kind] = torch.from_numpy(array)
        return found


class CachedTeacher:
    """What a teacher makes of each image in an epoch, looked up when the epoch begins.

    An epoch's outputs are gathered at once: a step takes its rows from two tensors on the device, which stay the same
    ones in all epochs, so that a recorded step can read them.

    tables: of `OutputFiles`, on the device of the images (`tables_on`) or in the memory of the host; only read, so that
    several may share them. seed: of the epochs.
    """

    def __init__(self, tables: Mapping[str, Tensor], images: ImageSet, seed: int):
        self.images, self.seed, self.epoch = images, seed, -1
        self.tables = dict(tables)
        count, device = len(images), images.device
        self.now = {kind: torch.empty(count, table.shape[1], device=device) for kind, table in tables.items()}
        self.staged: dict[str, Tensor] = {}
        if any(table.device.type != device.type for table in tables.values()):
            self.staged = {kind: torch.empty(now.shape, pin_memory=True) for kind, now in self.now.items()}

    def of_seed(self, seed: int) -> "CachedTeacher":
        """Another one of the same tables, for the epochs of another seed."""
        return CachedTeacher(self.tables, self.images, seed)

    def begin(self, epoch: int) -> None:
        """Look an epoch's outputs up, unless they are those of the last call."""
        if epoch == self.epoch:
            return
        count = len(self.images)
        views = self.images.views(self.seed, epoch)
        rows = views * count + torch.arange(count, device=views.device)
        for kind, table in self.tables.items():
            if table.is_cuda:
                torch.index_select(table, 0, rows, out=self.now[kind])
                continue
            # In the order of the file, which a disk reads faster. `cpu` waits until `staged` has been copied before.
            ordered, images = rows.cpu().sort()
            target = self.staged.get(kind, self.now[kind])
            target.index_copy_(0, images, table.index_select(0, ordered))
            if kind in self.staged:
                self.now[kind].copy_(target, non_blocking=True)
        self.epoch = epoch

    def at(self, indices: Tensor) -> tuple[list[Tensor], Tensor]:
        """(features, logits) of the images with the indices (B,) in this epoch's views, as a network gives them; the
        features are the pooled vector alone."""
        pooled, logits = (self.now[kind].index_select(0, indices) for kind in ("pooled", "logits"))
        return [pooled], logits


def tables_on(device: torch.device, tables: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tables, moved to a GPU if they fit half of what is free there."""
    if device.type != "cuda":
        return dict(tables)
    free, _ = torch.cuda.mem_get_info(device)
    if 2 * sum(table.nbytes for table in tables.values()) > free:
        return dict(tables)
    return {kind: table.to(device) for kind, table in tables.items()}


def origin_of(teacher: Network, images: ImageSet) -> dict[str, Any]:
    """What the outputs of a teacher are determined by, up to rounding."""
    info = images.info
    return {
        "teacher_sha256": teacher.sha256,
        "teacher_arch": teacher.arch,
        "classes": teacher.num_classes,
        "width": feature_shapes(teacher.model, info.image_size)[-1][0],
        "dataset": info.name,
        "images": len(images),
        "images_sha256": hashlib.sha256(images.images.cpu().numpy().data).hexdigest(),
        "image_size": info.image_size,
        "mean": info.mean,
        "std": info.std,
        "padding": info.padding,
        "flip": info.flip,
        "views": images.view_count,
        "block": BLOCK,
        "type": "float32",
    }


def cached_teacher(path_t: str | Path, teacher: Network, images: LabelledImages, seed: int) -> CachedTeacher:
    """The table of a teacher's outputs, which is computed first where it is not complete; if another process does so,
    this one waits.

    path_t: the teacher's checkpoint. images: the training set on the device. seed: of the epochs that will be asked
    for.
    """
    if not isinstance(images, ImageSet):
        raise UserError(f"--teacher_cache: {uncached(images.info.name, -1)}; leave it out")
    files = OutputFiles(outputs_folder(path_t, images.info.name), origin_of(teacher, images))
    distributed.on_first(_complete, files, teacher, images)
    return CachedTeacher(tables_on(images.device, files.tables()), images, seed)


def _complete(files: OutputFiles, teacher: Network, images: ImageSet) -> None:
    if files.is_complete:
        return
    _wait_for(files)
    try:
        files.claim({"device": device_name(images.device), "versions": versions()})
        if not files.is_complete:
            files.check_room()
            files.fill(fold_batchnorm(teacher.model), images)
    finally:
        lock.release(files.folder)


def _wait_for(files: OutputFiles) -> None:
    """Lock the folder of the outputs, as soon as nobody else computes them."""
    with contextlib.ExitStack() as stack:
        bar = None
        while True:
            try:
                lock.hold(files.folder)
                return
            except lock.InUse:
                done = files.rows(files.done)
            if bar is None:
                who = lock.owner(files.folder)
                print(f"{files.folder}: {who} computes the teacher's outputs; waiting for them", flush=True)
                bar = stack.enter_context(Bar("waiting", files.rows(files.blocks), "view", initial=done))
            bar.update(max(0, done - bar.done))
            time.sleep(LOOK_EVERY)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
