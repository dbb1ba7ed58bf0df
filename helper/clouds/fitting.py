"""Fitting a RipsNet to clouds and images: the data, the step, and early stopping (TopKD's settings, RipsNet's loss)."""

import math
import time
from collections.abc import Iterator
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
from ..training.interrupts import StopRequest
from ..training.progress import Bar, Progress
from .store import CloudSet

MIN_DELTA = 1e-10  # a smaller gain does not reset the patience (as published)
SAVE_EVERY = 20.0  # seconds; epochs may be much shorter
VALIDATION_BATCH = 1024
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
        self.arrays = [[np.asarray(files.verified(kind, chunk)) for chunk in chunks] for kind in kinds]
        if on_device:
            self.tensors = [self._load(chunks) for chunks in self.arrays]

    def __len__(self) -> int:
        return self.stop - self.start

    @staticmethod
    def bytes_needed(files: CloudSet, dim: int) -> int:
        a_cloud = sum(files.read(kind, 0, mmap=True)[0].nbytes for kind in ("clouds", f"images_dim{dim}"))
        return a_cloud * files.num_clouds

    def _load(self, chunks: list[np.ndarray]) -> Tensor:
        first = torch.from_numpy(np.array(chunks[0][:1]))
        whole = torch.empty(len(self), *first.shape[1:], dtype=first.dtype, device=self.device)
        filled = 0
        for number, chunk in enumerate(chunks, self.first_chunk):
            begin = number * self.chunk_size
            part = chunk[max(self.start - begin, 0) : self.stop - begin]
            whole[filled : filled + len(part)] = torch.from_numpy(np.array(part))
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
    """One Adamax step on the mean squared error of a batch. On CUDA the step for a full batch is captured in a graph.

    RipsNet's kernels are tiny, so about 2,300 eager steps an epoch would mostly wait for launches.
    """

    def __init__(self, network: RipsNet, lr: float, batch_size: int):
        self.network, self.batch_size = network, batch_size
        self.graph: torch.cuda.CUDAGraph | None = None
        self.on_cuda = next(network.parameters()).is_cuda
        self.optimizer = torch.optim.Adamax(network.parameters(), lr=lr, foreach=True, capturable=self.on_cuda)

    def eager(self, clouds: Tensor, images: Tensor) -> Tensor:
        loss = F.mse_loss(self.network(clouds), images)
        self.optimizer.zero_grad(set_to_none=not self.on_cuda)  # a graph needs gradients that stay where they are
        loss.backward()
        self.optimizer.step()
        return loss.detach()

    def __call__(self, clouds: Tensor, images: Tensor) -> Tensor:
        """Take the step; returns the loss before it, a scalar on the device."""
        if not self.on_cuda or len(clouds) != self.batch_size:
            return self.eager(clouds, images)
        if self.graph is None:
            with torch.cuda.device(clouds.device):
                self.graph = self._capture(clouds, images)
        self.clouds.copy_(clouds)
        self.images.copy_(images)
        self.graph.replay()
        return self.loss.clone()

    def _capture(self, clouds: Tensor, images: Tensor) -> torch.cuda.CUDAGraph:
        """Capture the step. The warm-up that capturing needs is undone, so a graphed run equals an eager one."""
        self.clouds, self.images = clouds.clone(), images.clone()
        weights = [parameter.detach().clone() for parameter in self.network.parameters()]
        state = {p: {k: v.clone() for k, v in s.items()} for p, s in self.optimizer.state.items()}
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            for _ in range(3):
                self.eager(self.clouds, self.images)
        torch.cuda.current_stream().wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.loss = self.eager(self.clouds, self.images)
        with torch.no_grad():
            for parameter, weight in zip(self.network.parameters(), weights, strict=True):
                parameter.copy_(weight)
                for key, value in self.optimizer.state[parameter].items():
                    value.copy_(state[parameter][key]) if parameter in state else value.zero_()
        return graph


def train_epoch(step: TrainStep, data: CloudData, order: Tensor, batch_size: int) -> Tensor:
    """One pass over the clouds in the given order; returns the mean loss, a scalar on the device."""
    total = torch.zeros((), device=data.device)
    for index in order.split(batch_size):
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
        self.step = TrainStep(network, fit.lr, fit.batch_clouds)
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
        loss = train_epoch(self.step, self.train, order, self.fit.batch_clouds).item()
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
