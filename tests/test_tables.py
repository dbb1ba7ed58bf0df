"""make_tables.py and helper/report: the numbers of a table, what is averaged, and what is refused."""

import csv
import errno
import math
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from support.running import refused

import make_tables
import train_student
from helper.cli.parser import read
from helper.errors import UserError
from helper.report.layout import latex, markdown
from helper.report.results import (
    LATER_COLUMNS,
    paired_difference,
    read_csv,
    read_published,
    read_runs,
    repetitions,
    summary,
)
from helper.report.tables import grid
from helper.settings import NOT_PART_OF_A_RUN, Clouds, Data, Loss, Repetition, Training, plain
from helper.student.names import method_name, schedule
from helper.student.weights import resolve

ROOT = Path(__file__).resolve().parent.parent
PUBLISHED = ROOT / "results" / "published.csv"


def shipped_rows():
    """The files that git knows, since a run may write its own while tests are collected; all where git knows none."""
    command = ["git", "ls-files", "-z", "results/runs/*.csv"]
    try:
        listed = subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout
    except OSError:  # there is no git
        listed = ""
    found = [ROOT / name for name in listed.split("\0") if name] or (ROOT / "results" / "runs").glob("*.csv")
    return sorted(found)


ROWS = shipped_rows()
WITHOUT_TOPOLOGY = {"delta": 0.0, "topology": "", "dim": "", "tda_layer_s": ""}


def write_run(folder, method="KD", seed=1, last=69.0, best=70.0, **changes):
    """A row as train_student.py leaves it, in a file named by what tells it from the other rows; returns the file."""
    row = {
        "run": "",
        "method": method,
        "variant": "",
        "schedule": "",
        "teacher": "resnet56",
        "student": "resnet20",
        "teacher_acc": 73.5,
        "best": best,
        "best_epoch": 9,
        "last": last,
        "mean_last10": last - 0.5,
        "ripsnet_r2": "",
        "student_r2": "",
        "seconds": 100.4,
        "teacher_sha256": "ab12",
        "path_t": "somewhere/best.pth",
        "alpha": 2.0,
        "delta": 5.0,
        "topology": "ripsnet",
        "dim": "0",
        "epochs": 240,
        "lr": 0.05,
        "dataset": "cifar100",
        "trial": seed,
        "seed": seed,
        "weights_source": "published: here",
        "device": "a machine",
        "commit": "0123",
        "command": "python train_student.py",
    } | changes
    if method in ("KD", "KD-control", "CE"):
        row |= WITHOUT_TOPOLOGY | changes
    if "run" not in changes:
        names = ("teacher", "student", "dataset", "method", "variant", "schedule", "teacher_sha256", "trial")
        row["run"] = "_".join(str(row[name]) for name in names if row[name] != "")
    folder.mkdir(exist_ok=True)
    path = folder / f"{row['run']}.csv"
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)
    return path


@pytest.fixture
def runs(tmp_path):
    return tmp_path / "runs"


@pytest.fixture
def tables(tmp_path, monkeypatch, capsys):
    """Runs make_tables.py on tmp_path/runs; returns its Markdown, after checking that terminal and file agree."""
    monkeypatch.chdir(tmp_path)

    def make(*options):
        command = ["--runs", "runs", "--out", "tables.md", *map(str, options)]
        make_tables.main(make_tables.get_args_parser().parse_args(command))
        text = Path("tables.md").read_text()
        assert capsys.readouterr().out.startswith(text)
        return text

    return make


def lines_of(text):
    """The cells of all lines of the first Markdown table in a text."""
    block = re.search(r"(?:^\|.*\n?)+", text, re.MULTILINE).group()
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in block.splitlines()]


def cells(text, name):
    """The cells of the row that begins with a name, by their headings."""
    head, _, *rows = lines_of(text)
    return dict(zip(head, next(row for row in rows if row[0] == name), strict=True))


def section(text, title):
    return re.split(r"^#+ .*\n", text.split(f"# {title}")[1], maxsplit=1, flags=re.MULTILINE)[0]


def test_mean_and_standard_deviation_by_hand(runs, tables):
    for seed, best, last, r2 in ((1, 70.0, 69.0, 0.1), (2, 71.0, 70.0, 0.2), (3, 75.0, 71.0, 0.3)):
        write_run(runs, "TopKD", seed, last, best, ripsnet_r2=0.25, student_r2=r2)
    text = tables()
    assert "## cifar100: resnet56 (73.50 %) > resnet20" in text
    assert cells(text, "TopKD") == {
        "method": "TopKD",
        "best": "72.00 ± 2.65 (3)",  # deviations -2, -1, 3: sqrt(14 / 2)
        "last": "70.00 ± 1.00 (3)",
        "mean of last 10": "69.50 ± 1.00 (3)",
        "R² validation": "0.250",  # one RipsNet taught all three
        "R² student": "0.200 ± 0.100 (3)",
        "seconds": "100 ± 0 (3)",
    }


def test_one_run_has_no_deviation_and_none_no_mean():
    assert (summary([1.005, 1.015], 3), summary([1.5]), summary([])) == ("1.010 ± 0.007 (2)", "1.50", "-")


def test_paired_interval_by_hand():
    # Seed 1 has no partner. Differences 1, 2, 6: mean 3, squares 4 + 1 + 9, s = sqrt(7); t(0.975, 2) = 4.302653.
    values, control = {"1": 9.0, "2": 71.0, "3": 72.0, "4": 76.0}, {"4": 70.0, "3": 70.0, "2": 70.0, "5": 0.0}
    mean, low, high, pairs = paired_difference(values, control)
    assert (mean, pairs) == (3, 3)
    half = 4.302653 * math.sqrt(7 / 3)
    assert (low, high) == pytest.approx((3 - half, 3 + half), rel=1e-6)


