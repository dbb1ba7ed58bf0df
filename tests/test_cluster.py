"""Jobs on a cluster by Ray: two nodes on this machine's cores, one of which is killed; a failing job; Ctrl-C; a folder
that is not shared; addresses where nobody answers."""

import csv
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from support.processes import wait_until

from helper.errors import UserError
from helper.experiments import cluster as by_ray
from helper.experiments.cluster import Outcome, connect, resources, run_job, slots
from helper.experiments.jobs import Job
from helper.files import lock
from models import create_model

ROOT = Path(__file__).resolve().parent.parent
TABLE = "--table digits --methods KD,TopKD-wasserstein --trials 2 --epochs 2 --device cpu --amp off".split()
TEACHER = Path("save_t_models/resnet20_digits_e2_trial1/best.pth")
DRIVER = f"""
import sys
sys.path.insert(0, {str(ROOT)!r})
from pathlib import Path
from helper.cli.parser import Parser, run
from helper.experiments.cluster import RayRunner, check_shared, connect, resources
from helper.experiments.jobs import Job

def parser():
    parser = Parser()
    parser.add_argument("address")
    return parser

def main(args):
    ray = connect(args.address)
    check_shared(ray, Path.cwd())
    RayRunner(ray, resources(ray, None, True)).run(eval(Path("jobs").read_text()))

run(main, parser)
"""
# Python runs a file of this name when it starts: students are saved after each epoch, however short it was.
SITECUSTOMIZE = """
import sys
if any(word.endswith("train_student.py") for word in sys.orig_argv):
    import helper.cli.early, helper.training.loop
    helper.training.loop.SAVE_APART = 0.0
"""


def test_without_ray_it_is_one_line(monkeypatch):
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r'--ray: Ray is not installed; pip install "ray\[default\]"'):
        connect("auto")


@pytest.mark.parametrize("address", ["nowhere", "host:", ":6379", "host:port"])
def test_what_is_no_address(address):
    pytest.importorskip("ray")
    with pytest.raises(UserError, match=f"--ray: found '{address}', expected auto, local or host:port"):
        connect(address)


def test_an_address_where_nobody_answers():
    pytest.importorskip("ray")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    with pytest.raises(UserError, match=f"--ray: nobody answers at 127.0.0.1:{port} .*; start it with") as error:
        connect(f"127.0.0.1:{port}")
    assert "\n" not in str(error.value) and error.value.exit_code == 2


class FakeRay:
    """A cluster of nodes with these resources."""

    def __init__(self, *found):
        self.found = found

    def nodes(self):
        return [{"Alive": True, "Resources": node} for node in self.found]

    def cluster_resources(self):
        return {name: sum(node.get(name, 0) for node in self.found) for name in ("CPU", "GPU")}


def test_what_a_job_asks_of_a_machine():
    gpus = FakeRay({"CPU": 64.0, "GPU": 8.0}, {"CPU": 16.0, "GPU": 4.0}, {"CPU": 96.0})
    assert resources(gpus, None, False) == {"num_gpus": 1.0, "num_cpus": 4}
    assert resources(gpus, 0.25, False) == {"num_gpus": 0.25, "num_cpus": 1}
    assert resources(gpus, 0.1, False) == {"num_gpus": 0.1, "num_cpus": 0.4}
    assert slots(gpus, resources(gpus, 0.25, False)) == 48
    assert resources(gpus, None, True) == {"num_cpus": 1} and slots(gpus, {"num_cpus": 1}) == 176
    with pytest.raises(UserError, match="--gpus_per_job: found 0.5, but the jobs would run on cores alone"):
        resources(FakeRay({"CPU": 8.0}), 0.5, False)


def test_a_job_is_not_called_while_its_folder_or_that_of_its_clouds_is_in_use(in_tmp_path, monkeypatch, capsys):
    job = Job("it", ("x.py",), Path("set/ripsnet"), Path("done"), clouds=Path("set"))
    in_use = {job.clouds: "process 8", job.folder: "process 7"}  # that of the folder ends first
    monkeypatch.setattr(lock, "in_use", in_use.get)
    monkeypatch.setattr(by_ray.time, "sleep", lambda seconds: in_use.popitem())
    monkeypatch.setattr(by_ray, "call", lambda job: Outcome(len(in_use)))
    assert run_job(job, os.getcwd()) == Outcome(0)
    assert capsys.readouterr().out == "waiting for process 7 in set/ripsnet\nwaiting for process 8 in set\n"


