"""CUDA graphs: work that is recorded once and then replayed, without the host launching each kernel anew.

A graph repeats the very kernels that were recorded, on the very memory that they used. What the host computed on the
way, such as a learning rate, is recorded as the number that it was; and nothing in it may wait for the device. So the
work must be a function of no arguments that finds and leaves everything in tensors that stay where they are.
"""

import contextlib
from collections.abc import Callable, Hashable, Iterator
from typing import Protocol

import torch

Replay = Callable[[], None]


class Capture(Protocol):
    """Records what a function does, and does not do it: returns what does it."""

    def __call__(self, function: Callable[[], None]) -> Replay: ...


def cuda_capture(function: Callable[[], None]) -> Replay:
    """On the current stream, which must not be the default one, and on which the function must have run before: the
    first run of a kernel may load it, or choose it."""
    graph = torch.cuda.CUDAGraph()
    # Other threads, such as TensorBoard's, may do what this one may not while it records.
    with torch.cuda.graph(graph, stream=torch.cuda.current_stream(), capture_error_mode="thread_local"):
        function()
    return graph.replay


def capture_on(device: torch.device) -> Capture | None:
    """How work on a device is captured; None where there are no graphs."""
    return cuda_capture if device.type == "cuda" else None


@contextlib.contextmanager
def own_stream(device: torch.device) -> Iterator[None]:
    """A context whose work is queued on a new stream: after what is queued before, and before what is queued after it.
    Nothing on a CPU."""
    if device.type != "cuda":
        yield
        return
    stream = torch.cuda.Stream(device)
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        yield
    torch.cuda.current_stream(device).wait_stream(stream)


class Replayed:
    """A function that runs as it is `warm_up` times, is then captured, and replayed from then on.

    A call names the function, always the same one, and the numbers that it would take from the host, its `key`: it is
    captured anew when they change. Only the last capture is kept, since these numbers, a rate that decays or a weight
    that rises, do not come back. The function is not kept, as it may be a method of who keeps this: graphs and their
    memory are gone as soon as nobody needs them.
    """

    def __init__(self, capture: Capture, warm_up: int):
        self.capture, self.warm_up = capture, warm_up
        self.key: Hashable = None
        self.replay: Replay | None = None

    def __call__(self, function: Callable[[], None], key: Hashable = None) -> None:
        if self.warm_up:
            self.warm_up -= 1
            function()
            return
        if self.replay is None or self.key != key:
            self.replay = None  # its memory is there for the next one
            self.key, self.replay = key, self.capture(function)
        self.replay()
