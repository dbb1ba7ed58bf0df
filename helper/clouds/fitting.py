"""Fitting a RipsNet to clouds and images: the data, the step, and early stopping (TopKD's settings, RipsNet's loss)."""

import contextlib
import math
import time
import warnings
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ripsnet import RipsNet

from ..errors import Interrupted, RunStopped, UserError
from ..files import checkpoint
from ..files.run import Run
from ..settings import Fit
from ..training.graphs import Capture, Replayed, capture_on, own_stream
from ..training.interrupts import StopRequest
from ..training.progress import Bar, Progress
from .store import CloudSet

MIN_DELTA = 1e-10  # a smaller gain does not reset the patience (as published)
SAVE_EVERY = 20.0  # seconds; epochs may be much shorter
VALIDATION_BATCH = 1024
MOST_STEPS = 100  # in a graph: so many that its launch costs nothing, and so few that it is captured at once
# What a checkpoint of a fit holds.
FIELDS: checkpoint.Fields = {
    "model": dict,
    "optimizer": dict,
    "history": list,
    "best": (int, float),
    "best_model": dict,
    "waited": int,
}


class CloudData:
    """Clouds start to stop - 1 of a set and their images: whole on the device, or read from memory-mapped chunks.

    `batch(index)` gives the same tensors either way: clouds float32 (B, n, d), images float32 (B, 400), on the device.

    Raises:
        UserError: for a chunk that is missing, damaged, of another set, or not finite.
    """

    def __init__(self, files: CloudSet, dim: int, start: int, stop: int, device: torch.device, on_device: bool):
        if not 0 <= start < stop <= files.num_clouds:
            raise ValueError(f"clouds {start} to {stop} of a set of {files.num_clouds}")
        self.files, self.start, self.stop = files, start, stop
        self.device, self.on_device = device, on_device
        self.chunk_size = files.span(0)[1]
        self.first_chunk = start // self.chunk_size
        chunks = range(self.first_chunk, -(-stop // self.chunk_size))
        kinds = ("clouds", f"images_dim{dim}")
        # plain views of the memory maps, which cost less to index
        read = ((np.asarray(files.verified(kind, chunk)) for chunk in chunks) for kind in kinds)
        if on_device:
            self.tensors = [self._load(arrays) for arrays in read]  # a map is an open file until it has been copied
        else:
            allow_open_files(len(kinds) * len(chunks))
            self.arrays = [list(arrays) for arrays in read]

    def __len__(self) -> int:
        return self.stop - self.start

    @staticmethod
    def bytes_needed(files: CloudSet, dim: int) -> int:
        a_cloud = sum(files.read(kind, 0, mmap=True)[0].nbytes for kind in ("clouds", f"images_dim{dim}"))
        return a_cloud * files.num_clouds

    def _load(self, chunks: Iterable[np.ndarray]) -> Tensor:
        whole, filled = torch.empty(0), 0
        for number, chunk in enumerate(chunks, self.first_chunk):
            begin = number * self.chunk_size
            part = torch.from_numpy(np.array(chunk[max(self.start - begin, 0) : self.stop - begin]))
            if not filled:
                whole = torch.empty(len(self), *part.shape[1:], dtype=part.dtype, device=self.device)
            whole[filled : filled + len(part)] = part
            filled += len(part)
        if filled != len(self):
            raise UserError(f"found {filled} of the clouds {self.start} to {self.stop}; run generate_PCD_PI.py again")
        return whole

    def _read(self, chunks: list[np.ndarray], index: Tensor) -> Tensor:
        places = [divmod(self.start + number, self.chunk_size) for number in index.tolist()]
        rows = [chunks[chunk - self.first_chunk][row] for chunk, row in places]
        return torch.from_numpy(np.stack(rows)).to(self.device)

    def batch(self, index: Tensor) -> tuple[Tensor, Tensor]:
        """index: int64 (B,), from 0 to len(self) - 1; on the device if the data is there, on the CPU otherwise."""
        if self.on_device:
            clouds, images = (whole.index_select(0, index) for whole in self.tensors)
        else:
            clouds, images = (self._read(chunks, index) for chunks in self.arrays)
        return clouds.float(), images

    def mean_image(self) -> Tensor:
        """The constant predictor: the mean of the images, (400,), on the device."""
        order = torch.arange(len(self), device=self.device if self.on_device else "cpu")
        total = torch.zeros((), device=self.device)
        for index in order.split(VALIDATION_BATCH):
            total = total + self.batch(index)[1].sum(0)
        return total / len(self)

    def order(self, seed: int, epoch: int) -> Tensor:
        """The shuffled indices of an epoch, from (seed, epoch) alone."""
        shuffled = torch.from_numpy(np.random.default_rng((seed, epoch)).permutation(len(self)))
        return shuffled.to(self.device) if self.on_device else shuffled


def allow_open_files(count: int) -> None:
    """Let this process hold so many more files open, as far as the system lets it."""
    try:
        import resource
    except ImportError:  # Windows, where there is no such limit
        return
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = soft + count
        with contextlib.suppress(OSError, ValueError):  # macOS refuses more than it says
            most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))


