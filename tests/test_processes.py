"""helper/distributed.py and what is built on it: several processes that torchrun starts do what one does.

The truth is a process of its own, which knows nothing of others.
"""

import copy
import shutil
import signal

import pytest
import torch
from support import group
from support.artefacts import artefacts, hashes
from support.killed import TEST_BATCH
from support.processes import execute, wait_until
from support.running import TEACHER, refused, work_in
from support.several import together, torchrun

import train_student
from dataset import TrainLoader, load_dataset
from helper import distributed
from helper.data import train_loader
from helper.files import checkpoint
from helper.settings import ResolvedTraining
from helper.training.loop import evaluate, make_optimizer
from helper.training.meters import Meters
from models import create_model

IMAGES = "--dataset tiny --device cpu --batch_size 16 --epochs 2 --lr 0.02"
TRAIN = f"train_teacher.py --model resnet8 --name t {IMAGES}"
SET = "--path_t save_t_models/t/best.pth --dataset tiny --device cpu --batch_size 16"
CLOUDS = f"generate_PCD_PI.py {SET} --dim 01 --passes 3"
DISTILL = f"train_student.py --path_t save_t_models/t/best.pth --model_s resnet8 --name s {IMAGES}"
STUDENT = f"{DISTILL} --topology wasserstein -d 50 --gather_clouds"


def test_without_torchrun_everything_is_the_identity(tiny):
    cpu, network = torch.device("cpu"), torch.nn.Linear(2, 2)
    assert distributed.join(cpu) is cpu
    assert not torch.distributed.is_initialized() and not distributed.restarted()
    assert (distributed.rank(), distributed.world(), distributed.local_world()) == (0, 1, 1)
    assert distributed.parallel(network) is network
    assert distributed.all_states(3) == distributed.to_first(3) == [3]
    assert distributed.agree(True) and not distributed.agree(False)
    for call in (distributed.on_first, distributed.together, distributed.after_first):
        assert call(divmod, 7, 2) == (3, 1)
        with pytest.raises(ZeroDivisionError):
            call(divmod, 7, 0)
    meters = Meters(["ce"], cpu)
    assert meters.over_processes() is meters
    loader = train_loader(load_dataset("tiny", "")[0], 16, 0)
    assert (loader.rank, loader.world, loader.span(1)) == (0, 1, (16, 32))
    distributed.leave()


@pytest.mark.parametrize("topology", [(), ("-d", 5)], ids=["without topology", "in one process"])
def test_gathering_clouds_is_refused_where_it_does_nothing(tmp_path, monkeypatch, capsys, topology):
    work_in(tmp_path, monkeypatch)
    usual = ["--path_t", TEACHER, "--dataset", "noise", "--device", "cpu", "--model_s", "resnet8", "--gather_clouds"]
    assert "--gather_clouds: has no effect with" in refused(monkeypatch, capsys, train_student, *usual, *topology)


@pytest.fixture(scope="module")
def taught(tmp_path_factory):
    """A folder in which one process has trained a teacher."""
    folder = tmp_path_factory.mktemp("taught")
    status, printed = execute("none", folder, TRAIN)
    assert status == 0, printed
    return folder


@pytest.fixture
def folder(taught, tmp_path):
    """One of its own, with this teacher."""
    return shutil.copytree(taught, tmp_path / "run")


def only_first_speaks(ends):
    """The line in which several processes end alike: process 0 prints it, the others nothing."""
    assert len({status for status, _ in ends}) == 1, ends
    assert all(printed == "" for _, printed in ends[1:]), ends
    return ends[0][1].splitlines()[-1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "command, words",
    [
        ("train_ripsnet.py --path_t x", "train_ripsnet.py: runs in one process; start it without torchrun"),
        ("make_tables.py", "start it without torchrun"),
        ("train_teacher.py --epochs x", "--epochs: found 'x'"),
        ("train_teacher.py --model resnet8 --dataset digits --device cpu --batch_size 33", "--batch_size: found 33"),
        (f"{DISTILL} --distill crd", "--distill crd: found 2 processes"),
        (f"{DISTILL.replace('--name s', '')} --trial 1 2", "--trial: found 2 trials and 2 processes"),
        (f"{DISTILL} -d 5 --topology wasserstein", "--batch_size: found clouds of 16 images, of which each of 2"),
        (f"{DISTILL} -d 5 --cloud_size 8 --topology wasserstein --gather_clouds", "--gather_clouds: has no effect"),
        (f"generate_PCD_PI.py {SET} --num_clouds 100000", "--num_clouds: found 100000"),
    ],
)
def test_a_refusal_is_one_line_of_one_process(folder, command, words):
    before = hashes(folder)
    ends = together(folder, command)
    assert words in only_first_speaks(ends) and ends[0][1].count("\n") == 1
    assert ends[0][0] == 2
    assert hashes(folder) == before


