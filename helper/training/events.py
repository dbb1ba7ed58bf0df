"""TensorBoard: scalars, a point an epoch, figures, and hyperparameters with the final accuracy."""

from pathlib import Path
from typing import Any

from ..files.atomic import cannot_write


class Events:
    """The events of a run, in its folder; a context that closes the file.

    step: points from this one on that an earlier process has written are discarded, to be written again.
    RunStopped where they cannot be written.
    """

    def __init__(self, folder: Path, step: int):
        from torch.utils.tensorboard import SummaryWriter  # here, because importing it takes time

        self.folder = folder
        try:
            self.writer = SummaryWriter(folder, purge_step=max(1, step))
        except OSError as error:
            raise cannot_write(folder, error) from None

    def scalars(self, step: int, values: dict[str, Any]) -> None:
        """The numbers among the values, each under its name; 'epoch' is the step itself."""
        for name, value in values.items():
            if name != "epoch" and isinstance(value, int | float):
                self.writer.add_scalar(name, value, step)
        self._flush()

    def figure(self, step: int, tag: str, figure: Any) -> None:
        """A matplotlib Figure as an image."""
        self.writer.add_figure(tag, figure, step, close=False)
        self._flush()

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
        writer: Any = self.writer.file_writer  # which torch's types know as None, its state after `close`
        writer.add_summary(hparams_pb(plain, trial_id=self.folder.name), step)
        self.scalars(step, metrics)

    def _flush(self) -> None:
        """Wait until everything is on the disk, where a full one shows."""
        try:
            self.writer.flush()
        except OSError as error:
            raise cannot_write(self.folder, error) from None

    def __enter__(self) -> "Events":
        return self

    def __exit__(self, *exception):
        try:
            self.writer.close()
        except OSError as error:
            if exception[0] is None:
                raise cannot_write(self.folder, error) from None
