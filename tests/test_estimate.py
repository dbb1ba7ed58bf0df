"""The hours that experiments would take: counted costs against published ones, schedules worked by hand, and rows."""

from dataclasses import replace
from pathlib import Path

import pytest

from helper.experiments import estimate
from helper.experiments.estimate import START, Estimate, costs, measured, step_seconds
from helper.experiments.jobs import Job, Work
from helper.experiments.plan import Planner, find_table
from helper.files.paths import ROOT
from helper.report.results import read_run


@pytest.mark.parametrize(
    "network, convolutions, mega",
    [
        # 3 n convolutions a stage and the stem's; multiply-adds of He et al.'s Table 6 networks: 41 M and 126 M
        ("resnet20", 19, 41),
        ("resnet56", 55, 126),
    ],
)
def test_costs_are_those_published(network, convolutions, mega):
    counted, flops = costs(network, "cifar100")
    assert counted - 2 == convolutions  # the two shortcuts with a convolution, which the paper has not
    assert flops / 2e6 == pytest.approx(mega, rel=0.03)


def jobs_of(seconds, needs):
    return [Job(name, (f"{name}.py",), needs=tuple(needs.get(name, ())), work=Work(name)) for name in seconds]


def test_hours_on_several_gpus_by_hand(monkeypatch):
    """A teacher of 4 h, then five students of 1, 2, 3, 1 and 1 h, one of which needs no teacher."""
    hours = {"t": 4, "a": 1, "b": 2, "c": 3, "d": 1, "alone": 1}
    jobs = jobs_of(hours, {name: ("t",) for name in "abcd"})
    found = Estimate([])
    monkeypatch.setattr(found, "seconds", lambda job: hours[job.name])
    assert found.makespan(jobs, 1) == 12
    # two GPUs: t 0-4, alone 0-1; a 4-5, b 4-6, c 5-8, d 6-7
    assert found.makespan(jobs, 2) == 8
    assert found.makespan(jobs, 64) == 7  # the teacher and the longest student
    assert found.makespan([], 8) == 0


def row(**more):
    return {
        "teacher": "resnet56",
        "student": "resnet20",
        "method": "KD",
        "dataset": "cifar100",
        "epochs": "240",
        "batch_size": "64",
        "device": "NVIDIA H100 80GB HBM3",
        "seconds": "937.2",
    } | more


def test_rows_of_gpus_are_measurements_and_those_of_processors_are_not():
    """937.2 s in 240 epochs of 781 steps are 5 ms a step; 7 ms in a second seed. Nor are rows of other precisions, of a
    cache or of several processes."""
    work = Work("train_student", "cifar100", "resnet56", "resnet20", "KD", 0, 64)
    assert measured([row()]) == {work: pytest.approx(0.005)}
    assert measured([row(), row(seconds="1312.08")]) == {work: pytest.approx(0.006)}
    assert measured([row(device="AMD EPYC (2 threads)"), row(device=""), row(seconds="")]) == {}
    others = {"amp": "bf16"}, {"teacher_cache": "True"}, {"processes": "4"}
    assert measured(row(**more) for more in others) == {}
    assert measured([row(amp="off", teacher_cache="False", processes="1")]) == measured([row()])
    found = Estimate([row()])
    job = Job("x", ("train_student.py",), work=Work(**vars(work) | {"epochs": 24}))
    assert found.seconds(job) == pytest.approx(START + 24 * 781 * 0.005)
    for more in ({"what": "AT"}, {"variant": "dim1"}):
        other = Job("y", ("train_student.py",), work=Work(**vars(work) | {"epochs": 24} | more))
        assert found.seconds(other) == pytest.approx(START + 24 * 781 * step_seconds(other.work))


def test_the_runs_of_a_table_find_their_shipped_rows():
    """Every arm of the ablation, by what its row says of it."""
    table, planner = find_table("cifar100_small_ablation"), Planner()
    planner.table(table, list(table.rows), list(table.arms), 1)
    jobs = [job for job in planner.all() if job.command[0] == "train_student.py"]
    rows = [read_run(ROOT / job.done) | {"device": "NVIDIA H100"} for job in jobs]
    assert len(jobs) == len({job.work for job in jobs}) == 19
    assert set(measured(rows)) == {replace(job.work, epochs=0) for job in jobs}


def test_a_first_stage_counts_among_the_steps_of_a_row():
    """240 epochs after 30 took 5 ms a step, and are estimated to take what they took."""
    seconds = 270 * 781 * 0.005
    ft = row(method="FT", first_epochs="30", seconds=str(seconds))
    work = Work("train_student", "cifar100", "resnet56", "resnet20", "FT", 240 + 30, 64)
    assert Estimate([ft]).seconds(Job("x", ("train_student.py",), work=work)) == pytest.approx(START + seconds)


def test_the_report_marks_what_is_measured(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    kinds = [Work("train_student", "cifar100", "resnet56", "resnet20", method, 240, 64) for method in ("KD", "AT")]
    jobs = [Job(work.what, ("train_student.py",), done=Path(work.what), work=work) for work in kinds]
    text = Estimate([row()]).report({"a table": jobs})
    assert "resnet56 > resnet20, 64 images: 5.0 m: KD; 7.0 e: AT" in text.splitlines()
    line = next(line for line in text.splitlines() if line.startswith("a table"))
    assert line.split()[2:] == ["2", "0.6", "0.6", "0.4", "0.4"]  # 0.26 h measured, 0.37 h estimated
    Path("AT").touch()
    assert "a table      1        0.3" in Estimate([row()]).report({"a table": jobs})


def test_cross_entropy_alone_asks_no_teacher():
    alone = step_seconds(Work("train_teacher", "cifar100", "", "resnet20", "CE", 240, 64))
    assert step_seconds(Work("train_student", "cifar100", "resnet56", "resnet20", "CE", 240, 64)) == alone
    assert step_seconds(Work("train_student", "cifar100", "resnet56", "resnet20", "CE+Top", 240, 64)) > alone
    assert estimate.step_seconds(Work("train_teacher", "cifar100", "", "ResNet50", "CE", 240, 64)) > 3 * alone