# A cluster of two nodes


@pytest.fixture(scope="module")
def cluster():
    """A head with one core; tests add a node."""
    pytest.importorskip("ray")
    from ray.cluster_utils import Cluster

    os.environ["RAY_worker_niceness"] = "0"  # other tests may run beside
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False})
    yield cluster
    cluster.shutdown()


@pytest.fixture
def second_node(cluster):
    node = cluster.add_node(num_cpus=1)
    cluster.wait_for_nodes()
    yield node
    if node in cluster.list_all_nodes():
        cluster.remove_node(node)


@pytest.fixture
def in_tmp_path(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")


def reproduce(*options, **more):
    command = [sys.executable, str(ROOT / "reproduce.py"), *options]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, **more)


def descendants(pid):
    """Processes that a process has started, and those that these have, ..."""
    found = []
    for task in Path(f"/proc/{pid}/task").glob("*/children"):
        for child in task.read_text().split():
            found += [int(child), *descendants(int(child))]
    return found


def command_of(pid):
    try:
        return Path(f"/proc/{pid}/cmdline").read_bytes().decode().replace("\0", " ")
    except OSError:
        return ""


def raylet(node):
    return next(
        process.process.pid for kind, found in node.all_processes.items() if kind == "raylet" for process in found
    )


def student_of(node):
    """The name of the student that a node trains and has saved, if there is one."""
    for pid in descendants(raylet(node)):
        name = re.search(r"train_student\.py .*--name (\S+)", command_of(pid))
        if name and Path(f"save_s_models/{name.group(1)}/last.pth").exists():
            return name.group(1)
    return None


MAY_DIFFER = {"seconds", "images_per_s", "device"}


def results(folder):
    """Rows and logs without what may differ between equal runs, and the weights."""
    rows = {}
    for path in sorted(Path(folder).glob("results/*/*.csv")):
        with open(path, newline="") as file:
            found = [{name: row[name] for name in row.keys() - MAY_DIFFER} for row in csv.DictReader(file)]
        rows[str(path.relative_to(folder))] = found
    weights = {
        str(path.relative_to(folder)): torch.load(path, weights_only=True)["model"]
        for path in sorted(Path(folder).glob("save_*/*/best.pth"))
    }
    return rows, weights


def make_teacher(path):
    """An untrained network: enough to teach the same to all."""
    torch.manual_seed(0)
    path.parent.mkdir(parents=True)
    about = {"arch": "resnet20", "num_classes": 10, "dataset": "digits", "accuracy": 10.0}
    torch.save({"model": create_model("resnet20", 10).state_dict(), **about}, path)


@pytest.mark.slow
def test_a_table_whose_node_is_killed_ends_as_on_one_machine(cluster, second_node, in_tmp_path, tmp_path, monkeypatch):
    (tmp_path / "sitecustomize.py").write_text(SITECUSTOMIZE)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    for folder in ("ray", "local"):
        make_teacher(Path(folder) / TEACHER)
    os.chdir("ray")
    process = reproduce(*TABLE, "--ray", cluster.address)
    name = wait_until(lambda: student_of(second_node))
    killed = descendants(raylet(second_node))
    cluster.remove_node(second_node, allow_graceful=False)
    for pid in killed:
        if command_of(pid):
            os.kill(pid, signal.SIGKILL)
    printed = process.communicate(timeout=500)[0]
    assert process.returncode == 0, printed
    assert re.search(rf"train_student\.py .*--name {name} .*--resume", printed), printed
    assert "[5 of 5 done, " in printed

    os.chdir("../local")
    process = reproduce(*TABLE, "--jobs", "2")
    printed = process.communicate(timeout=500)[0]
    assert process.returncode == 0, printed
    os.chdir("..")
    (rows, weights), (expected, expected_weights) = results("ray"), results("local")
    assert rows == expected and len([path for path in rows if path.startswith("results/runs/")]) == 4
    assert weights.keys() == expected_weights.keys() and len(weights) == 5
    for path, own in weights.items():
        assert all(torch.equal(own[key], value) for key, value in expected_weights[path].items())


