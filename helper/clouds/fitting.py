"""Fitting a RipsNet to clouds and images: the data, the step, and early stopping (TopKD's settings, RipsNet's loss)."""

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from tqdm import tqdm

from ripsnet import RipsNet

from .clouds import CloudSet
from .loop import StopRequest
from .options import Interrupted, RunStopped
from .runs import Run

MIN_DELTA = 1e-10  # a smaller gain does not reset the patience (as published)
SAVE_EVERY = 20.0  # seconds; epochs may be much shorter
VALIDATION_BATCH = 1024


class CloudData:
    """Clouds start to stop - 1 of a set and their images: whole on the device, or read from memory-mapped chunks.

    `batch(index)` gives the same tensors either way: clouds float32 (B, n, d), images float32 (B, 400), on the device.
    """

    def __init__(self, files: CloudSet, dim: int, start: int, stop: int, device: torch.device, on_device: bool):
        self.start, self.stop, self.device, self.on_device = start, stop, device, on_device
        self.chunk_size = files.span(0)[1]
        kinds = ("clouds", f"images_dim{dim}")
        # plain views of the memory maps, which cost less to index
        self.arrays = [[np.asarray(files.read(kind, chunk, mmap=True)) for chunk in files.chunks] for kind in kinds]
        if on_device:
            self.tensors = [self._load(chunks) for chunks in self.arrays]

    def __len__(self) -> int:
        return self.stop - self.start

    @staticmethod
    def bytes_needed(files: CloudSet, dim: int) -> int:
        return (
            sum(files.read(kind, 0, mmap=True)[0].nbytes for kind in ("clouds", f"images_dim{dim}")) * files.num_clouds
        )

    def _load(self, chunks: list[np.ndarray]) -> Tensor:
        first = torch.from_numpy(np.array(chunks[0][:1]))
        whole = torch.empty(len(self), *first.shape[1:], dtype=first.dtype, device=self.device)
        for number, chunk in enumerate(chunks):
            begin = number * self.chunk_size
            low, high = max(self.start, begin), min(self.stop, begin + len(chunk))
            if low < high:
                whole[low - self.start : high - self.start] = torch.from_numpy(
                    np.array(chunk[low - begin : high - begin])
                )
        return whole

    def _read(self, chunks: list[np.ndarray], index: Tensor) -> Tensor:
        places = [divmod(self.start + number, self.chunk_size) for number in index.tolist()]
        return torch.from_numpy(np.stack([chunks[chunk][row] for chunk, row in places])).to(self.device)

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
        return sum(self.batch(index)[1].sum(0) for index in order.split(VALIDATION_BATCH)) / len(self)

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
        self.network, self.batch_size, self.graph = network, batch_size, None
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
                self._capture(clouds, images)
        self.clouds.copy_(clouds)
        self.images.copy_(images)
        self.graph.replay()
        return self.loss.clone()

    def _capture(self, clouds: Tensor, images: Tensor) -> None:
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
        self.graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(self.graph):
            self.loss = self.eager(self.clouds, self.images)
        with torch.no_grad():
            for parameter, weight in zip(self.network.parameters(), weights, strict=True):
                parameter.copy_(weight)
                for key, value in self.optimizer.state[parameter].items():
                    value.copy_(state[parameter][key]) if parameter in state else value.zero_()


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
    return sum(F.mse_loss(found, exact) * len(exact) for found, exact in predict(network, data)).item() / len(data)


def fit_ripsnet(network: RipsNet, train: CloudData, validation: CloudData, run: Run, args) -> list[dict]:
    """Train until the validation loss has not improved for args.patience epochs, or for args.epochs; leaves the best
    weights in `network` and returns the log, a dict an epoch. Saves every few seconds, and when interrupted."""
    step = TrainStep(network, args.lr, args.batch_clouds)
    history, best, best_weights, waited = [], float("inf"), None, 0
    if (state := run.start()) is not None:
        network.load_state_dict(state["model"])
        for group in state["optimizer"]["param_groups"]:
            group["capturable"] = step.on_cuda  # the run may have begun on another device; decides where counters go
        step.optimizer.load_state_dict(state["optimizer"])
        history, best, best_weights, waited = (state[key] for key in ("history", "best", "best_model", "waited"))
        run.write_log(history)
        print(f"{run.name}: {len(history)} epochs are done", flush=True)

    def save():
        run.save(
            {
                "model": network.state_dict(),
                "optimizer": step.optimizer.state_dict(),
                "history": history,
                "best": best,
                "best_model": best_weights,
                "waited": waited,
                "epoch": len(history) + 1,
            }
        )
        run.write_log(history)

    saved, done = time.perf_counter(), len(history)
    with (
        StopRequest() as stop,
        tqdm(total=args.epochs, initial=len(history), desc=run.name, unit="epoch", disable=None) as bar,
    ):
        while len(history) < args.epochs and waited < args.patience:
            began = time.perf_counter()
            loss = train_epoch(step, train, train.order(args.seed, len(history) + 1), args.batch_clouds).item()
            value = mean_squared_error(network, validation)
            if not np.isfinite(loss + value):
                raise RunStopped(
                    f"the loss became non-finite in epoch {len(history) + 1} (train {loss:g}, validation "
                    f"{value:g}); lower --lr"
                )
            waited += 1
            if value < best - MIN_DELTA:
                best, waited = value, 0
                best_weights = {name: tensor.clone() for name, tensor in network.state_dict().items()}
            history.append(
                {
                    "epoch": len(history) + 1,
                    "train_mse": loss,
                    "val_mse": value,
                    "best_val_mse": best,
                    "seconds": round(time.perf_counter() - began, 3),
                }
            )
            bar.update()
            bar.set_postfix(val_mse=f"{value:.3g}", best=f"{best:.3g}")
            if stop.requested:
                save()
                raise Interrupted(f"stopped after epoch {len(history)}; continue with --resume")
            if time.perf_counter() - saved > SAVE_EVERY:
                save()
                saved, done = time.perf_counter(), len(history)
    if len(history) > done:
        save()
    network.load_state_dict(best_weights)
    return history
