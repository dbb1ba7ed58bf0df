"""Runs jobs on this machine, several at once if asked for, each with a share of its GPUs or of its cores.

A signal to stop is passed on once, so that each run saves its state. The same happens when nobody reads the output any
more. A run that another process works on, such as one that an earlier call has left behind, is waited for.
"""

import os
import queue
import select
import signal
import subprocess
import threading
import time
from collections import Counter, deque
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from graphlib import TopologicalSorter

import torch

from ..data import usable_cores
from ..errors import UserError
from ..files import lock
from .jobs import LAST_LINES, Job, Tally, before

STOP, NO_READER = "stop", "no reader"  # events
LOOK_EVERY = 1.0  # seconds between looks at folders in use, and at whether somebody reads
RETRY_AFTER = 30.0  # seconds until a job is tried again that met another one
POSTPONED = 75  # what a job ends with that found its folder in use: EX_TEMPFAIL of sysexits.h


class Runner:
    """Starts jobs as processes, at most `at_once`. gpus: those they share, as CUDA_VISIBLE_DEVICES names them; without
    any, they share the cores."""

    def __init__(self, at_once: int, gpus: Sequence[str] = ()):
        self.at_once, self.gpus = at_once, list(gpus)
        self.running: dict[str, subprocess.Popen] = {}
        self.gpus_of: dict[str, list[str]] = {}
        self.events: queue.SimpleQueue = queue.SimpleQueue()  # (name, exit code, last lines), STOP, NO_READER
        self.waiting_for: dict[str, str] = {}
        self.not_before: dict[str, float] = {}  # when a job that met another may be tried again
        self.reader_is_gone = False

    def say(self, text: str) -> None:
        """Print a line; stop if nobody reads it."""
        if self.reader_is_gone:
            return
        try:
            print(f"{text}\n", end="", flush=True)  # at once, as another thread may print too
        except OSError:
            self.reader_gone()

    def reader_gone(self) -> None:
        self.reader_is_gone = True
        self.events.put(NO_READER)

    def environment(self, job: Job) -> dict[str, str]:
        """The GPUs that the fewest jobs use, one for each process, and as many threads as each has cores."""
        environment = os.environ | {lock.STATUS: str(POSTPONED)}
        if self.at_once * job.processes > 1:
            threads = max(1, usable_cores() // (self.at_once * job.processes))
            environment.setdefault("OMP_NUM_THREADS", str(threads))
        if self.gpus:
            used = Counter(gpu for gpus in self.gpus_of.values() for gpu in gpus)
            self.gpus_of[job.name] = sorted(self.gpus, key=lambda gpu: used[gpu])[: job.processes]
            environment["CUDA_VISIBLE_DEVICES"] = ",".join(self.gpus_of[job.name])
        return environment

    def start(self, job: Job) -> None:
        self.say(f"\n{job.shell()}")
        several = self.at_once > 1 and job.folder is not None  # the tables come last and alone
        process = subprocess.Popen(
            job.words(),
            stdout=subprocess.PIPE if several else None,
            stderr=subprocess.STDOUT if several else None,
            text=True,
            errors="replace",
            env=self.environment(job),
            start_new_session=True,  # a terminal's Ctrl-C reaches this process alone, which passes it on
        )
        self.running[job.name] = process
        threading.Thread(target=self.follow, args=(job.name, process), daemon=True).start()

    def follow(self, name: str, process: subprocess.Popen) -> None:
        """Print a process's lines under its name, and report its end."""
        last: deque[str] = deque(maxlen=LAST_LINES)
        with process:
            for line in process.stdout or ():
                last.append(line)
                self.say(f"{name}: {line.rstrip()}")
        self.events.put((name, process.returncode, last))

    def in_use(self, job: Job) -> bool:
        """Whether another process works where the job would; who it is, is said once."""
        who = job.in_use()
        if who is not None and self.waiting_for.get(job.name) != who:
            self.say(f"waiting for {who}")
            self.waiting_for[job.name] = who
        return who is not None

    def waits(self, job: Job) -> bool:
        return time.monotonic() < self.not_before.get(job.name, 0.0) or self.in_use(job)

    def run(self, jobs: Sequence[Job]) -> None:
        """Run the unfinished jobs, the first that is ready first. What needs a job that failed is left out, the rest
        goes on; after a signal no further one starts.

        Raises:
            RunStopped: when a job failed. Interrupted: after a signal. BrokenPipeError: when nobody reads any more.
        """
        todo = [job for job in jobs if not job.finished]
        place = {job.name: index for index, job in enumerate(todo)}
        tally, stopped = Tally(todo, self.at_once), False
        sorter = TopologicalSorter(before(todo))
        sorter.prepare()
        ready: list[Job] = []

        def start_what_can() -> None:
            while len(self.running) < self.at_once:
                ready.extend(tally.jobs[name] for name in sorter.get_ready())
                ready.sort(key=lambda job: place[job.name])
                job = next((job for job in ready if not tally.can_run(job) or not self.waits(job)), None)
                if job is None:
                    return
                ready.remove(job)
                if not tally.can_run(job):
                    tally.omit(job.name)
                    sorter.done(job.name)
                elif job.finished:  # meanwhile, by another process
                    tally.end(job.name)
                    sorter.done(job.name)
                else:
                    tally.start(job.name)
                    self.start(job)

        with self.signals():
            while True:
                if not stopped:
                    start_what_can()
                if not self.running and (stopped or not ready):
                    break
                try:
                    event = self.events.get(timeout=LOOK_EVERY)
                except queue.Empty:
                    if not self.reader_is_gone and nobody_reads():
                        self.reader_gone()
                    continue
                if event == NO_READER and stopped:
                    continue  # as after Ctrl-C, which stops the reader, too: a second signal would be one not to save
                if event in (STOP, NO_READER):
                    stopped = True
                    for process in self.running.values():
                        with suppress(ValueError):  # Windows sends none; a terminal's Ctrl-C reaches it there
                            process.send_signal(signal.SIGINT)
                    continue
                name, status, lines = event
                del self.running[name]
                self.gpus_of.pop(name, None)
                job = tally.jobs[name]
                postponed = status == POSTPONED or (status and job.processes > 1 and job.in_use())  # torchrun says 1
                if postponed and not stopped:
                    tally.cut_off(name)
                    ready.append(job)
                    if not self.in_use(job):  # what it met cannot be seen from here
                        self.not_before[name] = time.monotonic() + RETRY_AFTER
                    continue
                if status and stopped:
                    tally.cut_off(name)
                else:
                    tally.end(name, status)
                    sorter.done(name)
                    if status:
                        self.say(tally.failure(name, lines))
                self.say(tally.line())
        if self.reader_is_gone:
            raise BrokenPipeError
        tally.close(stopped)

    @contextmanager
    def signals(self) -> Iterator[None]:
        """SIGINT, SIGTERM and SIGHUP are events."""
        numbers = [signal.SIGINT, signal.SIGTERM]
        if hasattr(signal, "SIGHUP"):  # Windows has none
            numbers.append(signal.SIGHUP)
        handlers = {number: signal.getsignal(number) for number in numbers}
        for number, handler in handlers.items():
            # nohup ignores SIGHUP, and so do we. SIGINT is ignored where a shell script starts us with &, and would be
            # in all that we start; they are stopped by it.
            if handler is not signal.SIG_IGN or number == signal.SIGINT:
                signal.signal(number, lambda *_: self.events.put(STOP))
        try:
            yield
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)