def test_equal_differences_have_an_interval_without_width(recwarn):
    assert paired_difference({"1": 2.0, "2": 3.0, "3": 4.0}, {"1": 1.0, "2": 2.0, "3": 3.0}) == (1, 1, 1, 3)
    assert paired_difference({"1": 2.0, "2": 3.0, "3": 4.0}, {"1": 2.0, "2": 3.0, "3": 4.0}) == (0, 0, 0, 3)
    assert not recwarn.list


def test_two_pairs_have_no_interval_and_none_no_mean():
    mean, low, high, pairs = paired_difference({"1": 3.0, "2": 1.0}, {"1": 1.0, "2": 1.0})
    assert (mean, pairs) == (1, 2) and math.isnan(low) and math.isnan(high)
    mean, low, high, pairs = paired_difference({"1": 3.0}, {"2": 1.0})
    assert pairs == 0 and math.isnan(mean) and math.isnan(low) and math.isnan(high)


def test_difference_to_the_control_is_paired_by_seed(runs, tables):
    """Seeds in another order than the files of the control; the control has one seed more, far away."""
    for seed, last in ((1, 70.0), (2, 72.0), (3, 71.0), (4, 50.0)):
        write_run(runs, "KD-control", seed, last)
    for trial, seed, last in ((7, 3, 72.0), (8, 1, 72.0), (9, 2, 75.0)):
        write_run(runs, "TopKD", seed, last, trial=trial)
    text = tables()
    # Differences 1, 2, 3: mean 2, s = 1, half width 4.302653 / sqrt(3) = 2.4841.
    assert cells(text, "TopKD")["last - control"] == "+2.00 [-0.48, +4.48] (3)"
    assert cells(text, "KD-control")["last - control"] == "-"


def test_an_empty_schedule_is_the_published_one_and_no_control_of_another(runs, tables):
    for method, cached, uncached in (("TopKD", 41.0, 51.0), ("KD-control", 40.0, 50.0)):
        write_run(runs, method, last=cached, schedule="cache", teacher_cache=True)
        write_run(runs, method, last=uncached, teacher_cache="")
    text = tables()
    assert re.findall(r"^\| TopKD .*\| (\S+ \(\d\)) +\|$", text, re.MULTILINE)[:2] == ["+1.00 (1)", "+1.00 (1)"]
    assert "-9.00" not in text


def test_a_control_may_take_the_teacher_s_outputs_from_a_table_where_the_run_cannot(runs, tables):
    """Of layers before the last, a table knows nothing."""
    for seed in (1, 2):
        short = {"teacher": "resnet20", "student": "resnet8", "epochs": 8, "seed": seed}
        write_run(runs, "KD-control", last=50.0, schedule="e8 cache", teacher_cache=True, **short)
        write_run(runs, "TopKD-exact", last=51.0, schedule="e8 cache", teacher_cache=True, **short)
        layer = {"variant": "layer-3 layerS-3", "tda_layer_t": -3, "tda_layer_s": -3}
        write_run(runs, "TopKD-exact", last=53.0, schedule="e8", teacher_cache="", **layer, **short)
    write_run(runs, "KD-control", last=40.0, schedule="e8", teacher_cache="", **short | {"seed": 1})
    text = tables()
    assert cells(text, "TopKD-exact layer-3 layerS-3 \\*†")["last - control"] == "+3.00 (2)"
    title = "ablations with the small networks, short schedules and teachers of cifar100_small, schedule e8\n"
    table = section(text, title)
    for arm, difference in (("TopKD-exact", "+1.00 (2)"), ("TopKD-exact layer -3", "+3.00 (2)")):
        assert cells(table, arm)["resnet20 > resnet8 - KD-control"] == difference


