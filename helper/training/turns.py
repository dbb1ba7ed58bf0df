"""Runs that take turns in one process, a step each, and end as each would alone, bit for bit.

A small network leaves most of a GPU idle. Runs side by side, each with a stream of its own, fill it: while the host
queues a step of one, those of the others run. On a CPU nothing is gained.
"""

import contextlib
from collections.abc import Generator, Sequence
from typing import Any, TypeVar

import torch

from ..errors import Interrupted, UserError
from .interrupts import StopRequest

Result = TypeVar("Result")
Steps = Generator[None, None, Result]  # yields after each step, and returns what a run gives in the end


def generator_of(device: torch.device) -> torch.Generator:
    """The global generator of a GPU."""
    return torch.cuda.default_generators[torch.cuda.current_device() if device.index is None else device.index]


class Turn:
    """One of the runs: its steps, its stream and its random numbers.

    The random numbers are those of the global generators when it is made; from then on they are kept apart from those
    of the others. name: before its messages.
    """

    def __init__(self, name: str, steps: Steps, device: torch.device):
        self.name, self.steps, self.device = name, steps, device
        self.random = torch.get_rng_state()
        self.stream: torch.cuda.Stream | None = None
        if device.type == "cuda":
            self.stream = torch.cuda.Stream(device)
            self.stream.wait_stream(torch.cuda.current_stream(device))
            self.generator = generator_of(device).clone_state()

    def on_stream(self) -> contextlib.AbstractContextManager:
        """What is queued in this context comes after what the run has queued."""
        return contextlib.nullcontext() if self.stream is None else torch.cuda.stream(self.stream)

    def take(self) -> bool:
        """One step with the run's own random numbers; False where the run is at its end."""
        torch.set_rng_state(self.random)
        if self.stream is not None:
            # Its state in memory, and not the numbers in it alone: graphs read from there how far it is, at any time.
            generator_of(self.device).graphsafe_set_state(self.generator)
        with self.on_stream():
            try:
                next(self.steps)
            except StopIteration:
                return False
        self.random = torch.get_rng_state()
        return True

    def wait(self) -> None:
        """Until what the run has queued is done: what its first step keeps for all, such as padded images, is there."""
        if self.stream is not None:
            self.stream.synchronize()

    def end(self) -> None:
        """Let what is queued elsewhere from now on come after the run."""
        if self.stream is not None:
            torch.cuda.current_stream(self.device).wait_stream(self.stream)


def alone(turn: Turn) -> Any:
    """Take all steps of one run, and return what it gives."""
    try:
        with turn.on_stream():
            while True:
                try:
                    next(turn.steps)
                except StopIteration as end:
                    return end.value
    finally:
        turn.end()


def side_by_side(turns: Sequence[Turn], stop: StopRequest) -> None:
    """Take turns until every run has ended. A run that fails says so and leaves the rest to go on.

    Raises:
        UserError: in the end, of the kind of the first run's that failed; Interrupted, after a signal, likewise. Any
            other error is raised when the other runs have stopped as after a signal, and so are saved.
    """
    going, failures, first_round = list(turns), list[Exception](), True
    while going:
        for turn in list(going):
            try:
                if turn.take():
                    if first_round:
                        turn.wait()
                    continue
            except Exception as error:
                failures.append(error)
                if isinstance(error, UserError):
                    with contextlib.suppress(OSError):  # nobody reads, and the others are to be saved, too
                        print(f"{turn.name}: {error}", flush=True)
                else:
                    stop.requested = True
            turn.end()
            going.remove(turn)
        first_round = False
    failures.sort(key=lambda failure: isinstance(failure, UserError))  # what nobody expected comes first
    if failures and isinstance(failures[0], Interrupted):
        raise Interrupted("the runs were stopped as the lines above say; continue all with --resume")
    if failures and isinstance(failures[0], UserError):
        raise type(failures[0])(f"{len(failures)} of {len(turns)} runs failed, as the lines above say")
    if failures:
        raise failures[0]