def visible_gpus(asked: Sequence[int] | None, device: torch.device | None) -> list[str]:
    """The GPUs to use, each as CUDA_VISIBLE_DEVICES names it for a job that sees it alone; empty on the CPU.

    asked: their numbers as PyTorch counts them here; None: all, or the one that the device names.
    """
    if device is not None and device.type == "cpu":
        if asked is not None:
            raise UserError("--gpus: has no effect with --device cpu; leave one of them out")
        return []
    if device is not None and device.index is not None:
        if asked is not None:
            raise UserError(f"--gpus: found together with --device {device}; leave one of them out")
        asked = [device.index]
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    given = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    named = [name.strip() for name in given.split(",")] if given else [str(index) for index in range(count)]
    if count and all(is_mig(name) for name in named):
        count = len(named)  # CUDA shows a process one instance of a divided GPU alone, though each serves a job
    if asked is None:
        return named[:count]
    text = ",".join(map(str, asked))
    if len(set(asked)) < len(asked):
        raise UserError(f"--gpus: found {text}, in which a GPU is duplicated")
    unknown = [index for index in asked if index >= count]
    if unknown:
        what = "this PyTorch sees no GPU" if count == 0 else f"this machine has {count}, numbered from 0"
        raise UserError(f"--gpus: found {text}, but {what}")
    return [named[index] for index in asked]


def is_mig(name: str) -> bool:
    """Whether CUDA_VISIBLE_DEVICES names an instance of a divided GPU (MIG)."""
    return name.startswith("MIG-")


def nobody_reads() -> bool:
    """Whether standard output is a pipe whose reader has gone."""
    if not hasattr(select, "poll"):  # Windows has none; there the next line that is printed shows it
        return False
    look = select.poll()
    look.register(1, 0)
    return any(event & select.POLLERR for _, event in look.poll(0))