@pytest.mark.parametrize(
    "changes",
    [
        {"alpha": 1.0},
        {"epochs": 100},
        {"lr": 0.1},
        {"teacher_sha256": "cd34"},
        {"seed": 2},
        {"amp": "bf16"},
        {"schedule": "e100"},
        {"processes": 4},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_what_differs_from_the_run_is_no_control(runs, tables, changes):
    write_run(runs, "TopKD", amp="off")
    path = write_run(runs, "KD-control", **{"amp": "off"} | changes)
    assert "last - control" not in tables()
    path.unlink()
    write_run(runs, "KD-control", last=68.5, amp="off")
    assert cells(tables(), "TopKD \\*")["last - control"] == "+0.50 (1)"


def test_topology_beside_a_method_is_compared_with_that_method(runs, tables):
    write_run(runs, "Mine", last=70.0, distill="mine", **WITHOUT_TOPOLOGY)
    write_run(runs, "KD-control", last=60.0, distill="kd")
    write_run(runs, "Mine+Top", last=71.0, distill="mine", tda_layer_s="-2")
    assert cells(tables(), "Mine+Top \\*")["last - control"] == "+1.00 (1)"


def test_few_runs_short_schedules_and_assumed_weights_are_marked(runs, tables):
    for seed in (1, 2, 3):
        write_run(runs, "KD", seed)
        write_run(runs, "AT", seed, weights_source="assumed: as elsewhere", **WITHOUT_TOPOLOGY)
        write_run(runs, "SP", seed, epochs=239, **WITHOUT_TOPOLOGY)
        write_run(runs, "CE", seed, weights_source="given on the command line")
        write_run(runs, "KD", seed, dataset="digits", epochs=12)
    write_run(runs, "TopKD", 1, epochs=24, weights_source="given on the command line")
    text = tables()
    pair = section(text, "cifar100: resnet56")
    assert [row[0] for row in lines_of(pair)[2:]] == ["AT ‡", "CE", "KD", "SP †", "TopKD \\*†‡"]
    assert "\\* fewer than 3 runs" in pair and "† schedule shorter than the published 240 epochs" in pair
    assert cells(pair, "TopKD \\*†‡")["last"] == "69.00" and "R² validation |" not in pair
    assert lines_of(section(text, "digits: resnet56"))[2][0] == "KD"
    assert "fewer" not in section(text, "digits: resnet56")


def test_a_method_with_other_settings_is_a_row_of_its_own(runs, tables):
    write_run(runs, "TopKD", last=70)
    write_run(runs, "TopKD", last=60, variant="d10 dim1", delta=10)
    write_run(runs, "TopKD", last=50, variant="T2", kd_T=2.0)
    text = tables()
    assert cells(text, "TopKD \\*")["last"] == "70.00"
    assert cells(text, "TopKD d10 dim1 \\*")["last"] == "60.00"
    assert cells(text, "TopKD T2 \\*")["last"] == "50.00"


def test_names_of_runs_are_not_read(runs, tables):
    """Repetitions with names of other methods, pairs and trials; a run with the name of a repetition."""
    write_run(runs, "TopKD", 1, 70.0, run="resnet8-resnet8_digits_CE_d10_trial7")
    write_run(runs, "TopKD", 2, 71.0, run="mine")
    write_run(runs, "TopKD", 3, 72.0, run="resnet56-resnet20_cifar100_TopKD_dim1_e24_trial1")
    write_run(runs, "TopKD", 4, 60.0, run="resnet8-resnet8_digits_CE_d10_trial8", variant="d10", delta=10.0)
    text = tables()
    assert cells(text, "TopKD")["last"] == "71.00 ± 1.00 (3)" and cells(text, "TopKD d10 \\*")["last"] == "60.00"
    assert text.count("## ") == 1 and len(lines_of(text)) == 4


def test_pairs_teachers_schedules_and_networks_alone_have_their_own_tables(runs, tables):
    write_run(runs, "KD")
    write_run(runs, "KD", teacher_sha256="cd34", teacher_acc="")
    write_run(runs, "KD", last=60, schedule="e24 bf16", epochs=24, amp="bf16")
    alone = {"teacher": "", "teacher_sha256": "", "teacher_acc": ""}
    write_run(runs, "CE", student="resnet56", **alone)
    write_run(runs, "CE", student="resnet20", **alone)
    write_run(runs, "CE", student="resnet20", schedule="e24", epochs=24, last=61.0, **alone)
    text = tables()
    titles = re.findall("^## (.*)$", text, re.MULTILINE)
    assert titles == [
        "cifar100: trained alone",
        "cifar100: trained alone, schedule e24",
        "cifar100: resnet56 (73.50 %) > resnet20",
        "cifar100: resnet56 (73.50 %) > resnet20, schedule e24 bf16",
        "cifar100: resnet56 (accuracy unknown) > resnet20",
    ]
    rows = lines_of(section(text, "cifar100: trained alone\n"))[2:]
    assert [(row[0], row[2]) for row in rows] == [("resnet20 \\*", "69.00"), ("resnet56 \\*", "69.00")]
    scaled = section(text, "cifar100: trained alone, schedule e24")
    assert cells(scaled, "resnet20 \\*†")["last"] == "61.00" and "e8 for 8 epochs" in scaled
    assert cells(section(text, "cifar100: resnet56 (73.50 %) > resnet20, schedule"), "KD \\*†")["last"] == "60.00"
    assert "e8 for 8 epochs" not in section(text, "cifar100: resnet56 (73.50 %) > resnet20\n")


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"lr": 0.1}, "lr is 0.05 and 0.1"),
        ({"epochs": 100, "amp": "bf16"}, "amp is nothing and bf16; epochs is 240 and 100"),
        ({"alpha": 4.0, "delta": 1.0}, "alpha is 2.0 and 4.0; delta is 0.0 and 1.0"),
        ({"seed": 1, "trial": 2}, "a seed is duplicated"),
        ({"processes": 4}, "processes is 1 and 4"),  # a row of an earlier version is of one
        ({"ripsnet_r2": 0.5}, "ripsnet_r2 is nothing and 0.5"),
        ({"topology_sha256": "ef56"}, "topology_sha256 is cd34 and ef56"),
        ({"topology_sha256": "cd34" + 60 * "0" + "+ef"}, f"topology_sha256 is cd34 and cd34{36 * '0'}"),
    ],
)
def test_refuses_to_average_what_is_no_repetition(runs, tables, changes, complaint):
    write_run(runs, seed=1, topology_sha256="cd34")
    write_run(runs, **{"seed": 2, "topology_sha256": "cd34"} | changes)
    with pytest.raises(UserError, match=r"runs/.*_KD_ab12_1.csv, .*_KD_ab12_2.csv: no repetitions of one") as error:
        tables()
    assert complaint in str(error.value)
    assert not Path("tables.md").exists()


def test_all_that_is_no_repetition_is_told_at_once(runs, tables):
    for method in ("KD", "DKD"):
        write_run(runs, method)
        write_run(runs, method, seed=2, lr=0.1)
    with pytest.raises(UserError) as error:
        tables()
    assert str(error.value).count("no repetitions of one run (lr is 0.05 and 0.1)") == 2


def test_of_a_row_of_an_earlier_version_the_r2_alone_tells_its_ripsnet(runs, tables):
    write_run(runs, "TopKD", seed=1, last=70.0, ripsnet_r2=0.25)
    write_run(runs, "TopKD", seed=2, last=71.0, ripsnet_r2=0.25, topology_sha256="cd34")
    assert cells(tables(), "TopKD \\*")["last"] == "70.50 ± 0.71 (2)"
    write_run(runs, "TopKD", seed=3, ripsnet_r2=0.26)
    with pytest.raises(UserError, match="ripsnet_r2 is 0.25 and 0.26"):
        tables()


