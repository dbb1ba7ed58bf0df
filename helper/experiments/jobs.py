"""Jobs: calls of the scripts, what each needs before it, and how far all of them are.

A job is finished when the file that its script writes last is there, and was cut off when its folder is there without
that file: then it goes on with --resume.
"""

import os
import shlex
import statistics
import sys
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import Interrupted, RunStopped
from ..files import lock
from ..files.paths import ROOT

LAST_LINES = 12  # of a job that failed
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc_per_node")


@dataclass(frozen=True)
class Work:
    """What a job computes, as far as its duration depends on it. what: the method, the homology dimension or RipsNet's
    pooling. variant: where a method departs from its own settings, as in the row. epochs: of training or fitting at
    most, or passes over the training set."""

    script: str
    dataset: str = ""
    teacher: str = ""
    student: str = ""
    what: str = ""
    epochs: int = 0
    batch_size: int = 1
    variant: str = ""


@dataclass(frozen=True)
class Job:
    """command: a script and its options. folder: the only one to which it writes, beside its own files in results/.
    done: the file it writes last; None for what is made again whatever is there. needs: names of the jobs without which
    it cannot run; after: of those that must have ended, well or not. processes: by which it is run; several are started
    by torchrun. clouds: the folder of the set whose clouds it makes or reads."""

    name: str
    command: tuple[str, ...]
    folder: Path | None = None
    done: Path | None = None
    resumable: bool = False
    needs: tuple[str, ...] = ()
    after: tuple[str, ...] = ()
    work: Work = Work("")
    processes: int = 1
    clouds: Path | None = None

    @property
    def finished(self) -> bool:
        return self.done is not None and self.done.is_file()

    def in_use(self) -> str | None:
        """'process 7 on host a in <folder>' while another process works in its folder, or in that of its clouds."""
        for folder in (self.folder, self.clouds):
            if folder is not None and (who := lock.in_use(folder)) is not None:
                return f"{who} in {folder}"
        return None

    def call(self) -> list[str]:
        """The command as it is to be given now."""
        if self.resumable and self.folder is not None and self.folder.is_dir():
            return [*self.command, "--resume"]
        return list(self.command)

    def words(self, python: str = sys.executable) -> list[str]:
        """The words of the call, with the script's whole path."""
        script, *options = self.call()
        by = [*TORCHRUN, str(self.processes)] if self.processes > 1 else []
        return [python, *by, str(ROOT / script), *options]

    def shell(self) -> str:
        """A line for the shell, from the current folder."""
        script = self.command[0]
        words = self.words("python")
        words[words.index(str(ROOT / script))] = os.path.relpath(ROOT / script)
        return shlex.join(words)


def before(jobs: Iterable[Job]) -> dict[str, set[str]]:
    """Each job's name -> the names of those that must have ended before it, as graphlib's TopologicalSorter takes it.
    Two jobs that write to one folder are among these, so that they never run at once."""
    known = {job.name: job for job in jobs}
    graph: dict[str, set[str]] = {}
    last_in: dict[Path, str] = {}
    for job in known.values():
        graph[job.name] = {name for name in (*job.needs, *job.after) if name in known}
        if job.folder is not None:
            if job.folder in last_in:
                graph[job.name].add(last_in[job.folder])
            last_in[job.folder] = job.name
    return graph


class Tally:
    """How far the jobs are: what is done, what failed, and how long the rest takes by those that have ended.

    slots: how many can run at once.
    """

    def __init__(self, jobs: Sequence[Job], slots: int):
        self.jobs, self.slots = {job.name: job for job in jobs}, slots
        self.done, self.omitted = set[str](), set[str]()
        self.failed: dict[str, str] = {}
        self.since: dict[str, float] = {}  # when the running ones began
        self.seconds: dict[str, float] = {}  # of those that ended well

    @property
    def left(self) -> list[Job]:
        """Those that have not ended, the running ones included."""
        ended = self.done | self.omitted | self.failed.keys()
        return [job for job in self.jobs.values() if job.name not in ended]

    def can_run(self, job: Job) -> bool:
        """Whether nothing that it needs has failed."""
        return not any(name in self.failed or name in self.omitted for name in job.needs)

    def start(self, name: str) -> None:
        self.since[name] = time.monotonic()

    def omit(self, name: str) -> None:
        self.omitted.add(name)

    def end(self, name: str, status: int = 0, seconds: float | None = None) -> None:
        """A job has ended, with an exit code. seconds: its own measure of its duration."""
        began = self.since.pop(name, None)
        if status:
            self.failed[name] = f"{self.jobs[name].shell()} ended with exit code {status}"
            return
        self.done.add(name)
        if seconds is None and began is not None:
            seconds = time.monotonic() - began
        if seconds is not None:
            self.seconds[name] = seconds

    def cut_off(self, name: str) -> None:
        """A job was stopped: it is to come again."""
        self.since.pop(name, None)

    def means(self) -> dict[Work | str, float]:
        """Mean seconds of the jobs that ended well, by their work and by their script."""
        groups: dict[Work | str, list[float]] = {}
        for name, seconds in self.seconds.items():
            work = self.jobs[name].work
            groups.setdefault(work, []).append(seconds)
            groups.setdefault(work.script, []).append(seconds)
        return {key: statistics.fmean(values) for key, values in groups.items()}

    def time_left(self) -> str:
        """', about 2:05:12 to the end', by jobs of the same work or else of the same script; 'at least' where some are
        the first of their script, '' where all are."""
        now, total, unknown, means = time.monotonic(), 0.0, False, self.means()
        for job in self.left:
            seconds = means.get(job.work, means.get(job.work.script))
            if seconds is None:
                unknown = True
            else:
                total += max(0.0, seconds - (now - self.since.get(job.name, now)))
        if not total:
            return ""
        left = round(total / self.slots)
        clock = f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d}"
        return f", {'at least' if unknown else 'about'} {clock} to the end"

    def line(self, running: int | None = None) -> str:
        """One line for all. running: how many are, where that is known from elsewhere."""
        running = len(self.since) if running is None else running
        waiting = max(0, len(self.left) - running)
        return (
            f"[{len(self.done)} of {len(self.jobs)} done, {running} running, {len(self.failed)} failed, {waiting} to "
            f"come{self.time_left()}]"
        )

    def failure(self, name: str, lines: Iterable[str]) -> str:
        """What to say of a job that failed, with its last lines where they have not been shown."""
        shown = "".join(f"\n    {line.rstrip()}" for line in lines)
        return f"{name}: {self.failed[name]}" + (f"; its last lines:{shown}" if shown else "")

    def close(self, stopped: bool) -> None:
        """Raise what came of it, where not all is done.

        Raises:
            Interrupted: after a stop. RunStopped: when a job failed.
        """
        again = "what was finished is kept, and the same command goes on from there"
        if stopped:
            raise Interrupted(f"stopped with {len(self.left)} of {len(self.jobs)} jobs not yet finished; {again}")
        if self.failed:
            names = ", ".join(list(self.failed)[:3]) + (", ..." if len(self.failed) > 3 else "")
            raise RunStopped(
                f"{len(self.failed)} of {len(self.jobs)} jobs failed ({names}), {len(self.omitted)} that need them "
                f"were not started; {again}"
            )
