"""How far a run is: for the checkpoint, and for those who watch."""

import sys
import time
from typing import Any

from tqdm import tqdm

from .. import distributed

LINE_EVERY = 30.0  # seconds between plain lines where the output is no terminal


class Progress:
    """The epoch at hand, from 1; steps done in it, and the seconds they took; the log so far, a dict an epoch."""

    def __init__(self) -> None:
        self.epoch, self.step, self.seconds = 1, 0, 0.0
        self.history: list[dict[str, Any]] = []

    def next_epoch(self) -> None:
        self.epoch, self.step, self.seconds = self.epoch + 1, 0, 0.0

    def state_dict(self) -> dict[str, Any]:
        return {
            "next_epoch": self.epoch,  # to go on with; in best.pth `epoch` is the one behind the weights
            "step": self.step,
            "seconds": self.seconds,
            "history": self.history,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Raises ValueError where the numbers are none, or do not fit each other."""
        history, epoch = state["history"], state["next_epoch"] if "next_epoch" in state else state["epoch"]
        step, seconds = state.get("step", 0), state.get("seconds", 0.0)
        if not all(isinstance(row, dict) and isinstance(row.get("seconds"), int | float) for row in history):
            raise ValueError("its history is not the log of epochs")
        if epoch != len(history) + 1:
            raise ValueError(f"its next epoch is {epoch}, after a log of {len(history)}")
        if not isinstance(step, int) or step < 0 or not isinstance(seconds, int | float):
            raise ValueError(f"it has step {step}, seconds {seconds}")
        self.epoch, self.step, self.seconds, self.history = epoch, step, seconds, list(history)


class Bar:
    """A progress bar on a terminal; elsewhere a plain line with the same numbers every LINE_EVERY seconds.
    Of several processes the first shows it.

    what: heading, such as 'epoch 3/240'. total, unit: what is counted. initial: done before. beyond: units of the run
    that follow after these, for the time to its end. per_unit, thing: what the speed counts, such as 64 images a step.
    """

    def __init__(
        self,
        what: str,
        total: int,
        unit: str,
        initial: int = 0,
        beyond: int = 0,
        per_unit: int = 1,
        thing: str | None = None,
    ):
        self.what, self.total, self.unit, self.done, self.beyond = what, total, unit, initial, beyond
        self.per_unit, self.thing = per_unit, thing or f"{unit}s"
        self.initial, self.began, self.said = initial, time.perf_counter(), time.perf_counter()
        self.numbers: dict[str, str] = {}
        hidden = None if distributed.rank() == 0 else True
        self.bar = tqdm(total=total, initial=initial, desc=what, unit=unit, leave=False, disable=hidden)

    def update(self, count: int = 1) -> None:
        self.done += count
        self.bar.update(count)
        if self.bar.disable and time.perf_counter() - self.said > LINE_EVERY:
            self.said = time.perf_counter()
            numbers = "".join(f", {name} {value}" for name, value in self.numbers.items())
            print(f"{self.what}: {self.done} of {self.total} {self.unit}s, {self._speed()}{numbers}", flush=True)

    def show(self, **numbers: str) -> None:
        """Numbers beside the bar, such as loss='0.31'."""
        self.numbers = numbers
        if not self.bar.disable:
            self.bar.set_postfix_str(", ".join([self._speed(), *(f"{k} {v}" for k, v in numbers.items())]))

    def _speed(self) -> str:
        """'1,234 images/s, 2:05:12 to the end of the run'."""
        spent, made = time.perf_counter() - self.began, self.done - self.initial
        if not made:
            return "0 " + self.thing + "/s"
        left = int((self.total - self.done + self.beyond) * spent / made)
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        return f"{made * self.per_unit / spent:,.4g} {self.thing}/s, {clock} to the end"

    def __enter__(self) -> "Bar":
        return self

    def __exit__(self, *exception):
        self.bar.close()
        sys.stderr.flush()