def test_place_and_machine_may_differ_and_are_counted(runs, tables):
    write_run(runs, seed=1)
    place = {"device": "another", "torch": "3", "path_t": "elsewhere/best.pth", "model_t": "resnet56"}
    write_run(runs, seed=2, commit="4567", command="other", **place)
    write_run(runs, seed=3, device="another")
    text = tables()
    assert cells(text, "KD")["last"] == "69.00 ± 0.00 (3)"
    assert "Runs: 3; devices: 2; commits: 2." in text


def test_a_teacher_s_file_that_names_no_architecture_has_the_same_controls(runs, tables):
    write_run(runs, "TopKD", last=70.0, model_t="")
    write_run(runs, "KD-control", model_t="resnet56")
    assert cells(tables(), "TopKD \\*")["last - control"] == "+1.00 (1)"


def test_a_student_s_r2_may_be_infinite(runs, tables):
    """As of a student whose clouds have collapsed, so that their exact images have no variance."""
    for seed, r2 in ((1, "-inf"), (2, -30.0)):
        write_run(runs, "TopKD", seed=seed, student_r2=r2)
    assert cells(tables(), "TopKD \\*")["R² student"] == "-inf ± nan (2)"


def test_of_a_student_trained_alone_and_by_cross_entropy_the_more_runs_are_shown(runs, tables):
    for seed in (1, 2, 3):
        write_run(runs, "CE", seed=seed, last=69.0, teacher="", teacher_sha256="")
    write_run(runs, "CE", last=60.0)
    column = "resnet56 > resnet20"
    options = ("--published", PUBLISHED)

    def shown():
        text = section(tables(*options), "cifar100, homogeneous pairs: top-1, ours of the last epoch")
        return cells(text, "CE")[column], re.search(r"Runs: \d", text).group()

    assert shown() == ("69.00 ± 0.00 (3)", "Runs: 3")
    for seed in (2, 3):
        write_run(runs, "CE", seed=seed, last=60.0)
    assert shown() == ("60.00 ± 0.00 (3)", "Runs: 6")  # other teachers' columns show those trained alone


def columns(text, name):
    """(heading, cell) of a row."""
    return [pair for pair in cells(text, name).items() if pair[0] != "method"]


def test_published_numbers_stand_beside_ours(runs, tables):
    for seed, last, best in ((1, 71.0, 72.5), (2, 72.0, 73.5), (3, 73.0, 74.5)):
        write_run(runs, "TopKD", seed, last, best)
        write_run(runs, "KD-control", seed, 70.5)
    alone = {"teacher": "", "teacher_sha256": "", "teacher_acc": ""}
    write_run(runs, "CE", last=68.8, **alone)
    write_run(runs, "CE", last=50.8, schedule="e24", epochs=24, **alone)  # not comparable
    write_run(runs, "TopKD", last=9.0, variant="d25", delta=25.0)
    write_run(runs, "TopKD", last=8.0, variant="d25", schedule="e24", epochs=24, delta=25.0)
    text = tables("--published", PUBLISHED)
    last = section(text, "cifar100, homogeneous pairs: top-1, ours of the last epoch")
    pair, published = "resnet56 > resnet20", "resnet56 > resnet20 published"
    assert [heading for heading, _ in columns(last, "KD")][4:6] == [pair, published]
    assert len(columns(last, "KD")) == 14 and columns(last, "KD")[0] == ("wrn_40_2 > wrn_16_2", "-")
    assert cells(last, "teacher")[pair] == "73.50" and cells(last, "teacher")[published] == "72.34 L1, 73.50 ?6"
    assert cells(last, "CE")[pair] == "68.80 \\*" and cells(last, "CE")[published] == "69.06 L1"
    assert cells(last, "KD")[pair] == "-" and cells(last, "KD")[published] == "70.66 L1"
    assert cells(last, "DKD")[published] == "71.97 B3" and cells(last, "DIST")[published] == "71.75 ± 0.30 ?4"
    assert cells(last, "TopKD")[pair] == "72.00 ± 1.00 (3)" and cells(last, "TopKD d25")[pair] == "9.00 \\*"
    assert cells(last, "TopKD d25 e24")[pair] == "8.00 \\*†" and "50.80" not in last
    assert cells(last, "TopKD")[published] == "71.74 B6, 71.66 L6, 70.99 L7"
    notes = " ".join(last.split())
    assert "L last epoch, B best test epoch, ? not stated; 1 RepDistiller README; 2 NORM README; 3 mdistiller" in notes
    order = [row[0] for row in lines_of(last)[2:]]
    assert order[:5] == ["teacher", "CE", "KD", "KD-control", "FitNet"]
    assert order[-3:] == ["TopKD", "TopKD d25", "TopKD d25 e24"]
    best = section(text, "cifar100, homogeneous pairs: top-1, ours of the best test epoch")
    assert cells(best, "TopKD")[pair] == "73.50 ± 1.00 (3)"
    added = section(text, "cifar100, homogeneous pairs: last epoch against the control")
    assert cells(added, "TopKD")[pair] == "+1.50 [-0.98, +3.98] (3)"
    assert [row[0] for row in lines_of(added)[2:]] == ["TopKD", "TopKD d25"]  # TopKD d25 e24 has no control
    assert "heterogeneous pairs: top-1, ours of the last epoch" in text and "heterogeneous pairs: last" not in text


def test_a_published_number_of_another_schedule_is_marked(tables):
    Path("results/runs").mkdir(parents=True)
    Path("results/published.csv").write_bytes(PUBLISHED.read_bytes())
    text = tables("--runs", "results/runs")
    last = section(text, "cifar100, heterogeneous pairs: top-1, ours of the last epoch\n")
    column = "resnet32x4 > ShuffleV2 published"
    assert cells(last, "MLKD")[column] == "78.44 ?5+" and cells(last, "CTKD")[column] == "75.37 ?5"
    note = "+ most likely by a schedule of 480 or 960 epochs instead of 240."
    assert note in " ".join(last.split()) and "+ most likely" not in section(text, "imagenet, homogeneous pairs")


