"""Runs jobs on a cluster of machines that share a folder, by Ray: which job runs where and when, and again elsewhere
when its machine dies, is Ray's. A job that runs again continues from its last checkpoint in the shared folder.

    ray start --head --port=6379          # on one machine;  ray start --address=<it>:6379  on the others
    python reproduce.py --table cifar100_homogeneous --ray auto         # from the shared folder, on any of them

A stop is passed on to every job, so that each saves its state.
"""

import logging
import os
import queue
import signal
import socket
import subprocess
import threading
import time
import uuid
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from graphlib import TopologicalSorter
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import lock
from ..files.atomic import write_bytes
from ..files.paths import ROOT
from .jobs import LAST_LINES, Job, Tally, before
from .local import LOOK_EVERY, POSTPONED, RETRY_AFTER, STOP, Runner, nobody_reads

ANSWER_WITHIN = 5.0  # seconds for an address to answer


@dataclass(frozen=True)
class Outcome:
    """Of one job: its exit code (None where it could not begin, because a job that it needs failed), its last lines,
    and the seconds that it took."""

    status: int | None
    lines: tuple[str, ...] = ()
    seconds: float | None = None


def connect(address: str) -> Any:
    """Ray, connected to a cluster: 'local' (a new one on this machine), 'auto' or 'host:port'.

    Raises:
        UserError: when Ray is not installed, or nobody answers.
    """
    try:
        import ray
    except ImportError:
        raise UserError('--ray: Ray is not installed; pip install "ray[default]"') from None
    host, _, port = address.rpartition(":")
    if address not in ("auto", "local"):
        if not host or not port.isdigit():
            raise UserError(f"--ray: found '{address}', expected auto, local or host:port")
        try:
            socket.create_connection((host, int(port)), ANSWER_WITHIN).close()
        except (OSError, OverflowError) as error:
            raise UserError(f"--ray: nobody answers at {address} ({error}); start it with ray start --head") from None
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    options: dict[str, Any] = {"include_dashboard": False} if address == "local" else {}
    try:
        ray.init(address, runtime_env={"env_vars": {"PYTHONPATH": path}}, logging_level=logging.ERROR, **options)
    except (ConnectionError, RuntimeError, ValueError, TimeoutError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"--ray: no cluster found by '{address}' ({reason}); start one with ray start --head, and run this on one "
            "of its machines"
        ) from None
    return ray


def check_shared(ray: Any, folder: Path) -> None:
    """Refuse machines that do not share the working folder or have not the project: one writes a token, all read it."""
    token = uuid.uuid4().hex
    written, script = folder / f".reproduce-{token}", ROOT / "reproduce.py"

    def look() -> tuple[bool, bool]:
        with suppress(OSError):
            return written.read_text() == token, script.is_file()
        return False, script.is_file()

    write_bytes(written, token.encode())
    asked = {}
    try:
        for node in ray.nodes():
            if node["Alive"]:
                there = ray.util.scheduling_strategies.NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
                # by value, because a machine without the project could not import it
                remote = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(look)
                asked[node["NodeManagerHostname"], node["NodeID"]] = remote.remote()
        for (host, node_id), answer in asked.items():
            shared, installed = ray.get(answer)
            if not (shared and installed):
                missing = folder if not shared else script
                raise UserError(
                    f"--ray: machine {host} (node {node_id[:8]}) does not see {missing} of this one; the working "
                    "folder must be shared by all"
                )
    finally:
        written.unlink(missing_ok=True)


def resources(ray: Any, gpus_per_job: float | None, on_cpu: bool) -> dict[str, float]:
    """What a job asks of a machine: a share of a GPU and as large a share of the cores, or one core without GPUs."""
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    with_gpus = [found for found in nodes if found.get("GPU")]
    if not with_gpus or on_cpu:
        if gpus_per_job is not None:
            raise UserError(f"--gpus_per_job: found {gpus_per_job:g}, but the jobs would run on cores alone")
        return {"num_cpus": 1}
    share = 1.0 if gpus_per_job is None else gpus_per_job
    cores = share * min(found.get("CPU", 0.0) / found["GPU"] for found in with_gpus)
    return {"num_gpus": share, "num_cpus": int(cores) if cores >= 1 else round(cores, 3)}


def slots(ray: Any, needed: dict[str, float]) -> int:
    """How many jobs the cluster runs at once."""
    name, option = ("GPU", "num_gpus") if "num_gpus" in needed else ("CPU", "num_cpus")
    return max(1, int(ray.cluster_resources().get(name, 0) / needed[option]))


def busy(ray: Any, needed: dict[str, float]) -> int:
    """How many jobs run now, by what they hold of the cluster."""
    name, option = ("GPU", "num_gpus") if "num_gpus" in needed else ("CPU", "num_cpus")
    free = ray.available_resources().get(name, 0.0)
    return round((ray.cluster_resources().get(name, 0.0) - free) / needed[option])


