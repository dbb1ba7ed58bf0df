"""The training loop of both trainers: fast (no host synchronisation inside an epoch), exact and resumable.

What is trained is an `Objective`; the loop knows nothing of teachers or topology. Every epoch's batches follow from
(seed, epoch) alone, so a checkpoint needs no loader state: a run that was killed continues from its last checkpoint and
ends with the weights and the log of one that never stopped, bit for bit.
"""

import contextlib
import io
import random
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from tqdm import tqdm

from dataset import ImageSet, TrainLoader, test_batches

from . import checkpoint
from .options import Interrupted, RunStopped
from .runs import NOT_PART_OF_A_RUN, Run

LOOK_EVERY = 50  # steps between looks at the device, for the progress bar and the non-finite check
FIGURES_EVERY = 10  # epochs between the objective's figures in TensorBoard; the last epoch has them too


def seed_everything(seed: int) -> None:
    """Seed the global generators; the loaders have generators of their own."""
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.manual_seed(seed)


def autocast(device: torch.device, amp: str) -> torch.autocast:
    """bf16 autocast for a network's forward when amp is 'bf16'; losses are computed outside it, in float32."""
    return torch.autocast(device.type, torch.bfloat16, enabled=amp == "bf16")


class Objective(nn.Module):
    """What the loop minimises: the sum over terms of weights[name] * value. This one is cross entropy alone.

    `student` is the deployed network. Parameters outside it are trained and saved with the run, but not deployed.
    A frozen network (a teacher) must be kept in a tuple, which PyTorch does not search for parameters. `label` comes
    before the epochs that are printed.
    """

    label = ""

    def __init__(self, student: nn.Module, weights: dict[str, float], amp: str = "off"):
        super().__init__()
        self.student, self.amp = student, amp
        self.weights = {name: weight for name, weight in weights.items() if weight}

    def begin(self, epoch: int) -> None:
        """Called before the first step of an epoch, and again when one is resumed."""

    def forward(self, images: Tensor, labels: Tensor, indices: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """images (B, 3, H, W), labels (B,), and the images' indices in the training set (B,) -> logits (B, classes),
        and the unweighted terms, float32 scalars.
        """
        with autocast(images.device, self.amp):
            logits = self.student(images)
        return logits, {"ce": F.cross_entropy(logits.float(), labels)}

    def total(self, terms: dict[str, Tensor]) -> Tensor:
        return sum(self.weights[name] * value for name, value in terms.items())

    def diagnose(self) -> dict[str, float]:
        """Further columns of the log, measured after each epoch; must leave the state of training untouched."""
        return {}

    def figures(self) -> dict:
        """matplotlib Figures of the state at an epoch's end, by tag; must leave the state of training untouched."""
        return {}


class Meters:
    """Sums over an epoch, kept on the device: images, correct predictions, terms; and the first non-finite step."""

    def __init__(self, names: list[str], device: torch.device):
        self.names = names
        self.images = 0
        self.correct = torch.zeros((), dtype=torch.int64, device=device)
        self.sums = torch.zeros(len(names), dtype=torch.float64, device=device)
        self.bad_step = torch.full((), -1, dtype=torch.int64, device=device)
        self.bad_terms = torch.zeros(len(names), device=device)

    @torch.no_grad()
    def update(self, step: int, loss: Tensor, terms: dict[str, Tensor], logits: Tensor, labels: Tensor) -> None:
        values = torch.stack([terms[name] for name in self.names])
        self.images += len(labels)
        self.correct += (logits.argmax(1) == labels).sum()
        self.sums += values.double() * len(labels)
        first = ~torch.isfinite(loss) & (self.bad_step < 0)
        self.bad_terms = torch.where(first, values, self.bad_terms)
        self.bad_step = torch.where(first, step, self.bad_step)

    def check(self, epoch: int) -> None:
        """Raise RunStopped if the loss of some step was not finite. Waits for the device."""
        if (step := int(self.bad_step)) >= 0:
            terms = ", ".join(
                f"{name} {value:g}" for name, value in zip(self.names, self.bad_terms.tolist(), strict=True)
            )
            raise RunStopped(
                f"the loss became non-finite at epoch {epoch}, step {step + 1} ({terms}); the checkpoint from "
                "before is kept; a lower --lr or a smaller weight may help"
            )

    def means(self) -> dict[str, float]:
        return {name: value / self.images for name, value in zip(self.names, self.sums.tolist(), strict=True)}

    def state(self) -> dict:
        return {key: value for key, value in vars(self).items() if key != "names"}


class StopRequest:
    """SIGINT and SIGTERM ask the loop to stop after the step at hand; a second one stops the program at once."""

    def __enter__(self):
        self.requested = False
        self.handlers = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def _note(self, number, frame):
        self.requested = True
        self.__exit__()

    def __exit__(self, *exception):
        for number, handler in self.handlers.items():
            signal.signal(number, handler)


@torch.no_grad()
def evaluate(model: nn.Module, images: ImageSet, amp: str = "off", batch_size: int = 1000) -> tuple[float, float]:
    """(top-1 accuracy in percent, mean cross entropy) over a test set, in large batches, every image once."""
    was_training = model.training
    model.eval()
    correct = torch.zeros((), dtype=torch.int64, device=images.labels.device)
    loss = torch.zeros((), dtype=torch.float64, device=images.labels.device)
    for batch, labels in test_batches(images, batch_size):
        with autocast(batch.device, amp):
            logits = model(batch)
        correct += (logits.argmax(1) == labels).sum()
        loss += F.cross_entropy(logits.float(), labels, reduction="sum")
    model.train(was_training)
    return 100 * correct.item() / len(images), loss.item() / len(images)


def learning_rate(args, epoch: int) -> float:
    """The step schedule: the rate decays after each decay epoch, so epoch 151 is the first at a tenth of it."""
    return args.lr * args.lr_decay_rate ** sum(epoch > decay for decay in args.lr_decay_epochs)


def make_optimizer(objective: Objective, args) -> torch.optim.Optimizer:
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trained, args.lr, args.momentum, weight_decay=args.weight_decay, fused=True)