def test_two_teachers_of_a_pair_are_two_columns(runs, tables):
    write_run(runs, "TopKD", last=71.0)
    write_run(runs, "TopKD", last=61.0, schedule="e9", teacher_sha256="cd34", teacher_acc=9)
    text = tables("--published", PUBLISHED)
    ours = [found for found in columns(text, "teacher") if "teacher" in found[0]]
    assert ours == [("resnet56 > resnet20 teacher ab12", "73.50"), ("resnet56 > resnet20 teacher cd34", "9.00")]
    assert cells(text, "TopKD")["resnet56 > resnet20 teacher ab12"] == "71.00 \\*"
    assert cells(text, "TopKD e9")["resnet56 > resnet20 teacher ab12"] == "-"


def test_published_numbers_alone_make_tables(tables, monkeypatch):
    Path("results/runs").mkdir(parents=True)
    Path("results/published.csv").write_bytes(PUBLISHED.read_bytes())
    text = tables("--runs", "results/runs")
    assert text.count("## ") == 4 and "of the best test epoch" not in text
    assert (
        cells(section(text, "imagenet, homogeneous"), "DKD")["resnet34_imagenet > resnet18_imagenet published"]
        == "71.70 B3"
    )
    assert text.count("Ours: not run.") == 4


def test_published_csv_holds_the_published_tables():
    rows = read_published(PUBLISHED)
    pairs = {}
    for row in rows:
        pairs.setdefault((row["dataset"], row["group"]), {})[row["teacher"], row["student"]] = None
    assert list(pairs["cifar100", "homogeneous"]) == [
        ("wrn_40_2", "wrn_16_2"),
        ("wrn_40_2", "wrn_40_1"),
        ("resnet56", "resnet20"),
        ("resnet110", "resnet20"),
        ("resnet110", "resnet32"),
        ("resnet32x4", "resnet8x4"),
        ("vgg13", "vgg8"),
    ]
    assert list(pairs["cifar100", "heterogeneous"]) == [
        ("vgg13", "MobileNetV2"),
        ("ResNet50", "MobileNetV2"),
        ("ResNet50", "vgg8"),
        ("resnet32x4", "ShuffleV1"),
        ("resnet32x4", "ShuffleV2"),
        ("wrn_40_2", "ShuffleV1"),
    ]
    for row in rows:
        expected = {"RepDistiller README": "last", "mdistiller README": "best"}.get(row["source"])
        assert expected in (None, row["epoch"])
    keys = [tuple(row[name] for name in ("dataset", "teacher", "student", "method", "epoch", "source")) for row in rows]
    assert len(set(keys)) == len(keys) == 373
    # CIFAR-100: 14 methods of RepDistiller's README for 13 pairs, without FSP where the shapes do not fit.
    assert sum(row["source"] == "RepDistiller README" for row in rows) == 15 * 13 - 7


def test_tables_are_put_between_the_markers_of_a_file(runs, tables):
    for seed in (1, 2, 3):
        write_run(runs, "TopKD", seed, 71.0 + seed)
        write_run(runs, "TopKD", seed, variant="d25", delta=25.0)
        write_run(runs, "KD-control", seed, 71.0)
        write_run(runs, "KD-control", seed, epochs=24, schedule="e24")
    document = Path("page.md")
    document.write_text("# A\n\nbefore\n<!-- tables -->\nold\n<!-- /tables -->\nafter\n")
    tables("--published", PUBLISHED, "--into", document)
    once = document.read_text()
    assert once.startswith("# A\n\nbefore\n<!-- tables -->\n\n### cifar100, homogeneous pairs: top-1, ours of the last")
    assert once.endswith("\n\n<!-- /tables -->\nafter\n") and "old" not in once
    head = lines_of(once)[0]
    assert len(head) == 1 + 7 + 7 and head[5:7] == ["resnet56 > resnet20", "resnet56 > resnet20 published"]
    names = [row[0] for row in lines_of(once)]
    assert set(cells(once, "TopKD-exact").values()) == {"TopKD-exact", "-"}  # to be filled
    assert "TopKD d25" not in names and "KD-control e24" in names
    assert cells(section(once, "cifar100, homogeneous pairs: last epoch against"), "TopKD") == {
        "method": "TopKD",
        "resnet56 > resnet20": "+2.00 [-0.48, +4.48] (3)",
    }
    assert "best epoch" not in once
    row = cells(section(once, "imagenet, homogeneous pairs: top-1"), "TopKD")
    assert set(row.values()) == {"TopKD", "-"} and "Ours: not run." in section(once, "imagenet, homogeneous pairs")
    tables("--published", PUBLISHED, "--into", document)
    assert document.read_text() == once


def test_into_begins_with_all_that_was_measured_of_pairs_that_nobody_has_published(runs, tables):
    write_run(runs, "KD-control", teacher="resnet20", student="resnet8", last=57.0)
    for delta in (5.0, 125.0, 25.0):
        changes = {"variant": f"d{delta:g}", "delta": delta}
        write_run(runs, "TopKD", teacher="resnet20", student="resnet8", last=57.0 + delta / 100, **changes)
    write_run(runs, "KD-control", teacher="resnet20", student="resnet8", dataset="digits")
    document = Path("page.md")
    document.write_text("<!-- tables -->\n<!-- /tables -->\n")
    tables("--published", PUBLISHED, "--into", document)
    first, others = document.read_text().split("### cifar100, homogeneous pairs: top-1, ours of the last")
    assert [row[0] for row in lines_of(first)[2:]] == [
        "KD-control \\*",
        *(f"TopKD d{delta} \\*" for delta in (5, 25, 125)),
    ]
    assert cells(first, "TopKD d25 \\*")["last - control"] == "+0.25 (1)"
    assert (
        "### cifar100: resnet20 (73.50 %) > resnet8" in first
        and "resnet20 > resnet8" not in others
        and "digits" not in first
    )