def run_jobs(cluster, *jobs):
    """A process that hands jobs, as text, to the cluster."""
    Path("driver.py").write_text(DRIVER)
    Path("jobs").write_text(f"[{', '.join(jobs)}]")
    command = [sys.executable, "driver.py", cluster.address]
    return subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def job(name, path, **more):
    folder, done = f"Path('folder_{name}')", f"Path('done_{name}')"
    about = "".join(f", {key}={value!r}" for key, value in more.items())
    return f"Job({name!r}, ({str(path)!r}, {name!r}), {folder}, {done}{about})"


@pytest.mark.slow
def test_what_does_not_need_a_failed_job_goes_on(cluster, in_tmp_path, tmp_path):
    path = tmp_path / "work.py"
    path.write_text(
        "import pathlib, sys\nname = sys.argv[1]\n"
        "if name == 'a':\n    sys.exit('no such weights')\npathlib.Path('done_' + name).touch()\n"
    )
    end = f"Job('end', ({str(path)!r}, 'end'), after=('b', 'c'))"
    process = run_jobs(cluster, job("a", path), job("b", path, needs=("a",)), job("c", path), end)
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 1, printed
    assert [Path(f"done_{name}").exists() for name in ("a", "b", "c", "end")] == [False, False, True, True]
    assert "ended with exit code 1; its last lines:\n    no such weights\n" in printed
    assert "1 of 4 jobs failed (a), 1 that need them were not started; " in printed.splitlines()[-1]


@pytest.mark.slow
def test_a_signal_stops_all_jobs_and_each_saves_its_state(cluster, second_node, in_tmp_path, tmp_path):
    path = tmp_path / "train.py"
    path.write_text(
        "import pathlib, sys, time\nstate = pathlib.Path('state_' + sys.argv[1])\n"
        "try:\n    state.touch()\n    time.sleep(300)\n"
        "except KeyboardInterrupt:\n    time.sleep(2)\n    state.write_text('saved')\n    sys.exit(130)\n"
    )
    process = run_jobs(cluster, *(job(name, path) for name in "abc"))
    wait_until(lambda: len(list(Path().glob("state_*"))) == 2)  # as many as there are cores
    process.send_signal(signal.SIGINT)
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == 130, printed
    assert [path.read_text() for path in Path().glob("state_*")] == ["saved", "saved"]
    assert "stopped with 3 of 3 jobs not yet finished; " in printed.splitlines()[-1]


@pytest.mark.slow
def test_a_folder_that_a_machine_does_not_share_is_refused(cluster, in_tmp_path, tmp_path):
    """The second node sees an empty folder in its place, as another machine would."""
    hide = f"mount -t tmpfs none {tmp_path}"
    if (
        not shutil.which("unshare")
        or subprocess.run(["unshare", "-m", "sh", "-c", hide], capture_output=True).returncode
    ):
        pytest.skip("this user may not mount")
    start = f"{Path(sys.executable).parent}/ray start --address {cluster.address} --num-cpus 1 --block"
    node = subprocess.Popen(
        ["unshare", "-m", "sh", "-c", f"{hide} && cd / && exec {start}"],
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_until(lambda: descendants(node.pid) and any("raylet" in command_of(pid) for pid in descendants(node.pid)))
        time.sleep(10)  # until it has joined
        process = run_jobs(cluster, job("a", tmp_path / "x.py"))
        printed = process.communicate(timeout=300)[0]
        assert process.returncode == 2, printed
        assert re.search(
            rf"--ray: machine \S+ \(node \w+\) does not see {tmp_path} of this one; the working folder must be shared",
            printed.splitlines()[-1],
        )
        assert not list(Path().glob(".reproduce-*"))
    finally:
        for pid in [*descendants(node.pid), node.pid]:
            if command_of(pid):
                os.kill(pid, signal.SIGTERM)
        node.wait()
