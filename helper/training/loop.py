"""The training loop of both trainers: exact, resumable, and fast, since the host waits for the device every LOOK_EVERY
steps alone. Several processes share every batch; what is said here of a process holds for each of them.

What is trained is an `Objective`; the loop knows nothing of teachers or topology. Every epoch's batches follow from
(seed, epoch) alone, so a checkpoint needs no loader state: a run that was killed continues from its last checkpoint and
ends with the weights and the log of one of the same schedule that never stopped, bit for bit.
"""

import itertools
import math
import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.utils import get_total_norm

from dataset import LabelledImages, TrainLoader, batches_in_order, usual_test_batch

from .. import distributed
from ..data import image_files
from ..errors import Interrupted, RunStopped, UserError
from ..files import checkpoint
from ..files.run import Run
from ..settings import ResolvedTraining
from .events import Events
from .graphs import capture_on
from .interrupts import StopRequest
from .meters import Meters
from .objective import Objective, autocast, warn_of_emulation
from .progress import Bar, Progress
from .seeding import random_state, restore_random, seed_process
from .steps import ReplayedSteps, train_steps, why_eager
from .turns import Steps, Turn, alone

LOOK_EVERY = 50  # steps between looks at the device, for the progress bar and the non-finite check
ASK_WITHIN = 5.0  # seconds in which several processes ask each other for a stop; torchrun kills after 30
FIGURES_EVERY = 10  # epochs between the objective's figures in TensorBoard; the last epoch has them too
FIGURE_SETS = 4  # on a GPU, at most so many in a run: an epoch may be as short there as the drawing of its figures
SAVE_APART = 20.0  # seconds between checkpoints at the ends of epochs, which may be much shorter
SAVE_WITHIN = 900.0  # and between those within an epoch, which are written at a look
# What a checkpoint of the loop holds.
FIELDS: checkpoint.Fields = {
    "model": dict,
    "objective": dict,
    "optimizer": dict,
    "random": (dict, list),  # lists with an item for each of several processes
    "meters": (dict, list),
    "history": list,
    "step": int,
    "seconds": (int, float),
}


@torch.no_grad()
def evaluate(
    model: nn.Module, images: LabelledImages, amp: str = "off", batch_size: int | None = None
) -> tuple[float, float]:
    """(top-1 accuracy in percent, mean cross entropy) over a test set, in large batches, every image once.

    Several processes take turns at the batches, whose sums are added in their order: the numbers are those of one.
    """
    was_training = model.training
    model.eval()
    sums = []
    at_once = min(distributed.all_states(batch_size or usual_test_batch(images)))  # of unlike GPUs
    for batch, labels in batches_in_order(images, at_once, distributed.rank(), distributed.world()):
        with autocast(batch.device, amp):
            logits = model(batch)
        loss = F.cross_entropy(logits.float(), labels, reduction="sum")
        sums.append(torch.stack([(logits.argmax(1) == labels).sum().double(), loss.double()]))
    model.train(was_training)
    own = torch.stack(sums).tolist() if sums else []
    correct = total = 0.0
    for turn in itertools.zip_longest(*distributed.all_states(own)):
        for right, loss_sum in (each for each in turn if each is not None):
            correct += right
            total += loss_sum
    return 100 * correct / len(images), total / len(images)


def steps_within(seconds: float, done: int, spent: float) -> int:
    """The steps that take so many seconds, LOOK_EVERY at most and 1 at least. done, spent: steps, and their seconds."""
    return max(1, min(LOOK_EVERY, int(seconds * done / spent)))


def make_optimizer(objective: Objective, training: ResolvedTraining) -> torch.optim.Optimizer:
    trained = [parameter for parameter in objective.parameters() if parameter.requires_grad]
    return torch.optim.SGD(trained, training.lr, training.momentum, weight_decay=training.weight_decay, fused=True)