@pytest.mark.slow
def test_one_process_by_torchrun_is_one_without(taught, tmp_path):
    ((status, printed),) = together(tmp_path, TRAIN, world=1)
    assert status == 0, printed
    assert artefacts(tmp_path) == artefacts(taught)


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """What two processes computed together, of each."""
    folder = tmp_path_factory.mktemp("group")
    ends = together(folder, "tests/support/group.py --device cpu")
    assert [status for status, _ in ends] == [0, 0], ends
    return [torch.load(folder / f"found{rank}.pt", weights_only=True) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("kind", group.LOSSES)
def test_gradients_are_those_of_one_process_on_the_same_images(tiny, found, kind):
    whole = group.gradients(kind, TrainLoader(load_dataset("tiny", "")[0], group.BATCH, 0))
    largest = max(gradient.abs().max().item() for gradient in whole.values() if gradient is not None)
    assert largest > 0.01
    for each in found:
        parts = each["gradients"][kind]
        assert parts.keys() == whole.keys()
        for name, gradient in whole.items():
            if gradient is None:
                assert parts[name] is None
            else:
                torch.testing.assert_close(parts[name], gradient, rtol=2e-4, atol=1e-5 * largest)


@pytest.mark.slow
def test_two_steps_are_those_of_one_process_that_averages_two_halves(tiny, found):
    """With the batch statistics of each half, and the running statistics of the first."""
    loader = TrainLoader(load_dataset("tiny", "")[0], group.BATCH, 0)
    whole, right, losses = group.objective("kd"), 0, []
    optimizer = make_optimizer(whole, ResolvedTraining(lr=0.05))
    whole.train()
    for batch, _ in zip(loader.epoch(1), range(2), strict=False):
        optimizer.zero_grad()
        for half in (slice(8, 16), slice(0, 8)):
            buffers = copy.deepcopy(dict(whole.named_buffers()))
            logits, terms = whole(*(part[half] for part in batch))
            (whole.total(terms) / 2).backward()
            right += int((logits.argmax(1) == batch[1][half]).sum())
            losses.append(terms["kd"].item())
            if half.start:
                for name, buffer in whole.named_buffers():
                    buffer.copy_(buffers[name])
        optimizer.step()
    weights, totals = found[0]["two steps"]
    for name, value in whole.state_dict().items():
        torch.testing.assert_close(weights[name], value, rtol=1e-4, atol=1e-5)
    assert (totals["images"], totals["correct"]) == (32, right)
    assert totals["kd"] == pytest.approx(sum(losses) / 4, rel=1e-5)
    parameters = [name for name, _ in whole.named_parameters()]
    assert all(torch.equal(weights[name], found[1]["two steps"][0][name]) for name in parameters)


@pytest.mark.slow
def test_evaluation_sees_each_image_once_and_equals_that_of_one_process(tiny, found):
    assert found[0]["evaluation"] == found[1]["evaluation"] == group.tested()


@pytest.mark.slow
def test_what_is_agreed_is_known_to_all(found):
    for rank, each in enumerate(found):
        assert each["errors"] == ["process 0", "process 1"]
        assert each["agreed"] == [True, False]
        assert each["values"] == [0, [0, 1]]
        assert rank in each["values"][1]


@pytest.mark.slow
def test_stage_2_makes_the_same_files(folder, tmp_path):
    ends = together(shutil.copytree(folder, tmp_path / "two"), CLOUDS)
    assert [status for status, _ in ends] == [0, 0], ends
    assert execute("none", folder, CLOUDS)[0] == 0
    assert artefacts(tmp_path / "two") == artefacts(folder)
    assert len(list(folder.rglob("*.npy"))) > 10


@pytest.mark.slow
@pytest.mark.parametrize("point", ["full:6", "full:20"])
def test_a_full_disk_in_stage_2_is_one_line_and_destroys_nothing(folder, tmp_path, point):
    two = shutil.copytree(folder, tmp_path / "two")
    ends = together(two, CLOUDS, points={0: point})
    line = only_first_speaks(ends)
    assert ends[0][0] == 1 and "cannot write" in line and "make room" in line
    ends = together(two, CLOUDS)
    assert [status for status, _ in ends] == [0, 0], ends
    assert execute("none", folder, CLOUDS)[0] == 0
    assert artefacts(two) == artefacts(folder)


@pytest.mark.slow
def test_a_process_that_fails_alone_says_why_and_ends_the_others(folder):
    ends = together(folder, STUDENT, points={1: "fail:15"})
    assert [status for status, _ in ends] == [1, 2]
    assert [printed.splitlines()[-1:] for _, printed in ends][1] == ["train_student.py: image.JPEG: damaged"]
    assert "another process" not in ends[0][1] and "Traceback" not in ends[0][1]
    assert len(checkpoint.load(folder / "save_s_models/s/last.pth")["history"]) == 1


@pytest.mark.slow
def test_a_loss_that_is_not_finite_stops_all(folder):
    ends = together(folder, f"{DISTILL} --lr 1e3")
    assert "non-finite" in only_first_speaks(ends)
    assert ends[0][0] == 1


@pytest.fixture(scope="module")
def undisturbed(taught, tmp_path_factory):
    """The folder in which two processes trained a student whose clouds they share."""
    folder = shutil.copytree(taught, tmp_path_factory.mktemp("undisturbed") / "run")
    ends = together(folder, STUDENT)
    assert [status for status, _ in ends] == [0, 0] and ends[1][1] == "", ends
    return folder


@pytest.mark.slow
def test_a_row_says_how_many_processes_there_were(taught, undisturbed):
    for folder, name, count in ((taught, "t", "1"), (undisturbed, "s", "2")):
        (row,) = artefacts(folder)[f"results/runs/{name}.csv"]
        assert row["processes"] == count


@pytest.mark.slow
def test_what_is_logged_is_what_one_process_finds_of_the_saved_weights(tiny, undisturbed):
    """Of whose batch norms each process has seen its own half of the batches."""
    state = checkpoint.load(undisturbed / "save_s_models/s/last.pth")
    student = create_model("resnet8", 4)
    student.load_state_dict(state["model"])
    row = state["history"][-1]
    found = evaluate(student, load_dataset("tiny", "")[1], batch_size=TEST_BATCH)
    assert (row["test_acc"], row["test_loss"]) == (found[0], pytest.approx(found[1], rel=1e-6))


@pytest.mark.slow
def test_a_signal_to_one_process_saves_the_state_of_all_after_the_same_step(folder, undisturbed):
    ends = together(folder, STUDENT, points={1: "term:15"})
    assert only_first_speaks(ends).endswith("stopped in epoch 2 after 5 steps; continue with --resume")
    assert ends[0][0] == 130
    state = checkpoint.load(folder / "save_s_models/s/last.pth")
    assert (state["step"], len(state["random"])) == (5, 2)
    assert sum(meters["images"] for meters in state["meters"]) == 5 * 16
    assert not torch.equal(*(random["cpu"] for random in state["random"]))
    ends = together(folder, f"{STUDENT} --resume")
    assert [status for status, _ in ends] == [0, 0], ends
    assert artefacts(folder) == artefacts(undisturbed)


@pytest.mark.slow
def test_another_number_of_processes_goes_on_and_says_so(folder):
    together(folder, STUDENT, points={1: "term:15"})
    status, printed = execute("none", folder, f"{DISTILL} --topology wasserstein -d 50 --resume")
    assert status == 0, printed
    assert printed.count("was saved by 2 processes and goes on with 1") == 1
    assert len(artefacts(folder)["results/logs/s.csv"]) == 2
    (row,) = artefacts(folder)["results/runs/s.csv"]
    assert row["processes"] == "2; 1"  # so that tables do not take it for a run of one


@pytest.mark.slow
def test_a_signal_to_torchrun_saves_the_state(folder, undisturbed):
    agent = torchrun(folder, STUDENT, point="wait:15", process=0)
    wait_until(lambda: (folder / "waiting").exists() or agent.poll() is not None)
    agent.send_signal(signal.SIGTERM)
    wait_until(lambda: (folder / "noted").exists() or agent.poll() is not None, seconds=60)
    (folder / "go").touch()
    printed, _ = agent.communicate()
    assert printed.count("stopped in epoch 2 after 5 steps; continue with --resume") == 1, printed
    ends = together(folder, f"{STUDENT} --resume")
    assert [status for status, _ in ends] == [0, 0], ends
    assert artefacts(folder) == artefacts(undisturbed)


@pytest.mark.slow
def test_torchrun_restarts_a_run_of_which_a_process_was_killed(folder, undisturbed):
    agent = torchrun(folder, STUDENT, "--max-restarts", "1", point="batch:15")
    printed, _ = agent.communicate()
    assert agent.returncode == 0, printed
    assert "s: 1 of 2 epochs are done" in printed
    assert artefacts(folder) == artefacts(undisturbed)