def test_ablations_of_which_runs_have_finished_have_tables_of_their_own(runs, tables):
    for seed in (1, 2, 3):
        write_run(runs, "TopKD", seed, 70.0 + seed)
        write_run(runs, "TopKD", seed, 60.0 + seed, variant="dim1", dim="1")
        short = {"epochs": 24, "schedule": "e24"}
        write_run(runs, "TopKD", seed, 50.0 + seed, variant="dim01", dim="01", **short)
        write_run(runs, "TopKD", seed, 50.0, **short)
        write_run(runs, "TopKD", seed, 40.0, teacher_sha256="cd34", **short)
        write_run(runs, "TopKD", seed, 30.0, variant="dim1", dim="1", teacher="resnet110", **short)
    write_run(runs, "TopKD", 1, 70.0, dataset="imagenet", epochs=100)  # whose schedule, too, is the published one
    text = tables()
    assert text.count("ablation, homology dimension\n") == 1
    whole, scaled = (section(text, f"ablation, homology dimension{end}") for end in ("\n", ", schedule e24\n"))
    assert cells(whole, "TopKD dim 0")["resnet56 > resnet20"] == "72.00 ± 1.00 (3)"
    assert cells(whole, "TopKD dim 1")["resnet56 > resnet20"] == "62.00 ± 1.00 (3)"
    assert cells(whole, "TopKD dim 01")["resnet56 > resnet20"] == "-"
    first, second = "resnet56 > resnet20 teacher ab12", "resnet56 > resnet20 teacher cd34"
    assert cells(scaled, "TopKD dim 01") == {"arm": "TopKD dim 01", first: "52.00 ± 1.00 (3) †", second: "-"}
    assert cells(scaled, "TopKD dim 0") == {
        "arm": "TopKD dim 0",
        first: "50.00 ± 0.00 (3) †",
        second: "40.00 ± 0.00 (3) †",
    }
    assert set(cells(scaled, "TopKD dim 1").values()) == {"TopKD dim 1", "-"}
    assert "ablation, layer" not in text


def test_the_small_ablations_are_shown_of_their_own_schedule(runs, tables):
    for seed in (1, 2, 3):
        for text, gain in (("e8", 2.0), ("e8 bf16", 5.0)):
            pair = {"teacher": "resnet20", "student": "resnet8", "epochs": 8, "schedule": text}
            write_run(runs, "KD-control", seed, 50.0, **pair)
            write_run(runs, "TopKD", seed, 50.0 + gain, **pair)
    text = tables()
    title = "ablations with the small networks, short schedules and teachers of cifar100_small, schedule e8\n"
    row = cells(section(text, title), "TopKD")
    assert row["resnet20 > resnet8"].startswith("52.00 ± 0.00 (3)")
    assert row["resnet20 > resnet8 - KD-control"].startswith("+2.00")
    assert title.strip() + " bf16" not in text


def test_latex_is_the_same_table_with_its_characters_escaped(runs, tables):
    for seed in (1, 2):
        write_run(runs, "TopKD", seed, 70.0, ripsnet_r2=-0.25, teacher="wrn_40_2", epochs=24)
        write_run(runs, "KD-control", seed, 70.5, teacher="wrn_40_2", epochs=24)
    text = tables()
    tex = Path("tables.tex").read_text()
    assert tex.startswith("% \\usepackage{booktabs,adjustbox}\n")
    for part in ("table", "tabular", "adjustbox"):
        assert tex.count(rf"\begin{{{part}}}") == tex.count(rf"\end{{{part}}}") == 1
    assert r"\caption{cifar100: wrn\_40\_2 (73.50 \%) $>$ resnet20}" in tex
    body = re.search(r"\\begin{tabular}{(l(r+))}\n\\toprule\n(.*)\n\\bottomrule", tex, re.DOTALL)
    rows = body[3].replace("\\midrule\n", "").splitlines()
    assert all(row.endswith(r" \\") and row.count("&") == len(body[2]) for row in rows)
    assert r"TopKD $^*$$^\dagger$ & 70.00 $\pm$ 0.00 (2) & 70.00 $\pm$ 0.00 (2) &" in rows[2]
    assert rows[2].endswith(r" & $-$0.250 & 100 $\pm$ 0 (2) & $-$0.50 (2) \\")
    assert "R$^2$ validation" in rows[0] and rows[1].startswith("KD-control ")
    plain_cells = [[cell.replace("\\*", "*") for cell in row] for row in lines_of(text)]
    table = {"$^*$": "*", r"$^\dagger$": "†", r"$\pm$": "±", "$-$": "-", "$^2$": "²"}
    for row, expected in zip(rows, [plain_cells[0], *plain_cells[2:]], strict=True):
        for code, character in table.items():
            row = row.replace(code, character)
        assert row.removesuffix(r" \\").split(" & ") == expected
    assert not re.search(r"(?<!\\)[%_#](?!.*usepackage)", tex.split("\n", 1)[1])
    assert tex.isascii()