class Trainer:
    """One run of the loop: what is trained, how far it is, and the run folder that keeps both.

    deployed: what the checkpoints say of the network beside its weights (arch, num_classes, dataset).
    """

    def __init__(
        self,
        objective: Objective,
        loader: TrainLoader,
        test_set: LabelledImages,
        run: Run,
        training: ResolvedTraining,
        deployed: dict[str, Any],
    ):
        self.objective, self.loader, self.test_set = objective, loader, test_set
        self.run, self.training, self.deployed = run, training, deployed
        self.forward: nn.Module = objective
        self.optimizer = make_optimizer(objective, training)
        self.meters = Meters(list(objective.weights), run.device)
        self.progress = Progress()
        self.saved_at = time.perf_counter()
        self.replayed: ReplayedSteps | None = None

    @property
    def history(self) -> list[dict[str, Any]]:
        return self.progress.history

    def share(self) -> None:
        """Have several processes share gradients. To be called on the stream of the steps."""
        self.forward = distributed.parallel(self.objective)

    def prepare_replay(self) -> None:
        """Have steps replayed as CUDA graphs, unless something speaks against it. To be called when the run has been
        resumed: a graph keeps to the tensors that it was captured with."""
        capture = capture_on(self.run.device)
        if capture is None or self.training.eager:
            return
        if why := why_eager(self.objective, self.loader):
            print(f"{self.run.name}: its steps are not replayed as CUDA graphs: {why}", flush=True)
            return
        self.replayed = ReplayedSteps(self.objective, self.loader, self.optimizer, self.meters, capture)

    def resume(self) -> None:
        """Lock the run's folder, and continue from its checkpoint if there is one."""
        state = self.run.start(FIELDS)
        if state is None:
            if distributed.rank() > 0:  # others than those of process 0, which are those of a run of one process
                seed_process(self.loader.seed, 1, 0, distributed.rank())
            return
        self.check_schedule(state)
        try:
            self.objective.load_state_dict(state["objective"])
            self.optimizer.load_state_dict(state["optimizer"])
            self.progress.load_state_dict(state)
            images = self.resume_process(state["random"], state["meters"])
            step, steps = self.progress.step, len(self.loader)
            if step > steps or (step > 0) != (images > 0):
                raise ValueError(f"step {step} of {steps} after {images} images")
            math.fsum(row["test_acc"] for row in self.history)  # numbers, which the next epoch's is compared with
        except checkpoint.MISFITS as error:
            raise checkpoint.misfit(self.run.folder, error) from None
        self.run.check_best(len(self.history))
        if self.progress.epoch > self.training.epochs:
            self.run.ended_before()
        self.run.write_log(self.history)
        print(f"{self.run.name}: {len(self.history)} of {self.training.epochs} epochs are done", flush=True)

    def resume_process(self, random: Any, meters: Any) -> int:
        """Restore what each process has of its own; returns the images that all have seen in the epoch at hand."""
        states = meters if isinstance(meters, list) else [meters]
        randoms = random if isinstance(random, list) else [random]
        if len(states) != len(randoms):
            raise ValueError(f"it has the meters of {len(states)} processes, and the random states of {len(randoms)}")
        rank, world, progress = distributed.rank(), distributed.world(), self.progress
        total = Meters(self.meters.names, self.run.device)
        for state in states:
            self.meters.load_state_dict(state)
            total.add(state)
        if len(states) == world:
            restore_random(randoms[rank], self.run.device)
            self.meters.load_state_dict(states[rank])
        else:
            print(
                f"{self.run.name}: was saved by {len(states)} processes and goes on with {world}, so it does not end "
                "bit for bit as it would have",
                flush=True,
            )
            seed_process(self.loader.seed, progress.epoch, progress.step, rank)
            self.meters = total if rank == 0 else Meters(total.names, self.run.device)
        return total.images

    def check_schedule(self, state: dict[str, Any]) -> None:
        """Refuse to continue to other epochs than the run had, unless those done had the rates that they have now."""
        done = len(state["history"])
        if done > self.training.epochs:
            raise UserError(
                f"--epochs: found {self.training.epochs}, but {done} epochs of {self.run.folder} are done; give at "
                "least these, or another --name"
            )
        length = state["args"].get("epochs", self.training.epochs)
        if self.objective.follows_length and length != self.training.epochs:
            raise UserError(
                f"--epochs: found {self.training.epochs}, but {self.run.folder} was begun as a run of {length}, and "
                "the weights of this method follow the share of a run that is done; give the old number, or another "
                "--name"
            )
        old = state["args"].get("lr_decay_epochs", self.training.lr_decay_epochs)
        begun = done + (state["step"] > 0)
        passed, now = ([epoch for epoch in epochs if epoch < begun] for epochs in (old, self.training.lr_decay_epochs))
        if passed != now:
            raise UserError(
                f"--lr_decay_epochs: {done} epochs of {self.run.folder} are done with a decay after {passed or 'none'}"
                f", now it would be after {now or 'none'}; a run continues only under the rates that it has had: give "
                "the old ones, or another --name"
            )

    def train_one_epoch(self, stop: StopRequest) -> Steps[bool]:
        """Train to the end of the epoch at hand, and yield after each step; False if a stop came before the end."""
        progress, training, steps = self.progress, self.training, len(self.loader)
        for group in self.optimizer.param_groups:
            group["lr"] = training.rate(progress.epoch)
        start, first = time.perf_counter(), progress.step
        began, ask_at = start - progress.seconds, first + 1
        with Bar(
            f"{self.objective.label}epoch {progress.epoch}/{training.epochs}",
            steps,
            "step",
            initial=progress.step,
            beyond=(training.epochs - progress.epoch) * steps,
            per_unit=training.batch_size,
            thing="images",
        ) as bar:
            batches = train_steps(
                self.objective,
                self.loader,
                self.optimizer,
                progress.epoch,
                self.meters,
                progress.step,
                self.forward,
                self.replayed,
            )
            for done in batches:
                progress.step = done
                bar.update()
                look = done % LOOK_EVERY == 0
                if look:
                    distributed.together(self.meters.check, progress.epoch, self.kept())
                    bar.show(**{name: f"{value:.3f}" for name, value in self.meters.means().items()})
                    progress.seconds = time.perf_counter() - began
                    self.save_after(SAVE_WITHIN)
                # Several processes must stop after the same step, and to ask each other takes time.
                if distributed.world() == 1 and stop.requested:
                    break
                if distributed.world() > 1 and done >= ask_at:
                    if distributed.agree(stop.requested):
                        break
                    spent = time.perf_counter() - start
                    ask_at = done + distributed.on_first(steps_within, ASK_WITHIN, done - first, spent)
                yield
        if progress.step == steps:
            self.check()  # waits for the device, so that the seconds are those of the steps
        progress.seconds = time.perf_counter() - began
        return progress.step == steps

    def end_epoch(self) -> None:
        """Evaluate, add the epoch to the log, and save: the best weights at once, the run if that is due. A run that is
        killed before goes on from the checkpoint before, to the same epochs."""
        progress, objective, meters = self.progress, self.objective, self.meters.over_processes()
        began = time.perf_counter()
        distributed.share_buffers(objective)
        accuracy, test_loss = evaluate(objective.student, self.test_set, objective.amp)
        means = meters.means()
        loss = objective.total(means)
        best_before = max((row["test_acc"] for row in self.history), default=-1.0)
        row = {
            "epoch": progress.epoch,
            "lr": self.optimizer.param_groups[0]["lr"],
            "steps": progress.step,
            "short_batches": int(meters.images % self.loader.batch_size > 0),
            "loss": loss,
            "train_acc": meters.accuracy,
            "test_loss": test_loss,
            "test_acc": accuracy,
            **means,
            **{f"share_{name}": objective.weights[name] * mean / (loss or 1.0) for name, mean in means.items()},
            **distributed.on_first(objective.diagnose),
            "seconds": round(progress.seconds + time.perf_counter() - began, 2),
            "images_per_s": round(meters.images / progress.seconds, 1),
        }
        self.history.append(row)
        if accuracy > best_before:
            weights = {"model": objective.student.state_dict(), "epoch": progress.epoch, "accuracy": accuracy}
            self.run.save_best({**self.deployed, **weights})
        progress.next_epoch()
        self.meters.reset()
        self.save_after(SAVE_APART if progress.epoch <= self.training.epochs else 0.0)

    def report(self) -> None:
        """Print the last line of the log."""
        row, best = self.history[-1], max(row["test_acc"] for row in self.history)
        print(
            f"{self.objective.label}epoch {row['epoch']}/{self.training.epochs}  loss {row['loss']:.4f}  "
            f"train {row['train_acc']:.2f} %  test {row['test_acc']:.2f} % (best {best:.2f} %)  {row['seconds']:.1f} s",
            flush=True,
        )

    def show(self, events: Events) -> None:
        """The last line of the log in TensorBoard, with figures now and then."""
        distributed.on_first(self._show, events)

    def _show(self, events: Events) -> None:
        done = len(self.history)
        events.scalars(done, self.history[-1])
        every = FIGURES_EVERY
        if self.run.device.type == "cuda":
            every = max(every, self.training.epochs // FIGURE_SETS)
        if done % every == 0 or done == self.training.epochs:
            for tag, figure in self.objective.figures().items():
                events.figure(done, tag, figure)

    def check(self) -> None:
        """Raise RunStopped if the loss of a step, or a weight now, is not finite: the loss of an epoch's last step
        does not show what its update did."""
        distributed.together(self._check)

    def _check(self) -> None:
        self.meters.check(self.progress.epoch, self.kept())
        weights = [*self.objective.parameters(), *self.objective.student.buffers()]
        # The largest absolute value of all; of the parts it cannot overflow, as a sum of squares may.
        largest = get_total_norm([weight for weight in weights if weight.is_floating_point()], math.inf)
        if not largest.isfinite():
            raise RunStopped(
                f"the weights became non-finite at epoch {self.progress.epoch}, step {self.progress.step}; "
                f"{self.kept()}; a lower --lr or a smaller weight may help"
            )

    def kept(self) -> str:
        """What a run that stops now leaves, in words."""
        if (self.run.folder / "last.pth").exists():
            return "the checkpoint from before is kept"
        return "no checkpoint had been written yet"

    def save_after(self, seconds: float) -> None:
        """Save if the last checkpoint is older, by the clock of the first process."""
        if distributed.agree(distributed.rank() == 0 and time.perf_counter() - self.saved_at >= seconds):
            self.save()

    def save(self) -> None:
        """Write the checkpoint, and the log of the epochs that it holds."""
        self.check()
        random, meters = distributed.all_states(random_state(self.run.device)), self.meters.states()
        one = distributed.world() == 1
        self.run.save(
            {
                **self.deployed,
                "model": self.objective.student.state_dict(),
                "objective": self.objective.state_dict(),
                "optimizer": self.optimizer.state_dict(),
                "random": random[0] if one else random,
                "meters": meters[0] if one else meters,
                **self.progress.state_dict(),
                "accuracy": self.history[-1]["test_acc"] if self.history else None,
            }
        )
        self.run.write_log(self.history)
        self.saved_at = time.perf_counter()


def training_run(trainer: Trainer, stop: StopRequest) -> Steps[list[dict[str, Any]]]:
    """Train for training.epochs epochs, yielding after each step, and return the log, a dict an epoch. Saves at the end
    of an epoch, though not more often than every SAVE_APART seconds, at the end, and when stopped.

    Raises:
        RunStopped: when a loss or a weight becomes non-finite, or the disk is full. Interrupted: after a signal.
    """
    run, training = trainer.run, trainer.training
    trainer.share()
    trainer.resume()
    trainer.prepare_replay()
    if training.amp == "bf16":
        warn_of_emulation(run.device)
    progress = trainer.progress
    # In the middle of an epoch the last one's point is there; at its beginning a kill may have come before the point.
    first_point = len(progress.history) + (progress.step > 0)
    with image_files(), Events(run.folder, first_point) as events:
        if progress.history and progress.step == 0:
            trainer.show(events)
        while progress.epoch <= training.epochs and not distributed.agree(stop.requested):
            if not (yield from trainer.train_one_epoch(stop)):
                break
            trainer.end_epoch()
            trainer.show(events)
            trainer.report()
        if progress.epoch <= training.epochs:
            trainer.save()
            raise Interrupted(f"stopped in epoch {progress.epoch} after {progress.step} steps; continue with --resume")
        accuracies = [row["test_acc"] for row in progress.history]
        ends = {"hparam/last": accuracies[-1], "hparam/best": max(accuracies)}
        distributed.on_first(events.hparams, len(progress.history), run.part_of_it, ends)
    return progress.history


def fit(trainer: Trainer) -> list[dict[str, Any]]:
    """A `training_run` alone, from its beginning to its end."""
    with StopRequest() as stop:
        return alone(Turn(trainer.run.name, training_run(trainer, stop), trainer.run.device))
