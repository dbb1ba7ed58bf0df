"""Running jobs on this machine: order, several at once, shares of GPUs and cores, failures, signals, what an earlier
call has left behind, and the time that is left."""

import itertools
import os
import shlex
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from support.processes import wait_until

import reproduce
from helper.errors import Interrupted, RunStopped, UserError
from helper.experiments import jobs, local
from helper.experiments.catalogue import TABLES, Arm, Table, plain
from helper.experiments.jobs import Job, Tally, Work, before
from helper.experiments.local import Runner, visible_gpus
from helper.experiments.plan import Planner
from helper.files import lock
from helper.settings import CloudMaking, Clouds, Fit, Training

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(local, "LOOK_EVERY", 0.05)


def call(*options):
    reproduce.main(reproduce.get_args_parser().parse_args([str(option) for option in options]))


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch()


def script(name, text):
    path = Path(name).resolve()
    path.write_text(text)
    return str(path)


def waiting(condition):
    """Lines of a script that imports time: it waits for a condition, and fails after two minutes."""
    return (
        f"end = time.monotonic() + 120\nwhile not ({condition}):\n"
        "    assert time.monotonic() < end, 'waited in vain'\n    time.sleep(0.01)\n"
    )


# Order


class FakeRunner(Runner):
    """Jobs that end at once, in the order in which they were started, and leave their last file."""

    def __init__(self, at_once, failing=()):
        super().__init__(at_once)
        self.started, self.together, self.failing = [], [], failing

    def start(self, job):
        self.started.append(shlex.join(job.call()))
        self.running[job.name] = SimpleNamespace(send_signal=lambda _: None)
        self.together.append(set(self.running))
        status = int(job.name in self.failing)
        if job.done and not status:
            touch(job.done)
        self.events.put((job.name, status, ["the last line"]))


def chain(*names, folder=None):
    """Jobs of which each needs the one before."""
    return [
        Job(name, (f"{name}.py",), folder and Path(folder), Path(f"{name}.done"), needs=names[max(0, i - 1) : i])
        for i, name in enumerate(names)
    ]


def test_one_after_another_is_the_order_of_the_list():
    found = [*chain("a", "b"), *chain("c")]
    runner = FakeRunner(1)
    runner.run(found)
    assert runner.started == ["a.py", "b.py", "c.py"] and all(job.finished for job in found)
    again = FakeRunner(1)
    again.run(found)
    assert again.started == []


def test_several_at_once_wait_for_what_they_need_and_for_the_folder():
    found = [*chain("a", "b"), *chain("c", folder="x"), *chain("d", folder="x"), *chain("e"), Job("last", ("l.py",))]
    runner = FakeRunner(3)
    runner.run(found)
    assert runner.started == ["a.py", "c.py", "e.py", "b.py", "d.py", "l.py"]
    assert not any({"a", "b"} <= together or {"c", "d"} <= together for together in runner.together)
    assert max(map(len, runner.together)) == 3


def test_what_does_not_need_a_failed_job_goes_on(capsys):
    runner = FakeRunner(2, failing=["a"])
    found = [*chain("a", "b", "b2"), *chain("c"), *chain("d"), Job("end", ("end.py",), after=("a", "b", "c"))]
    with pytest.raises(
        RunStopped, match=r"1 of 6 jobs failed \(a\), 2 that need them were not started; .*same command"
    ):
        runner.run(found)
    assert runner.started == ["a.py", "c.py", "d.py", "end.py"]
    printed = capsys.readouterr().out
    assert printed.count("ended with exit code 1") == 1
    assert "a.py ended with exit code 1; its last lines:\n    the last line\n" in printed
    assert printed.splitlines()[-1].startswith("[3 of 6 done, 0 running, 1 failed, 0 to come")


def test_no_two_jobs_of_a_table_at_once_write_to_one_folder():
    """Both homology dimensions of stage 2 share clouds."""
    table = TABLES["ablation_dimension"]
    planner = Planner()
    planner.table(table, list(table.rows), list(table.arms), 1)
    found = list(planner.jobs.values())
    runner = FakeRunner(16)
    runner.run(found)
    folders = {job.name: job.folder for job in found}
    for together in runner.together:
        assert len({folders[name] for name in together}) == len(together)
    assert len(runner.started) == len(found) and max(map(len, runner.together)) > 2