# On the machine that runs a job


def run_job(job: Job, folder: str, *needed: Outcome) -> Outcome:
    """Run a job in the shared folder, to its end. needed: what came of those that it needs, and then of those that only
    come before it."""
    if any(outcome.status != 0 for outcome in needed[: len(job.needs)]):
        return Outcome(None)
    os.chdir(folder)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGINT})  # Ray blocks it, and what we start would inherit that
    said = None
    while not job.finished:
        who = job.in_use()
        if who is None:
            outcome = call(job)
            if outcome.status != POSTPONED:
                return outcome
            time.sleep(RETRY_AFTER)
            continue
        if who != said:
            print(f"waiting for {who}", flush=True)
            said = who
        time.sleep(LOOK_EVERY)
    return Outcome(0)


def call(job: Job) -> Outcome:
    """Run a job's script. A KeyboardInterrupt, which is Ray's way to cancel, is passed on, and its end waited for."""
    print(f"{socket.gethostname()}: {job.shell()}", flush=True)
    began, last = time.monotonic(), deque[str](maxlen=LAST_LINES)
    process = subprocess.Popen(
        job.words(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | {lock.STATUS: str(POSTPONED)},
        start_new_session=True,
    )

    def follow() -> None:
        for line in process.stdout or ():
            last.append(line)
            print(f"{job.name}: {line}", end="", flush=True)

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    while process.poll() is None:
        try:
            process.wait(timeout=LOOK_EVERY / 4)  # not for ever: an interrupt comes between two waits
        except subprocess.TimeoutExpired:
            pass
        except KeyboardInterrupt:
            process.send_signal(signal.SIGINT)
    reader.join(timeout=LOOK_EVERY)
    return Outcome(process.returncode, tuple(last), time.monotonic() - began)


# On the machine that asks


class RayRunner(Runner):
    """Hands jobs to a cluster. needed: what each asks of a machine, by `resources`."""

    def __init__(self, ray: Any, needed: dict[str, float]):
        super().__init__(slots(ray, needed))
        self.ray, self.needed = ray, needed

    def submit(self, todo: Sequence[Job]) -> dict[Any, str]:
        """The reference of each job's outcome -> its name."""
        by_name = {job.name: job for job in todo}
        references: dict[str, Any] = {}
        graph = before(todo)
        remote = self.ray.remote(max_retries=-1)(run_job)
        for name in TopologicalSorter(graph).static_order():
            job = by_name[name]
            needs = [references[other] for other in job.needs if other in references]
            others = [references[other] for other in sorted(graph[name] - set(job.needs))]
            needed = self.needed if job.folder is not None else {"num_cpus": self.needed["num_cpus"]}
            only = replace(job, needs=tuple(need for need in job.needs if need in references))
            references[name] = remote.options(name=name, **needed).remote(only, os.getcwd(), *needs, *others)
        return {reference: name for name, reference in references.items()}

    def run(self, jobs: Sequence[Job]) -> None:
        todo = [job for job in jobs if not job.finished]
        tally, stopped = Tally(todo, self.at_once), False
        with self.signals():
            pending = self.submit(todo)
            while pending:
                try:
                    event = self.events.get_nowait()
                    if event == STOP or not stopped:
                        stopped = True
                        for reference in pending:
                            self.ray.cancel(reference)
                except queue.Empty:
                    if not self.reader_is_gone and nobody_reads():
                        self.reader_gone()
                ended, _ = self.ray.wait(list(pending), num_returns=1, timeout=LOOK_EVERY)
                for reference in ended:
                    self.end(tally, pending.pop(reference), self.outcome(reference), stopped)
        if self.reader_is_gone:
            raise BrokenPipeError
        tally.close(stopped)

    def outcome(self, reference: Any) -> Outcome | None:
        """What came of a job; None where it was cancelled before it began."""
        try:
            return self.ray.get(reference)
        except self.ray.exceptions.TaskCancelledError:
            return None
        except self.ray.exceptions.RayError as error:
            return Outcome(1, tuple(str(error).strip().splitlines()[-LAST_LINES:]))

    def end(self, tally: Tally, name: str, outcome: Outcome | None, stopped: bool) -> None:
        """Note what came of a job, and say how far all are."""
        if outcome is None:
            return
        if outcome.status is None:
            tally.omit(name)
            return
        if outcome.status and stopped:
            tally.cut_off(name)
        else:
            tally.end(name, outcome.status, outcome.seconds)
            if outcome.status:
                self.say(tally.failure(name, outcome.lines))
        self.say(tally.line(busy(self.ray, self.needed)))
