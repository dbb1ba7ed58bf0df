"""Several processes that torchrun starts work on one run; without it, everything here is the identity.

Process 0 reads and writes the run's folder and speaks; the others compute with it and print nothing. Collectives of
Python objects and of flags go over gloo, on CUDA too. What ends one process ends all: an error that all know of is
printed once, and an error of one alone breaks the connections of the others.
"""

import os
import sys
from collections.abc import Callable
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.rendezvous import rendezvous

from .errors import UserError

TIMEOUT = timedelta(days=1)  # the others wait as long as process 0 may take for what it does alone
PATIENCE = timedelta(seconds=10)  # for process 0 to print what another one has found too
SAID = "said"

Value = TypeVar("Value")
_store: dist.Store | None = None  # by which the processes found each other; None without torchrun


def meet() -> None:
    """Wait for all processes that torchrun has started. Those beside process 0 print nothing from then on."""
    global _store
    number, count = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    store = next(rendezvous("env://", timeout=TIMEOUT))[0]
    if os.environ["LOCAL_WORLD_SIZE"] == os.environ["WORLD_SIZE"]:
        # After a restart the agent's store still holds the addresses of the processes that have ended. Over several
        # machines, whose counts of restarts may differ, the store must be one that the agent does not share.
        store = dist.PrefixStore(f"attempt{os.environ['TORCHELASTIC_RESTART_COUNT']}", store)
    store.set(f"here{number}", "")
    store.wait([f"here{other}" for other in range(count)], TIMEOUT)
    _store = store
    if number > 0:
        sys.stdout = open(os.devnull, "w")


def join(device: torch.device) -> torch.device:
    """Form the group; returns the device of this process, which is the GPU of its number on its machine.

    UserError for one GPU that is named, and for more processes than GPUs.
    """
    if _store is None:
        return device
    here, count = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])
    backend, options = "gloo", dict[str, Any]()
    if device.type == "cuda":
        if device.index is not None:
            raise UserError(f"--device: found {device}, expected cuda, because torchrun's processes take a GPU each")
        if (gpus := torch.cuda.device_count()) < count:
            raise UserError(
                f"--device cuda: found {count} processes and {gpus} GPUs on this machine; start fewer processes"
            )
        device = torch.device("cuda", here)
        torch.cuda.set_device(device)
        backend, options = "cpu:gloo,cuda:nccl", {"device_id": device}
    number, total = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(backend, store=_store, rank=number, world_size=total, timeout=TIMEOUT, **options)
    return device


def leave() -> None:
    if dist.is_initialized():
        dist.destroy_process_group()


def restarted() -> bool:
    """Whether torchrun has restarted the processes after one had failed."""
    return _store is not None and agree(int(os.environ["TORCHELASTIC_RESTART_COUNT"]) > 0)


def rank() -> int:
    """The number of this process, from 0."""
    return dist.get_rank() if dist.is_initialized() else 0


def world() -> int:
    """How many processes work on the run."""
    return dist.get_world_size() if dist.is_initialized() else 1


def local_world() -> int:
    """How many of them run on this machine."""
    return int(os.environ["LOCAL_WORLD_SIZE"]) if dist.is_initialized() else 1


def once(say: Callable[[], None]) -> None:
    """Print a last line in one process: in process 0, or in another one where process 0 does not come to it."""
    if _store is None:
        say()
        return
    try:
        if os.environ["RANK"] != "0":
            _store.wait([SAID], PATIENCE)
            return
        if _store.check([SAID]):
            return
    except dist.DistNetworkError:  # process 0, which has kept the store, has ended
        return
    except dist.DistStoreError:  # nothing was said in time
        pass
    say()
    _store.set(SAID, "")


def is_broken(error: Exception) -> bool:
    """Whether an error comes from another process's end."""
    return world() > 1 and (isinstance(error, dist.DistError) or any(name in str(error) for name in ("gloo", "NCCL")))


def all_states(state: Value) -> list[Value]:
    """A picklable value of each process, on the CPU, in the order of their numbers."""
    if world() == 1:
        return [state]
    states: list[Any] = [None] * world()
    dist.all_gather_object(states, state)
    return states


def to_first(value: Value) -> list[Value]:
    """A picklable value of each process in process 0, in the order of their numbers; nothing in the others."""
    if world() == 1:
        return [value]
    values: list[Any] = [None] * world() if rank() == 0 else []
    dist.gather_object(value, values if rank() == 0 else None, dst=0)
    return values


def together(function: Callable[..., Value], *arguments: Any) -> Value:
    """What a function returns in each process. If it fails in some, all raise the error of the first of these."""
    if world() == 1:
        return function(*arguments)
    value, failure = _outcome(function, *arguments)
    for number, error in enumerate(all_states(failure)):
        if error is not None:
            raise failure if failure is not None and number == rank() else error
    return value


def on_first(function: Callable[..., Value], *arguments: Any) -> Value:
    """What a function returns in process 0, which alone calls it, or its error, in all. The value must be picklable,
    and on the CPU."""
    if world() == 1:
        return function(*arguments)
    outcome: Any = None
    if rank() == 0:
        outcome = _outcome(function, *arguments)
    box = [outcome]
    dist.broadcast_object_list(box, src=0, device=torch.device("cpu"))
    value, failure = box[0] if outcome is None else outcome
    if failure is not None:
        raise failure
    return value


def _outcome(function: Callable[..., Value], *arguments: Any) -> tuple[Any, Exception | None]:
    try:
        return function(*arguments), None
    except Exception as error:
        return None, error


def after_first(function: Callable[..., Value], *arguments: Any) -> Value:
    """What a function returns in each process; process 0 calls it before the others, so that they find what it has
    downloaded."""
    if rank() > 0:
        together(_nothing)
        return together(function, *arguments)
    value = together(function, *arguments)
    together(_nothing)
    return value


def _nothing() -> None:
    """What a process does while it waits for others."""


def agree(flag: bool) -> bool:
    """Whether the flag is set in any process."""
    if world() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def parallel(module: nn.Module) -> nn.Module:
    """A module whose gradients are averaged over the processes in each backward pass. Every forward pass takes the
    buffers of process 0."""
    if world() == 1:
        return module
    return nn.parallel.DistributedDataParallel(module, static_graph=True, gradient_as_bucket_view=True)


def gather(points: Tensor) -> Tensor:
    """The rows (n, d) of all processes, in the order of their numbers, (W n, d). The gradient is that of the sum of
    what the processes make of them, so that the mean gradient of `parallel` is exact for a value that all compute."""
    return _Gather.apply(points)


class _Gather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, points: Tensor) -> Tensor:
        parts = [torch.empty_like(points) for _ in range(world())]
        dist.all_gather(parts, points)
        return torch.cat(parts)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        (gradient,) = gradients
        gradient = gradient.clone(memory_format=torch.contiguous_format)
        dist.all_reduce(gradient)
        return gradient.chunk(world())[rank()]


def share_buffers(module: nn.Module) -> None:
    """Copy process 0's buffers, such as the running statistics of its batch norms, to all."""
    if world() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, 0)