def fits_in_memory(needed: int, device: torch.device) -> bool:
    """Whether so many bytes take at most 80 % of what is free on a CUDA device, or half of a computer's own memory."""
    if device.type == "cuda":
        return needed <= 0.8 * torch.cuda.mem_get_info(device)[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return True  # not Linux, where there is no plain way to ask
    lines = meminfo.read_text().splitlines()
    return needed <= 0.5 * next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable"))


class TrainStep:
    """One Adamax step on the mean squared error of a batch."""

    def __init__(self, network: RipsNet, lr: float):
        self.network, self.on_cuda = network, next(network.parameters()).is_cuda
        self.optimizer = torch.optim.Adamax(network.parameters(), lr=lr, foreach=True, capturable=self.on_cuda)
        if self.on_cuda:  # the steps that are not captured are few
            warnings.filterwarnings("ignore", "This instance was constructed with capturable=True")

    def __call__(self, clouds: Tensor, images: Tensor) -> Tensor:
        """Take the step; returns the loss before it, a scalar on the device."""
        loss = F.mse_loss(self.network(clouds), images)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self.optimizer.step()
        return loss.detach()


class FitSteps:
    """`count` steps on whole batches of an epoch at a call, which are captured in one CUDA graph.

    RipsNet's kernels are tiny, so about 2,300 single steps an epoch would mostly wait for launches. Order, cursor (a
    position in the order) and total (the loss so far, of all clouds) stay where they are on the device.
    """

    def __init__(self, step: TrainStep, data: CloudData, batch_size: int, capture: Capture):
        self.step, self.data, self.size = step, data, batch_size
        self.whole = len(data) // batch_size
        self.count = steps_at_once(self.whole)
        self.order = torch.zeros(len(data), dtype=torch.int64, device=data.device)
        self.cursor = torch.zeros((), dtype=torch.int64, device=data.device)
        self.places = torch.arange(batch_size, device=data.device)
        self.total = torch.zeros((), device=data.device)
        self.replayed = Replayed(capture, warm_up=1)

    def next_steps(self) -> None:
        """The function that is captured."""
        for _ in range(self.count):
            index = self.order.index_select(0, self.cursor + self.places)
            self.total += self.step(*self.data.batch(index)) * self.size
            self.cursor += self.size

    def epoch(self, order: Tensor) -> int:
        """Take the steps of an epoch, but for fewer than `count` and a short batch at its end; returns how many clouds
        they saw."""
        self.order.copy_(order)
        self.cursor.zero_(), self.total.zero_()
        calls = self.whole // self.count
        for _ in range(calls):
            self.replayed(self.next_steps)
        return calls * self.count * self.size


def steps_at_once(whole: int) -> int:
    """How many of an epoch's steps make a graph, at most MOST_STEPS: as many as leave the fewest over."""
    fewest = max(1, min(whole, MOST_STEPS // 3))
    return min(range(fewest, max(1, min(whole, MOST_STEPS)) + 1), key=lambda count: (whole % count, -count))


def train_epoch(
    step: TrainStep, data: CloudData, order: Tensor, batch_size: int, replayed: FitSteps | None = None
) -> Tensor:
    """One pass over the clouds in the given order; returns the mean loss, a scalar on the device.

    replayed: takes most of the steps; it is of the same step, data and batch size.
    """
    total, seen = torch.zeros((), device=data.device), 0
    if replayed is not None:
        total, seen = replayed.total, replayed.epoch(order)
    for index in order[seen:].split(batch_size):
        if len(index):
            total += step(*data.batch(index)) * len(index)
    return total / len(order)


@torch.no_grad()
def predict(network: RipsNet, data: CloudData) -> Iterator[tuple[Tensor, Tensor]]:
    """RipsNet's images and the exact ones of all clouds in data, each (B, 400), batch by batch."""
    for index in torch.arange(len(data), device=data.device if data.on_device else "cpu").split(VALIDATION_BATCH):
        clouds, images = data.batch(index)
        yield network(clouds), images


def mean_squared_error(network: RipsNet, data: CloudData) -> float:
    """Over all pixels of all images in data."""
    total = torch.zeros((), device=data.device)
    for found, exact in predict(network, data):
        total += F.mse_loss(found, exact) * len(exact)
    return total.item() / len(data)


class Fitting:
    """One fit: the network and its optimizer, how far it is, the best weights so far, and the run folder that keeps
    them."""

    def __init__(self, network: RipsNet, train: CloudData, validation: CloudData, run: Run, fit: Fit):
        self.network, self.train, self.validation, self.run, self.fit = network, train, validation, run, fit
        self.step = TrainStep(network, fit.lr)
        self.replayed: FitSteps | None = None
        capture = capture_on(train.device)
        if capture is not None and train.on_device and len(train) >= fit.batch_clouds:
            self.replayed = FitSteps(self.step, train, fit.batch_clouds, capture)
        self.progress = Progress()
        self.best, self.best_model, self.waited = math.inf, network.state_dict(), 0
        self.saved_at, self.saved_epoch = time.perf_counter(), 1

    @property
    def ended(self) -> bool:
        return self.progress.epoch > self.fit.epochs or self.waited >= self.fit.patience

    def resume(self) -> None:
        """Lock the run's folder, and continue from its checkpoint if there is one."""
        state = self.run.start(FIELDS)
        if state is None:
            return
        done = len(state["history"])
        if done > self.fit.epochs:
            raise UserError(
                f"--epochs: found {self.fit.epochs}, but {done} epochs of {self.run.folder} are done; give at least "
                "these, or remove the folder"
            )
        try:
            self.network.load_state_dict(state["best_model"])  # first, to see whether it fits
            self.network.load_state_dict(state["model"])
            for group in state["optimizer"]["param_groups"]:
                group["capturable"] = self.step.on_cuda  # the run may have begun on another device; decides where
            self.step.optimizer.load_state_dict(state["optimizer"])  # counters go
            self.progress.load_state_dict(state)
        except checkpoint.MISFITS as error:
            raise checkpoint.misfit(self.run.folder, error) from None
        self.best, self.best_model, self.waited = state["best"], state["best_model"], state["waited"]
        self.saved_epoch = self.progress.epoch
        self.run.write_log(self.progress.history)
        print(f"{self.run.name}: {done} epochs are done", flush=True)

    def train_one_epoch(self) -> None:
        """Train, validate, and add the epoch to the log."""
        progress, epoch = self.progress, self.progress.epoch
        began = time.perf_counter()
        order = self.train.order(self.fit.seed, epoch)
        loss = train_epoch(self.step, self.train, order, self.fit.batch_clouds, self.replayed).item()
        value = mean_squared_error(self.network, self.validation)
        if not math.isfinite(loss + value):
            raise RunStopped(
                f"the loss became non-finite in epoch {epoch} (train {loss:g}, validation {value:g}); lower --lr"
            )
        self.waited += 1
        if value < self.best - MIN_DELTA:
            self.best, self.waited = value, 0
            self.best_model = {name: tensor.clone() for name, tensor in self.network.state_dict().items()}
        row = {"epoch": epoch, "train_mse": loss, "val_mse": value, "best_val_mse": self.best}
        progress.history.append({**row, "seconds": round(time.perf_counter() - began, 3)})
        progress.next_epoch()

    def save(self) -> None:
        """Save, unless nothing has changed since."""
        if self.saved_epoch == self.progress.epoch:
            return
        self.run.save(
            {
                "model": self.network.state_dict(),
                "optimizer": self.step.optimizer.state_dict(),
                "best": self.best,
                "best_model": self.best_model,
                "waited": self.waited,
                **self.progress.state_dict(),
            }
        )
        self.run.write_log(self.progress.history)
        self.saved_at, self.saved_epoch = time.perf_counter(), self.progress.epoch


def fit_ripsnet(network: RipsNet, train: CloudData, validation: CloudData, run: Run, fit: Fit) -> list[dict[str, Any]]:
    """Train until the validation loss has not improved for fit.patience epochs, or for fit.epochs; leaves the best
    weights in `network` and returns the log, a dict an epoch. Saves every few seconds, and when interrupted.

    Raises:
        RunStopped: when a loss becomes non-finite, or the disk is full. Interrupted: after a signal.
    """
    fitting = Fitting(network, train, validation, run, fit)
    fitting.resume()
    done = len(fitting.progress.history)
    with (
        own_stream(run.device),
        StopRequest() as stop,
        Bar(run.name, fit.epochs, "epoch", initial=done, per_unit=len(train), thing="clouds") as bar,
    ):
        while not fitting.ended:
            fitting.train_one_epoch()
            bar.update()
            bar.show(val_mse=f"{fitting.progress.history[-1]['val_mse']:.3g}", best=f"{fitting.best:.3g}")
            if stop.requested:
                fitting.save()
                raise Interrupted(f"stopped after epoch {fitting.progress.epoch - 1}; continue with --resume")
            if time.perf_counter() - fitting.saved_at > SAVE_EVERY:
                fitting.save()
    fitting.save()
    network.load_state_dict(fitting.best_model)
    return fitting.progress.history