def test_a_grid_of_ablations(runs):
    for seed in (1, 2, 3):
        write_run(runs, "TopKD-exact", seed, 70.0 + seed)
        write_run(runs, "KD-control", seed, 70.0)
    write_run(runs, "TopKD", 1, 60.0, epochs=9)
    found = {each["method"]: each for each in repetitions(read_runs(runs))}
    exact = {"0": found["KD-control"], "1": found["TopKD-exact"]}
    table = grid("Delta", ["0", "1", "5"], {"ripsnet": {"1": found["TopKD"]}, "exact": exact}, "0")
    assert table.head == ["arm", "ripsnet", "ripsnet\n- 0", "exact", "exact\n- 0"]
    assert table.rows == [
        ["0", "-", "-", "70.00 ± 0.00 (3)", "-"],
        ["1", "60.00 *†", "-", "72.00 ± 1.00 (3)", "+2.00 [-0.48, +4.48] (3)"],
        ["5", "-", "-", "-", "-"],
    ]
    assert table.notes[-1] == "Runs: 7; device: a machine; commit: 0123."
    text = markdown(table, level=3)
    assert text.startswith("### Delta\n\n| arm | ripsnet") and "60.00 \\*†" in text
    assert r"exact \\ - 0}" in latex(table)
    alone = grid("Delta", ["1"], {"exact": exact}, column="best")
    assert (alone.head, alone.rows) == (["arm", "exact"], [["1", "70.00 ± 0.00 (3)"]])
    assert alone.notes[-1] == "Runs: 3; device: a machine; commit: 0123."


def damaged(path):
    return path.write_bytes(path.read_bytes()[:-40])


@pytest.mark.parametrize(
    "spoil, what",
    [
        (lambda path: path.write_text("epoch,loss\n1,2\n2,1\n"), "2 rows, expected one row of a finished run"),
        (lambda path: path.write_text("epoch,loss\n1,2\n"), "1 rows, expected one row of a finished run, with the"),
        (lambda path: path.write_bytes(b""), "0 rows, expected one row"),
        (lambda path: path.write_bytes(b"\xff\xfe\x00"), "not readable as CSV ("),
        (lambda path: path.write_text('run,method\n"a,b\n'), "not readable as CSV (unexpected end of data)"),
        (damaged, "damaged, a row and the heading differ in length"),
        (lambda path: path.write_text(path.read_text().replace("69.0,", "6q,")), "last is '6q', expected a number"),
        (lambda path: path.write_text(path.read_text().replace("70.0,", "170,")), "best is '170', expected a number"),
        (lambda path: path.write_text(path.read_text().replace("70.0,", "-7,")), "best is '-7', expected a number"),
        (lambda path: path.write_text(path.read_text().replace(",240,", ",,")), "epochs is '', expected a number"),
        (
            lambda path: path.write_text(path.read_text().replace(",240,", ",nan,")),
            "epochs is 'nan', expected a number",
        ),
        (lambda path: (path.unlink(), path.mkdir()), ": Is a directory"),
    ],
)
def test_damaged_and_foreign_rows_are_one_line(runs, tmp_path, monkeypatch, capsys, spoil, what):
    monkeypatch.chdir(tmp_path)
    path = write_run(runs)
    spoil(path)
    line = refused(monkeypatch, capsys, make_tables, "--runs", "runs")
    assert "_KD_ab12_1.csv: " in line and what in line
    assert not Path("results").exists()


@pytest.mark.parametrize(
    "dropped, absent",
    [
        (LATER_COLUMNS, "the row of an earlier version, it has no variant and schedule; remove it and run its command"),
        (["schedule"], "the row of an earlier version, it has no schedule; remove it"),
        (["schedule", "seed"], "1 rows, expected one row of a finished run"),
    ],
)
def test_a_row_of_an_earlier_version_is_one_line(runs, tmp_path, monkeypatch, capsys, dropped, absent):
    monkeypatch.chdir(tmp_path)
    path = write_run(runs)
    write_without(path, dropped)
    line = refused(monkeypatch, capsys, make_tables, "--runs", "runs")
    assert f"runs/{path.name}: {absent}" in line


def write_without(path, columns):
    """The row again without some columns, as csv.DictWriter writes it."""
    [row] = read_csv(path)
    kept = {name: value for name, value in row.items() if name not in columns}
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, kept, lineterminator="\n")
        writer.writeheader()
        writer.writerow(kept)


