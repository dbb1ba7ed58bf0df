"""The commands that make an experiment, in order, and running those that are missing, several at once if asked for.

A job is one call of a script. It is finished when the file that the script writes last is there, and was cut off when
its folder is there without that file: then it goes on with --resume. No two jobs that run at once write to one folder.
"""

import argparse
import os
import queue
import shlex
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path

from . import experiments, runs
from .experiments import Arm, Table, arm_options, names_of, teacher_path
from .options import Interrupted, RunStopped, dims

ROOT = Path(__file__).resolve().parent.parent
SHORT = {"gamma": "-r", "alpha": "-a", "beta": "-b", "delta": "-d"}


@dataclass(frozen=True)
class Job:
    """command: a script and its options. folder: the only one to which it writes, beside its own files in results/.
    done: the file it writes last; None for what is made anew every time. needs: names of the jobs before it."""

    name: str
    command: tuple[str, ...]
    folder: Path | None = None
    done: Path | None = None
    resumable: bool = False
    needs: tuple[str, ...] = ()

    @property
    def finished(self) -> bool:
        return self.done is not None and self.done.is_file()

    def call(self) -> list[str]:
        """The command as it is to be given now."""
        return [*self.command, *["--resume"] * (self.resumable and self.folder.is_dir())]

    def shell(self) -> str:
        """A line for the shell, from the current folder."""
        script, *options = self.call()
        return shlex.join(["python", os.path.relpath(ROOT / script), *options])


def flags(script: str, options: dict) -> list[str]:
    """The options that are not as usual, as a command line has them."""
    found = []
    for name, usual in experiments.usual(script).items():
        if (value := options[name]) != usual:
            text = f"{value:g}" if isinstance(value, float) else str(value)
            text = ",".join(map(str, value)) if isinstance(value, tuple) else text
            found += [SHORT.get(name, f"--{name}"), *[text] * (value is not True)]
    return found


class Planner:
    """Jobs by name, in an order in which they can run. everywhere: options of the user for all four stages
    (data_dir, device) and for the two that train with images (amp)."""

    def __init__(self, everywhere: dict):
        self.everywhere, self.jobs = everywhere, {}

    def add(self, name: str, script: str, options: list[str], **about) -> str:
        """Add a job unless it is there; returns its name."""
        self.jobs.setdefault(name, Job(name, (f"{script}.py", *options), **about))
        return name

    def given(self, script: str) -> list[str]:
        names = ["data_dir", "device"] + ["amp"] * (script in ("train_teacher", "train_student"))
        return [part for name in names if self.everywhere.get(name) for part in (f"--{name}", self.everywhere[name])]

    def stage(self, script: str, first: list[str], options: dict, last: list[str]) -> list[str]:
        options = {name: value for name, value in options.items() if not self.everywhere.get(name)}
        return first + flags(script, experiments.usual(script) | options) + last + self.given(script)

    def teacher(self, table: Table, teacher: str) -> str:
        """Stage 1. A folder with nothing but best.pth is a teacher from elsewhere, and finished."""
        name, folder = experiments.teacher_name(table, teacher), Path(teacher_path(table, teacher)).parent
        row = runs.RESULTS / "runs" / f"{name}.csv"
        brought = (folder / "best.pth").is_file() and not (folder / "last.pth").is_file()
        options = table.options.get("train_teacher", {})
        options = options | {"epochs": table.teacher.epochs, "lr_decay_epochs": table.teacher.decay}
        named = ["--name", name] if experiments.suffix(table, table.teacher) else []
        return self.add(
            name,
            "train_teacher",
            self.stage("train_teacher", ["--model", teacher], options, named),
            folder=folder,
            done=folder / "best.pth" if brought else row,
            resumable=True,
        )

    def clouds(self, table: Table, row: str, arm: Arm, dim: int) -> str:
        """Stage 2 for one homology dimension, after stage 1."""
        script, teacher = "generate_PCD_PI", names_of(row)[0]
        options = arm_options(table, row, arm, script) | {"dim": str(dim)}
        path = teacher_path(table, teacher)
        folder = runs.clouds_folder(argparse.Namespace(path_t=path, **options))
        return self.add(
            str(runs.spec_file(folder, dim)),
            script,
            self.stage(script, ["--path_t", path], options, []),
            folder=folder,
            done=runs.quality_file(folder, dim),
            needs=(self.teacher(table, teacher),),
        )

    def ripsnet(self, table: Table, row: str, arm: Arm, dim: int) -> str:
        """Stage 3 for one homology dimension, after stage 2."""
        script, path = "train_ripsnet", teacher_path(table, names_of(row)[0])
        options = arm_options(table, row, arm, script) | {"dim": str(dim)}
        before = self.clouds(table, row, arm, dim)
        folder = self.jobs[before].folder
        folder = runs.ripsnet_folder(folder, dim, options["operator"], options["ripsnet_clouds"])
        return self.add(
            str(folder),
            script,
            self.stage(script, ["--path_t", path], options, []),
            folder=folder,
            done=folder / "quality.json",
            resumable=True,
            needs=(before,),
        )

    def images(self, table: Table, row: str, arm: Arm) -> tuple[str, ...]:
        """What a student with this arm needs: its teacher, and the clouds and RipsNets of its kind of topology."""
        args = experiments.student_args(table, row, arm)
        needs = (self.teacher(table, names_of(row)[0]),)
        if args.topology in ("ripsnet", "exact"):
            make = self.ripsnet if args.topology == "ripsnet" else self.clouds
            needs += tuple(make(table, row, arm, dim) for dim in dims(args))
        return needs

    def student(self, table: Table, row: str, arm: Arm, trial: int) -> str:
        """Stage 4, after what it needs."""
        script, (teacher, student) = "train_student", names_of(row)
        name = f"{experiments.stem(table, row, arm.name)}_trial{trial}"
        named = ["--name", name] if experiments.suffix(table, table.student) else []
        first = ["--path_t", teacher_path(table, teacher), "--model_s", student]
        return self.add(
            name,
            script,
            self.stage(script, first, arm_options(table, row, arm, script), ["--trial", str(trial), *named]),
            needs=self.images(table, row, arm),
            folder=runs.STUDENTS / name,
            done=runs.RESULTS / "runs" / f"{name}.csv",
            resumable=True,
        )

    def table(self, table: Table, rows: list[str], arms: list[Arm], trials: int | None) -> None:
        """All runs of a table."""
        for row, arm, trial in experiments.in_order(rows, arms, table, trials):
            self.student(table, row, arm, trial)

    def figure(self, figure: str, table: Table, row: str) -> None:
        """A figure of one row, and the runs that it shows."""
        teacher, topkd = names_of(row)[0], table.arm("TopKD")
        dataset = experiments.data_of(table)
        options = ["--path_t", teacher_path(table, teacher)] + ["--dataset", dataset] * (dataset != "cifar100")
        if figure == "pi":
            needs = self.images(table, row, topkd)
            operator = experiments.student_args(table, row, topkd).operator
            options += ["--operator", operator] * (operator != "mean")
        else:
            methods = experiments.FIGURES[figure].methods
            needs = tuple(self.student(table, row, table.arm(method), 1) for method in methods)
            options += ["--path_s", *(str(self.jobs[name].folder / "best.pth") for name in needs)]
            options += ["--labels", teacher, *methods]
        name, folder = f"figure {figure} of {row}", runs.RESULTS / "figures"
        self.add(name, "visualize", [figure, *options, *self.given("visualize")], folder=folder, needs=needs)

    def tables(self) -> None:
        """The tables of all finished runs, at the end."""
        self.add("tables", "make_tables", [], needs=tuple(self.jobs))