def train_steps(
    objective: Objective,
    loader: TrainLoader,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    meters: Meters,
    start: int = 0,
) -> Iterator[int]:
    """Train on an epoch's batches from number `start` on; yields the number of batches done, after each."""
    objective.train()
    objective.begin(epoch)
    for step, (images, labels, indices) in enumerate(loader.epoch(epoch, start), start):
        logits, terms = objective(images, labels, indices)
        loss = objective.total(terms)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        meters.update(step, loss, terms, logits, labels)
        yield step + 1


def check_weights(objective: Objective, epoch: int, step: int) -> None:
    """Raise RunStopped if a weight is not finite, which the loss of an epoch's last step does not show."""
    if not torch.stack([parameter.isfinite().all() for parameter in objective.parameters()]).all():
        raise RunStopped(
            f"the weights became non-finite at epoch {epoch}, step {step}; the checkpoint from before is kept; "
            "a lower --lr or a smaller weight may help"
        )


def fit(objective: Objective, loader: TrainLoader, test_set: ImageSet, run: Run, args, deployed: dict) -> list[dict]:
    """Train for args.epochs epochs and return the log, a dict an epoch. Saves after every epoch and when interrupted.

    deployed: what the checkpoints say of the network beside its weights (arch, num_classes, dataset).
    """
    names = list(objective.weights)
    optimizer = make_optimizer(objective, args)
    meters = Meters(names, args.device)
    history, epoch, step, spent = [], 1, 0, 0.0
    if (state := run.start()) is not None:
        objective.load_state_dict(state["objective"])
        optimizer.load_state_dict(state["optimizer"])
        restore_random(state["random"], args.device)
        vars(meters).update(state["meters"])
        history, epoch, step, spent = state["history"], state["epoch"], state["step"], state["seconds"]
        run.write_log(history)
        print(f"{run.name}: {len(history)} of {args.epochs} epochs are done", flush=True)

    def check():
        meters.check(epoch)
        check_weights(objective, epoch, step)

    def save():
        check()
        run.save(
            {
                **deployed,
                "model": objective.student.state_dict(),
                "objective": objective.state_dict(),
                "optimizer": optimizer.state_dict(),
                "random": random_state(args.device),
                "meters": meters.state(),
                "history": history,
                "epoch": epoch,
                "step": step,
                "seconds": spent,
                "accuracy": history[-1]["test_acc"] if history else None,
            }
        )

    # In the middle of an epoch the last one's point is there; at its beginning a kill may have come before the point.
    with StopRequest() as stop, Events(run.folder, len(history) + (step > 0)) as events:

        def show():
            events.scalars(len(history), history[-1])
            if len(history) % FIGURES_EVERY == 0 or len(history) == args.epochs:
                for tag, figure in objective.figures().items():
                    events.figure(len(history), tag, figure)

        if history and step == 0:
            show()
        while epoch <= args.epochs and not stop.requested:
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(args, epoch)
            began = time.perf_counter() - spent
            with tqdm(
                total=len(loader),
                initial=step,
                desc=f"epoch {epoch}/{args.epochs}",
                unit="step",
                leave=False,
                disable=None,
            ) as bar:
                for step in train_steps(objective, loader, optimizer, epoch, meters, start=step):  # noqa: B020
                    bar.update()
                    if step % LOOK_EVERY == 0:
                        meters.check(epoch)
                        bar.set_postfix({name: f"{value:.3f}" for name, value in meters.means().items()})
                    if stop.requested:
                        break
            if step < len(loader):
                spent = time.perf_counter() - began
                break

            check()
            images_per_s = meters.images / (time.perf_counter() - began)
            accuracy, test_loss = evaluate(objective.student, test_set, args.amp)
            means = meters.means()
            loss = objective.total(means)
            history.append(
                {
                    "epoch": epoch,
                    "lr": optimizer.param_groups[0]["lr"],
                    "steps": step,
                    "short_batches": int(meters.images % loader.batch_size > 0),
                    "loss": loss,
                    "train_acc": 100 * meters.correct.item() / meters.images,
                    "test_loss": test_loss,
                    "test_acc": accuracy,
                    **means,
                    **{f"share_{name}": objective.weights[name] * means[name] / (loss or 1.0) for name in names},
                    **objective.diagnose(),
                    "seconds": round(time.perf_counter() - began, 2),
                    "images_per_s": round(images_per_s, 1),
                }
            )
            best = max(row["test_acc"] for row in history)
            if accuracy > max((row["test_acc"] for row in history[:-1]), default=-1):
                checkpoint.save(
                    run.best,
                    {**deployed, "model": objective.student.state_dict(), "epoch": epoch, "accuracy": accuracy},
                )
            epoch, step, spent, meters = epoch + 1, 0, 0.0, Meters(names, args.device)
            save()
            run.write_log(history)
            show()
            print(
                f"{objective.label}epoch {epoch - 1}/{args.epochs}  loss {loss:.4f}  "
                f"train {history[-1]['train_acc']:.2f} %  "
                f"test {accuracy:.2f} % (best {best:.2f} %)  {history[-1]['seconds']:.1f} s",
                flush=True,
            )
        if epoch <= args.epochs:
            save()
            raise Interrupted(f"stopped in epoch {epoch} after {step} steps; continue with --resume")
        accuracies = [row["test_acc"] for row in history]
        options = {name: value for name, value in run.args.items() if name not in NOT_PART_OF_A_RUN}
        events.hparams(len(history), options, {"hparam/last": accuracies[-1], "hparam/best": max(accuracies)})
    return history