def test_other_bad_input_is_one_line(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert "--runs: found no CSV file in runs" in refused(monkeypatch, capsys, make_tables, "--runs", "runs")
    assert "in results/runs; train_teacher.py" in refused(monkeypatch, capsys, make_tables)
    line = refused(monkeypatch, capsys, make_tables, "--runs", "runs", "--published", PUBLISHED)
    assert "--runs: found no CSV file in runs" in line
    write_run(runs)
    given = (monkeypatch, capsys, make_tables, "--runs", "runs")
    assert "--out: found x.tex, expected the Markdown file" in refused(*given, "--out", "x.tex")
    assert "--out: found ., expected the Markdown file" in refused(*given, "--out", ".")
    assert "absent.csv: No such file or directory" in refused(*given, "--published", "absent.csv")
    assert "--into: needs the published accuracies" in refused(*given, "--into", "README.md")
    for text, what in (
        ("dataset,method\na,b\n", "expected rows under the heading dataset,group,method,teacher"),
        (PUBLISHED.read_text().replace("75.61,,last", "75.61,,first", 1), "row 2: found top1 '75.61', std '', epoch"),
        (PUBLISHED.read_text().replace("75.61,", "7561,", 1), "row 2: found top1 '7561'"),
        (PUBLISHED.read_text().replace(",0.24,", ",x,", 1), "std 'x'"),
    ):
        Path("published.csv").write_text(text)
        assert what in refused(*given, "--published", "published.csv")
    given += ("--published", PUBLISHED, "--into", "page.md")
    assert "--into: page.md is not readable as text" in refused(*given)
    for text in ("no markers\n", "<!-- /tables -->\n<!-- tables -->\n", "<!-- tables -->\n" * 2 + "<!-- /tables -->\n"):
        Path("page.md").write_text(text)
        assert "--into: page.md needs the lines <!-- tables --> and" in refused(*given)
        assert Path("page.md").read_text() == text
    assert "--into: found page.md, a file that --out writes" in refused(*given, "--out", "page.md")
    assert not Path("results").exists()


def test_a_path_that_cannot_be_written_is_one_line_that_names_the_option(runs, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    write_run(runs)
    given = (monkeypatch, capsys, make_tables, "--runs", "runs")
    Path("folder.md").mkdir()
    Path("file").write_text("")
    assert "--out: cannot write folder.md: Is a directory" in refused(*given, "--out", "folder.md")
    assert "--out: cannot write file/tables.md: " in refused(*given, "--out", "file/tables.md")
    assert "--out: cannot write " in refused(*given, "--out", "n" * 300)
    Path("page.md").write_text("<!-- tables -->\n<!-- /tables -->\n")
    monkeypatch.setattr(os, "replace", only_tables(os.replace))
    given += ("--published", PUBLISHED, "--into", "page.md", "--out", "tables.md")
    assert "--into: cannot write page.md: " in refused(*given)
    assert Path("tables.md").exists() and Path("tables.tex").exists()
    assert Path("page.md").read_text() == "<!-- tables -->\n<!-- /tables -->\n"


def only_tables(replace):
    """`os.replace` where no file can be replaced but the tables."""

    def refuse_others(old, new):
        if Path(new).stem != "tables":
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(new))
        replace(old, new)

    return refuse_others


@pytest.fixture
def script(runs, tmp_path):
    """Runs make_tables.py as a process of its own in tmp_path, on three rows; the shell gets its command as "$@"."""
    for seed in (1, 2, 3):
        write_run(runs, "TopKD", seed)

    def start(shell, **environment):
        command = [sys.executable, str(ROOT / "make_tables.py"), "--runs", "runs", "--out", "tables.md"]
        return subprocess.run(
            ["bash", "-c", shell, "bash", *command],
            cwd=tmp_path,
            env=os.environ | environment,
            capture_output=True,
            text=True,
            encoding="utf-8",
        )

    return start


@pytest.mark.parametrize(
    "shell, code, said",
    [
        pytest.param('"$@" >&-', 0, "", marks=pytest.mark.slow),
        pytest.param(
            '"$@" > /dev/full',
            1,
            "make_tables.py: cannot write its output: No space left on device\n",
            marks=pytest.mark.slow,
        ),
        ('set -o pipefail; "$@" | true', 1, ""),
        pytest.param('"$@" >&- 2>&-', 0, "", marks=pytest.mark.slow),
    ],
    ids=["closed", "full", "a reader that goes away", "both closed"],
)
def test_nothing_written_is_lost_where_nobody_reads(script, tmp_path, shell, code, said):
    ended = script(f"{shell}", PYTHONUNBUFFERED="1")
    assert (ended.returncode, ended.stderr) == (code, said)
    assert "69.00 ± 0.00 (3)" in (tmp_path / "tables.md").read_text(encoding="utf-8")
    assert (tmp_path / "tables.tex").read_text(encoding="utf-8").rstrip().endswith(r"\end{table}")


@pytest.mark.slow
def test_characters_that_a_terminal_cannot_show_are_replaced(script, tmp_path):
    ended = script('"$@"', PYTHONIOENCODING="ascii", LC_ALL="C")
    assert ended.returncode == 0 and "69.00 ? 0.00 (3)" in ended.stdout and not ended.stderr
    assert "69.00 ± 0.00 (3)" in (tmp_path / "tables.md").read_text(encoding="utf-8")


def test_torch_is_not_loaded(script):
    ended = script('python=$1; shift; "$python" -X importtime "$@"')
    assert ended.returncode == 0 and "scipy.stats" in ended.stderr
    assert not re.search(r"\| +torch(\.|$)", ended.stderr, re.MULTILINE)


def test_the_tables_in_the_repository_are_those_of_its_rows(tables, tmp_path):
    names = ("README.md", "tables.md", "tables.tex")
    for name in names:
        (tmp_path / name).write_text((ROOT / "results" / name).read_text())
    tables("--runs", ROOT / "results" / "runs", "--published", PUBLISHED, "--into", "README.md")
    for name in names:
        found = (tmp_path / name).read_text()
        assert found == (ROOT / "results" / name).read_text(), f"results/{name}: run make_tables.py again"


@pytest.mark.parametrize("path", ROWS, ids=lambda path: path.stem)
def test_a_row_s_accuracies_are_those_of_its_log(path):
    [row] = read_csv(path)
    log = read_csv(path.parent.parent / "logs" / path.name)
    accuracies = [float(epoch["test_acc"]) for epoch in log]
    assert len(log) == int(row["epochs"])
    assert (float(row["last"]), float(row["best"])) == (accuracies[-1], max(accuracies))
    assert accuracies.index(max(accuracies)) + 1 == int(row["best_epoch"])
    assert float(row["seconds"]) == pytest.approx(sum(float(epoch["seconds"]) for epoch in log), abs=0.1)


@pytest.mark.parametrize("path", [path for path in ROWS if "-" in path.stem], ids=lambda path: path.stem)
def test_a_student_s_row_carries_the_command_that_makes_it_again(path):
    """The command's options, resolved, are those of the row; so are method, variant and schedule."""
    [row] = read_csv(path)
    args = train_student.get_args_parser().parse_args(shlex.split(row["command"])[2:])
    asked = [read(args, section) for section in (Loss, Clouds, Data, Training, Repetition)]
    settings = resolve(*asked, row["teacher"], row["student"])
    own = schedule(settings.training, row["student"])
    assert (row["method"], row["variant"], row["schedule"]) == (method_name(settings), settings.variant, own)
    values = settings.loss, settings.clouds, settings.data, settings.training, settings.repetition
    options = {name: "" if value is None else str(value) for name, value in plain(*values).items()}
    apart = NOT_PART_OF_A_RUN.union(settings.without_effect)
    same = options.keys() & row.keys() - apart
    assert {name: options[name] for name in same} == {name: row[name] for name in same}
    assert {"seed", "epochs", "lr", "alpha", "delta", "batch_size", "amp", "dataset", "weights_source"} <= same
    assert args.path_t == row["path_t"]
