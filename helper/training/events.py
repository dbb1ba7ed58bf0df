"""TensorBoard: scalars, a point an epoch, figures, and hyperparameters with the final accuracy."""

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from .. import distributed
from ..errors import RunStopped
from ..files.atomic import cannot_write


class Events:
    """The events of a run, in its folder; a context that closes the file. Of several processes the first has one.

    step: points from this one on that an earlier process has written are discarded, to be written again.
    RunStopped where they cannot be written.
    """

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter  # here, because importing it takes time

        self.folder, self.excepthook = folder, threading.excepthook
        threading.excepthook = self._from_thread
        self.writer: Any = None
        if distributed.rank() == 0:
            with self._clear():
                self.writer = SummaryWriter(folder, purge_step=max(1, step))

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        """The numbers among the values, each under its name; 'epoch' is the step itself."""
        with self._clear():
            for name, value in values.items():
                if name != "epoch" and isinstance(value, int | float):
                    self.writer.add_scalar(name, value, step)
            self.writer.flush()

    def figure(self, step: int, tag: str, figure: Any) -> None:
        """A matplotlib Figure as an image."""
        with self._clear():
            self.writer.add_figure(tag, figure, step, close=False)
            self.writer.flush()

    def hparams(self, step: int, options: dict[str, Any], metrics: dict[str, float]) -> None:
        """The options of a run that has ended, for the HParams dashboard, and what came of them, as scalars.

        No experiment is declared: TensorBoard then shows the options and scalars of all the runs beside each other.
        """
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in options.items()
            if value is not None
        }
        with self._clear():
            self.writer.file_writer.add_summary(hparams_pb(plain, trial_id=self.folder.name), step)
        self.scalars(step, metrics)

    @contextlib.contextmanager
    def _clear(self) -> Iterator[None]:
        """Turns what the writer, or its thread, could not write into one clear line."""
        try:
            yield
        except OSError as error:
            raise cannot_write(self.folder, error) from None

    def _from_thread(self, failure: threading.ExceptHookArgs) -> None:
        """The hook while the writer's thread may fail. After a failure, which may reach it late, it stays."""
        if not issubclass(failure.exc_type, OSError):  # which the next flush raises in the main thread
            self.excepthook(failure)

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, *exception):
        try:
            if self.writer is not None:
                with self._clear():
                    self.writer.close()
        except RunStopped:
            if exception[0] is None:
                raise
        else:
            threading.excepthook = self.excepthook