def stage_3():
    """The job of a RipsNet."""
    planner, table = Planner(), TABLES["ablation_loss"]
    return planner.jobs[planner.ripsnet(table, table.rows[0], table.arm("TopKD"), 0)]


def test_a_ripsnet_whose_clouds_are_in_use_lets_others_go_first(monkeypatch, capsys):
    """It would lock their folder too."""
    job, (other,) = stage_3(), chain("b")
    in_use = {job.folder.parent: "process 7"}
    monkeypatch.setattr(lock, "in_use", lambda folder: None if other.finished else in_use.get(folder))
    runner = FakeRunner(1)
    runner.run([job, other])
    assert runner.started == ["b.py", shlex.join(job.command)]
    assert capsys.readouterr().out.splitlines().count(f"waiting for process 7 in {job.folder.parent}") == 1


def test_what_comes_before_a_job():
    found = [*chain("a", "b", folder="x"), Job("c", ("c.py",), Path("y")), Job("d", ("d.py",), Path("x"), after=("c",))]
    assert before(found) == {"a": set(), "b": {"a"}, "c": set(), "d": {"b", "c"}}
    assert before(found[1:]) == {"b": set(), "c": set(), "d": {"b", "c"}}  # a is finished


def test_the_time_left_by_hand(monkeypatch):
    now = 1000.0
    monkeypatch.setattr(jobs.time, "monotonic", lambda: now)
    resnet, vgg = Work("train_student", student="resnet8"), Work("train_student", student="vgg8")
    kinds = {"a": resnet, "b": resnet, "c": vgg, "d": resnet, "e": Work("train_teacher")}
    tally = Tally([Job(name, (f"{name}.py",), work=work) for name, work in kinds.items()], slots=2)
    assert tally.line() == "[0 of 5 done, 0 running, 0 failed, 5 to come]"
    tally.start("a")
    tally.start("b")
    now = 1100.0
    tally.end("a")
    now = 1300.0
    tally.end("b")
    tally.start("d")
    now = 1350.0  # d needs 200 s as a and b on average, of which 50 are over; c too, as the same script; e is unknown
    assert tally.line() == "[2 of 5 done, 1 running, 0 failed, 2 to come, at least 0:02:55 to the end]"
    tally.end("e", 1)
    assert tally.line() == "[2 of 5 done, 1 running, 1 failed, 1 to come, about 0:02:55 to the end]"