class Runner:
    """Starts jobs as processes. A signal to stop is passed on once, so that each run saves its state."""

    def __init__(self, at_once: int):
        self.at_once, self.running, self.ended = at_once, {}, queue.SimpleQueue()
        threads = max(1, (os.cpu_count() or 1) // at_once)
        self.environment = ({} if at_once == 1 else {"OMP_NUM_THREADS": str(threads)}) | os.environ

    def start(self, job: Job) -> None:
        print(f"\n{job.shell()}", flush=True)
        script, *options = job.call()
        several = self.at_once > 1 and job.folder is not None  # the tables come last and alone
        process = subprocess.Popen(
            [sys.executable, str(ROOT / script), *options],
            stdout=subprocess.PIPE if several else None,
            stderr=subprocess.STDOUT if several else None,
            text=True,
            env=self.environment,
            start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which passes it on
        )
        self.running[job.name] = job, process
        threading.Thread(target=self.follow, args=(job.name, process), daemon=True).start()

    def follow(self, name: str, process: subprocess.Popen) -> None:
        """Print a process's lines under its name, and report its end."""
        with process:
            for line in process.stdout or ():
                print(f"{name}: {line}", end="", flush=True)
        self.ended.put((name, process.returncode))

    def ready(self, job: Job, waiting: list[Job]) -> bool:
        unfinished = {other.name for other in waiting} | self.running.keys()
        busy = {other.folder for other, _ in self.running.values()} - {None}
        return not unfinished & set(job.needs) and job.folder not in busy

    def run(self, jobs: list[Job]) -> None:
        """Run the unfinished jobs, the first that is ready first. After a failure or a signal no further one starts.

        Raises:
            RunStopped: when a job failed. Interrupted: after a signal.
        """
        waiting = [job for job in jobs if not job.finished]
        total, failure, stopped = len(waiting), None, False
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
        for number, handler in handlers.items():
            # nohup ignores SIGHUP, and so do we. SIGINT is ignored where a shell script starts us with &, and would be
            # in all that we start; they are stopped by it.
            if handler is not signal.SIG_IGN or number == signal.SIGINT:
                signal.signal(number, lambda *_: self.ended.put((None, None)))
        try:
            while True:
                while not (failure or stopped) and len(self.running) < self.at_once:
                    job = next((job for job in waiting if self.ready(job, waiting)), None)
                    if job is None:
                        break
                    waiting.remove(job)
                    self.start(job)
                if not self.running:
                    break
                name, status = self.ended.get()
                if name is None:
                    stopped = True
                    for _, process in self.running.values():
                        process.send_signal(signal.SIGINT)
                    continue
                job, _ = self.running.pop(name)
                if status:
                    failure = failure or f"{job.shell()} ended with exit code {status}"
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
        again = "what was finished is kept, and the same command goes on from there"
        if stopped:
            raise Interrupted(f"stopped with {len(waiting)} of {total} jobs not yet started; {again}")
        if failure:
            raise RunStopped(f"{failure}, {len(waiting)} of {total} jobs were not started; {again}")