def random_state(device: torch.device) -> dict[str, Tensor]:
    state = {"cpu": torch.get_rng_state()}
    if device.type == "cuda":
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def restore_random(state: dict[str, Tensor], device: torch.device) -> None:
    torch.set_rng_state(state["cpu"].cpu())
    if device.type == "cuda" and "cuda" in state:
        torch.cuda.set_rng_state(state["cuda"].cpu(), device)


class Events:
    """TensorBoard's scalars, a point an epoch, figures, and hyperparameters with the final accuracy.

    step: points from this one on that an earlier process has written are discarded, to be written again.
    Not by PyTorch's SummaryWriter: it writes in a thread, where a full disk could not be reported in one clear line.
    """

    def __init__(self, folder: Path, step: int):
        from tensorboard.compat.proto import event_pb2, summary_pb2  # here, because importing them takes time
        from tensorboard.summary.writer.record_writer import RecordWriter

        self.event, self.summary = event_pb2.Event, summary_pb2.Summary
        self.path = folder / f"events.out.tfevents.{time.time():.6f}.{socket.gethostname()}"
        self.writer = RecordWriter(open(self.path, "wb"))
        self._write(file_version="brain.Event:2")
        self._write(step=max(1, step), session_log=event_pb2.SessionLog(status=event_pb2.SessionLog.START))

    def scalars(self, step: int, values: dict) -> None:
        """The numbers among the values, each under its name; 'epoch' is the step itself."""
        numbers = {key: value for key, value in values.items() if key != "epoch" and isinstance(value, int | float)}
        values = [self.summary.Value(tag=key, simple_value=value) for key, value in numbers.items()]
        self._write(step=step, summary=self.summary(value=values))

    def figure(self, step: int, tag: str, figure) -> None:
        """A matplotlib Figure as an image."""
        png = io.BytesIO()
        figure.savefig(png, format="png")
        width, height = figure.canvas.get_width_height()
        image = self.summary.Image(height=height, width=width, colorspace=4, encoded_image_string=png.getvalue())
        self._write(step=step, summary=self.summary(value=[self.summary.Value(tag=tag, image=image)]))

    def hparams(self, step: int, options: dict, metrics: dict[str, float]) -> None:
        """The options of a run that has ended, for the HParams dashboard, and what came of them, as scalars.

        No experiment is declared: TensorBoard then shows the options and scalars of all the runs beside each other.
        """
        from tensorboard.plugins.hparams.summary_v2 import hparams_pb

        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value)
            for name, value in options.items()
            if value is not None
        }
        self._write(step=step, summary=hparams_pb(plain, trial_id=self.path.parent.name))
        self.scalars(step, metrics)

    def _write(self, **fields) -> None:
        try:
            self.writer.write(self.event(wall_time=time.time(), **fields).SerializeToString())
            self.writer.flush()
        except OSError as error:
            raise checkpoint.cannot_write(self.path, error) from None

    def __enter__(self):
        return self

    def __exit__(self, *exception):
        with contextlib.suppress(OSError):
            self.writer.close()