def test_lines_of_jobs_that_print_at_once_are_not_run_together(capfd):
    runner = Runner(2)
    threads = [threading.Thread(target=lambda: [runner.say("a line") for _ in range(5000)]) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert capfd.readouterr().out == 10_000 * "a line\n"


# GPUs and cores


@pytest.mark.parametrize("at_once, processes, threads", [(1, 1, None), (2, 1, "4"), (2, 2, "2"), (16, 1, "1")])
def test_jobs_at_once_share_the_cores_that_this_process_may_use(at_once, processes, threads, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    monkeypatch.setattr(local, "usable_cores", lambda: 8)
    environment = Runner(at_once).environment(Job("a", ("x",), processes=processes))
    assert environment.get("OMP_NUM_THREADS") == threads


def test_lines_of_jobs_at_once_carry_their_names_and_the_cores_are_shared(capfd, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    path = script("say.py", "import os, sys\nprint(sys.argv[1], os.environ.get('OMP_NUM_THREADS'))\n")
    Runner(2).run([Job("one", (path, "A"), Path("a")), Job("two", (path, "B"), Path("b")), Job("tables", (path, "C"))])
    threads = max(1, len(os.sched_getaffinity(0)) // 2)
    lines = capfd.readouterr().out.splitlines()
    assert f"one: A {threads}" in lines and f"two: B {threads}" in lines and f"C {threads}" in lines
    Runner(1).run([Job("one", (path, "A"))])
    assert "A None" in capfd.readouterr().out.splitlines()


@pytest.mark.parametrize("at_once, expected", [(2, [1, 1]), (3, [1, 1, 1]), (5, [1, 2, 2]), (6, [2, 2, 2])])
def test_jobs_are_spread_evenly_over_the_gpus_and_each_sees_one(at_once, expected, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "7")
    path = script(
        "use.py",
        "import os, pathlib, sys, time\n"
        "pathlib.Path('gpu' + sys.argv[1]).write_text(os.environ['CUDA_VISIBLE_DEVICES'])\n"
        + waiting(f"len(list(pathlib.Path().glob('gpu*'))) == {at_once}"),
    )
    Runner(at_once, ["0", "1", "3"]).run([Job(str(i), (path, str(i)), Path(f"f{i}")) for i in range(at_once)])
    used = [path.read_text() for path in Path().glob("gpu*")]
    assert sorted(used.count(gpu) for gpu in set(used)) == expected and set(used) <= {"0", "1", "3"}


def test_a_job_gets_the_gpu_that_the_fewest_use(monkeypatch):
    """Of four jobs on two GPUs, those on one end first: the next ones are not put beside the others."""
    runner, given = Runner(4, ["0", "1"]), {}
    for name in "abcd":
        given[name] = runner.environment(Job(name, ("x",)))["CUDA_VISIBLE_DEVICES"]
    assert given == {"a": "0", "b": "1", "c": "0", "d": "1"}
    for name in "bd":
        del runner.gpus_of[name]
    assert runner.environment(Job("e", ("x",)))["CUDA_VISIBLE_DEVICES"] == "1"


def test_a_job_of_several_processes_gets_a_gpu_for_each():
    runner = Runner(2, ["0", "1", "2", "3"])
    jobs = [Job(name, ("x",), processes=2) for name in "ab"]
    assert [runner.environment(job)["CUDA_VISIBLE_DEVICES"] for job in jobs] == ["0,1", "2,3"]


@pytest.fixture
def three_gpus(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)


def test_gpus_are_named_as_the_environment_names_them(three_gpus, monkeypatch):
    assert visible_gpus(None, None) == ["0", "1", "2"] and visible_gpus([2, 0], torch.device("cuda")) == ["2", "0"]
    assert visible_gpus(None, torch.device("cuda:1")) == ["1"] and visible_gpus(None, torch.device("cpu")) == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,GPU-8f2,9")
    assert visible_gpus([1, 2], None) == ["GPU-8f2", "9"]


@pytest.mark.parametrize(
    "options, exports",
    [
        (["--device", "cuda:1"], ["export CUDA_VISIBLE_DEVICES=1"]),
        (["--gpus", "2,0"], ["export CUDA_VISIBLE_DEVICES=2,0"]),
        (["--device", "cuda"], []),
    ],
)
def test_a_dry_run_selects_the_gpus_that_were_asked_for(three_gpus, capsys, options, exports):
    call("--table", "digits", "--methods", "KD", "--trials", 1, "--dry_run", *options)
    lines = capsys.readouterr().out.splitlines()
    assert [line for line in lines if not line.startswith("python ")] == exports
    assert lines[: len(exports)] == exports and not any("cuda:" in line for line in lines)


def test_every_instance_of_a_divided_gpu_serves_a_job(monkeypatch):
    """CUDA shows a process the first of them alone."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1a,MIG-2b,MIG-3c")
    assert visible_gpus(None, None) == ["MIG-1a", "MIG-2b", "MIG-3c"] and visible_gpus([2], None) == ["MIG-3c"]
    with pytest.raises(UserError, match=r"--nproc: found instances of a divided GPU \(MIG\), which cannot share a run"):
        call("--table", "digits", "--nproc", 2, "--dry_run")


@pytest.mark.parametrize(
    "options, line",
    [
        (["--gpus", "0,3"], "--gpus: found 0,3, but this machine has 3, numbered from 0"),
        (["--gpus", "0,1,2,3"], "--gpus: found 0,1,2,3, but this machine has 3, numbered from 0"),
        (["--gpus", "1,1"], "--gpus: found 1,1, in which a GPU is duplicated"),
        (["--gpus", "1", "--device", "cpu"], "--gpus: has no effect with --device cpu; leave one of them out"),
        (["--gpus", "1", "--device", "cuda:2"], "--gpus: found together with --device cuda:2; leave one of them out"),
        (["--gpus", "1", "--ray", "auto"], "--gpus: has no effect with --ray; leave it out"),
        (["--jobs", "2", "--ray", "auto"], "--jobs: has no effect with --ray; leave it out"),
        (
            ["--device", "cuda:1", "--ray", "auto"],
            "--device: found cuda:1, but Ray gives a job its GPU; give --device cuda",
        ),
        (["--gpus_per_job", "0.5"], "--gpus_per_job: has no effect with no --ray; leave it out"),
        (["--estimate"], "--estimate: has no effect without --dry_run; give both"),
    ],
)
def test_unsuitable_options_are_one_line(three_gpus, options, line):
    with pytest.raises(UserError) as error:
        call("--table", "digits", *options)
    assert str(error.value) == line and error.value.exit_code == 2


@pytest.mark.parametrize("options", [["--gpus", "x"], ["--gpus", "-1"], ["--gpus_per_job", "1.5"], ["--jobs", "0"]])
def test_impossible_values_are_refused_by_the_parser(options, capsys):
    with pytest.raises(SystemExit) as error:
        call("--table", "digits", *options)
    assert error.value.code == 2
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_gpus_on_a_machine_without_one(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="--gpus: found 0, but this PyTorch sees no GPU"):
        call("--table", "digits", "--gpus", 0)


# Signals


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
@pytest.mark.parametrize("at_once", [1, 2])
def test_a_signal_reaches_every_run_once_and_the_line_says_how_to_go_on(number, at_once, capfd):
    path = script(
        "train.py",
        "import os, pathlib, sys, time\n"
        "assert os.getsid(0) == os.getpid()  # out of reach of the terminal, which would be a second signal\n"
        "try:\n    pathlib.Path(sys.argv[1]).touch()\n    time.sleep(60)\n"
        "except KeyboardInterrupt:\n    time.sleep(0.3)\n    pathlib.Path(sys.argv[1]).write_text('saved')\n"
        "    sys.exit(130)\n",
    )
    found = [Job(f"run{i}", (path, f"run{i}"), Path(f"folder{i}"), Path(f"done{i}")) for i in range(3)]

    def send():
        wait_until(lambda: all(Path(f"run{i}").exists() for i in range(at_once)), seconds=50)
        os.kill(os.getpid(), number)

    before = signal.signal(number, signal.default_int_handler)  # it may be ignored where the tests run
    try:
        threading.Thread(target=send, daemon=True).start()
        with pytest.raises(Interrupted, match="stopped with 3 of 3 jobs not yet finished; .*same command goes on"):
            Runner(at_once).run(found)
        assert "[0 of 3 done, 0 running, 0 failed, 3 to come]" in capfd.readouterr().out
        assert signal.getsignal(number) is signal.default_int_handler
    finally:
        signal.signal(number, before)
    assert [Path(f"run{i}").exists() and Path(f"run{i}").read_text() for i in range(3)] == [
        "saved" if i < at_once else False for i in range(3)
    ]


@pytest.mark.parametrize("number, noted", [(signal.SIGHUP, []), (signal.SIGINT, [local.STOP])])
def test_where_signals_are_ignored_an_interrupt_stops_the_jobs_and_a_hangup_does_not(number, noted):
    """A shell ignores SIGINT for what it starts with &, and nohup ignores SIGHUP."""
    before, runner = signal.signal(number, signal.SIG_IGN), Runner(1)
    try:
        with runner.signals():
            signal.raise_signal(number)
        assert [runner.events.get_nowait() for _ in range(runner.events.qsize())] == noted
        assert signal.getsignal(number) == signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_a_reader_that_goes_with_the_stop_is_no_second_signal(monkeypatch):
    """As after Ctrl-C on `reproduce.py | tee log`, which ends tee, too."""
    sent = []

    class StoppedRunner(FakeRunner):
        def start(self, job):
            self.events.put(local.STOP)
            self.reader_gone()
            super().start(job)
            self.running[job.name] = SimpleNamespace(send_signal=sent.append)

    with pytest.raises(BrokenPipeError):
        StoppedRunner(1).run(chain("a", "b"))
    assert sent == [signal.SIGINT]


class NoSignals:
    """A process on Windows, to which no SIGINT can be sent."""

    def send_signal(self, number):
        raise ValueError(f"Unsupported signal: {number}")


def test_where_no_signal_can_be_sent_the_runs_are_waited_for():
    class StoppedRunner(FakeRunner):
        def start(self, job):
            self.events.put(local.STOP)
            super().start(job)
            self.running[job.name] = NoSignals()

    runner = StoppedRunner(1)
    with pytest.raises(Interrupted, match="stopped with 1 of 2 jobs not yet finished"):
        runner.run(chain("a", "b"))
    assert runner.started == ["a.py"]


def test_where_pipes_cannot_be_asked_a_reader_counts_as_there(monkeypatch):
    monkeypatch.delattr(local.select, "poll")  # as on Windows
    assert not local.nobody_reads()


# What an earlier call has left behind, and readers that go away

WORKER = """
import os, pathlib, sys, time
sys.path.insert(0, {root!r})
from helper.files import lock
lock.hold(pathlib.Path("folder"))
with open("starts", "a") as file:
    print(os.getpid(), *sys.argv[1:], file=file)
{wait}if pathlib.Path("go").read_text() or "--resume" in sys.argv:
    pathlib.Path("done").touch()
"""
DRIVER = """
import sys
sys.path.insert(0, {root!r})
from pathlib import Path
from helper.cli.parser import run, Parser
from helper.experiments.jobs import Job
from helper.experiments.local import Runner
run(lambda args: Runner({at_once}).run({jobs}), Parser)
"""


def driver(jobs, at_once=1, **options):
    """A process that runs jobs, as reproduce.py does."""
    path = script("driver.py", DRIVER.format(root=str(ROOT), at_once=at_once, jobs=jobs))
    return subprocess.Popen([sys.executable, path], text=True, **options)


@pytest.mark.slow
@pytest.mark.parametrize("finishes", ["yes", ""])
def test_a_run_that_a_killed_call_has_left_is_waited_for(finishes, capfd):
    """It finishes, or it stops before its end and is resumed then."""
    path = script("work.py", WORKER.format(root=str(ROOT), wait=waiting("pathlib.Path('go').exists()")))
    job = Job("it", (path,), Path("folder"), Path("done"), resumable=True)
    process = driver(f"[Job('it', ({path!r},), Path('folder'), Path('done'), resumable=True)]")
    wait_until(lambda: Path("starts").exists() and Path("starts").read_text().endswith("\n"))
    process.kill()
    process.wait()
    pid = Path("starts").read_text().split()[0]
    threading.Timer(0.5, lambda: Path("go").write_text(finishes)).start()
    Runner(1).run([job])
    line = f"waiting for process {pid} on host {socket.gethostname()} in folder"
    assert capfd.readouterr().out.splitlines().count(line) == 1
    starts = [line.split()[1:] for line in Path("starts").read_text().splitlines()]
    assert starts == ([[]] if finishes else [[], ["--resume"]]) and job.finished


def test_a_job_that_meets_another_in_its_folder_is_tried_again_later(monkeypatch):
    """Its own lock comes later than the look of the runner, or belongs to another folder: it says so by its status."""
    path = script(
        "late.py",
        f"import pathlib, sys\nif not pathlib.Path('tried').exists():\n    pathlib.Path('tried').touch()\n"
        f"    sys.exit({local.POSTPONED})\npathlib.Path('done').touch()\n",
    )
    monkeypatch.setattr(local, "RETRY_AFTER", 3.0)
    began = time.monotonic()
    Runner(1).run([Job("it", (path,), Path("folder"), Path("done"))])
    assert Path("done").exists() and time.monotonic() - began > 3


def test_a_job_of_several_processes_that_meets_another_is_no_failure(monkeypatch):
    """torchrun, which starts them, ends with status 1 whatever theirs was."""
    path = script(
        "late.py",
        "import pathlib, sys\nif not pathlib.Path('tried').exists():\n    pathlib.Path('tried').touch()\n"
        "    sys.exit(1)\npathlib.Path('done').touch()\n",
    )
    looks = []

    def in_use(job):
        looks.append(job.name)
        return "process 7 on host a in folder" if Path("tried").exists() and len(looks) < 4 else None

    monkeypatch.setattr(Job, "in_use", in_use)
    monkeypatch.setattr(Job, "words", lambda job, python=None: [sys.executable, path])
    Runner(1).run([Job("it", (path,), Path("folder"), Path("done"), processes=2)])
    assert Path("done").exists()


@pytest.mark.slow
@pytest.mark.parametrize("at_once, talks", [*itertools.product((1, 2), (True, False))])
def test_a_reader_that_goes_away_is_a_stop(at_once, talks):
    """`reproduce.py | head`: every run saves its state and ends, and so does the call, with nothing on stderr."""
    path = script(
        "train.py",
        "import pathlib, sys, time\n"
        "try:\n"
        "    print('begun', flush=True)\n"
        "    while True:\n"
        "        time.sleep(0.05)\n"
        f"        if {talks}:\n"
        "            print('on', flush=True)\n"
        "except (KeyboardInterrupt, BrokenPipeError):\n"
        "    pathlib.Path(sys.argv[1]).write_text('saved')\n",
    )
    names = [f"run{i}" for i in range(3)]
    found = ", ".join(f"Job({n!r}, ({path!r}, {n!r}), Path('f_{n}'), Path('d_{n}'))" for n in names)
    process = driver(f"[{found}]", at_once, stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    begun = 0
    while begun < at_once:
        assert (line := process.stdout.readline()), "it has ended"
        begun += "begun" in line
    process.stdout.close()
    assert process.wait(timeout=120) == 1
    said = [line for line in process.stderr.read().splitlines() if "Error" in line or "Traceback" in line]
    process.stderr.close()
    assert not [line for line in said if at_once == 2 or "train.py" not in line]
    assert [Path(name).exists() for name in names] == [i < at_once for i in range(3)]


# Real runs

TINY_TABLE = Table(
    "tiny",
    "assumed: a test",
    ("resnet8:resnet8",),
    (*plain("TopKD", "TopKD-exact"), Arm("KD n 8", "KD", "assumed: a test", {"batch_size": 8})),
    seeds=1,
    dataset="tiny",
    teacher=Training(epochs=1, lr_decay_epochs=(), batch_size=16),
    student=Training(epochs=2, lr_decay_epochs=(1,), batch_size=16),
    clouds=Clouds(batch_size=16),
    making=CloudMaking(passes=2),
    fit=Fit(epochs=2, batch_clouds=4),
    tag="tiny",
)


@pytest.mark.slow
def test_a_table_that_is_interrupted_goes_on_where_it_stopped(tiny, monkeypatch, capfd):
    """Real runs, the first student of which is interrupted before its third batch."""
    monkeypatch.setitem(TABLES, "tiny", TINY_TABLE)
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), str(ROOT / "tests")]))
    monkeypatch.setattr(jobs, "ROOT", Path("scripts").resolve())
    jobs.ROOT.mkdir()
    for path in ROOT.glob("*.py"):  # each runs the script of its name, up to the point that POINT names
        point = f"os.environ.get('POINT_{path.stem}', 'none')"
        text = f"import os, sys\nfrom support import killed\nkilled.main({point}, {str(path)!r}, *sys.argv[1:])\n"
        (jobs.ROOT / path.name).write_text(text)

    monkeypatch.setenv("POINT_train_student", "int:3")
    with pytest.raises(RunStopped, match="jobs failed"):
        call("--table", "tiny", "--device", "cpu", "--jobs", 2)
    assert not list(Path("results/runs").glob("*-*.csv"))
    monkeypatch.delenv("POINT_train_student")
    capfd.readouterr()
    written = {path: path.stat().st_mtime_ns for path in Path("ripsnet").rglob("*.npy")}
    call("--table", "tiny", "--device", "cpu", "--jobs", 2)
    printed = capfd.readouterr().out
    assert "train_teacher.py" not in printed and "--resume" in printed
    assert {path: path.stat().st_mtime_ns for path in written} == written
    names = [f"resnet8-resnet8_tiny_{name}_tiny_trial1" for name in ("KD_n8", "TopKD-exact_n16", "TopKD_n16")]
    assert sorted(path.stem for path in Path("results/runs").glob("*-*.csv")) == names
    for name in names:
        assert len(Path(f"results/logs/{name}.csv").read_text().splitlines()) == 1 + 2
    call("--table", "tiny", "--device", "cpu")
    calls = [line for line in capfd.readouterr().out.splitlines() if line.startswith("python ")]
    assert len(calls) == 1 and calls[0].endswith("make_tables.py")


@pytest.mark.slow
def test_the_demonstration_in_a_shorter_form(capfd):
    """One epoch, one seed: every stage, the table and the figures, by one command."""
    call("--table", "digits", "--epochs", 1, "--trials", 1, "--amp", "off", "--device", "cpu")
    printed = capfd.readouterr().out
    table = printed[printed.rindex("make_tables.py") :]
    assert all(name in table for name in ("CE", "KD", "KD-control", "TopKD", "TopKD-exact", "TopKD-wasserstein"))
    assert len(list(Path("results/runs").glob("resnet20-resnet8_digits_*_e1_float32_trial1.csv"))) == 6
    figures = sorted(Path("results/figures").glob("*.png"))
    assert [figure.name.split("_")[0] for figure in figures] in (["pi", "tsne"], ["pi", "umap"])
    assert all(figure.read_bytes().startswith(b"\x89PNG") for figure in figures)
