"""make_tables.py: the numbers of a table, and what it refuses to average."""

import csv

import pytest

import make_tables
from helper.options import UserError


def write_run(folder, method="KD", seed=1, best=70.0, last=69.0, **changes):
    """A row as train_student.py leaves it; returns it."""
    row = {
        "run": f"resnet56-resnet20_cifar100_{method}_trial{seed}",
        "method": method,
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
        "epochs": 240,
        "lr": 0.05,
        "dataset": "cifar100",
        "trial": seed,
        "seed": seed,
        "device": "a machine",
        "commit": "0123",
        "command": "python train_student.py",
    } | changes
    folder.mkdir(exist_ok=True)
    with open(folder / f"{row['run']}.csv", "w", newline="") as file:
        writer = csv.DictWriter(file, row)
        writer.writeheader()
        writer.writerow(row)
    return row


@pytest.fixture
def tables(tmp_path, capsys):
    """Runs make_tables.py on tmp_path/runs; returns its text, after checking that terminal and file agree."""

    def make():
        out = tmp_path / "tables.md"
        make_tables.main(
            make_tables.get_args_parser().parse_args(["--runs", str(tmp_path / "runs"), "--out", str(out)])
        )
        text = out.read_text()
        assert capsys.readouterr().out.startswith(text)
        return text

    return make


def cells(text, name):
    """The cells of the row that begins with a name, by their headings."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    headings = next(line for line in lines if line[0] in ("method", "network"))
    return dict(zip(headings, next(line for line in lines if line[0] == name), strict=True))


def test_mean_and_standard_deviation_by_hand(tmp_path, tables):
    for seed, best, last, r2 in ((1, 70.0, 69.0, 0.1), (2, 71.0, 70.0, 0.2), (3, 75.0, 71.0, 0.3)):
        write_run(tmp_path / "runs", "TopKD", seed, best, last, ripsnet_r2=0.25, student_r2=r2)
    text = tables()
    assert "## cifar100: resnet56 (73.50 %) > resnet20" in text
    assert cells(text, "TopKD") == {
        "method": "TopKD",
        "best": "72.00 ± 2.65 (3)",  # deviations -2, -1, 3: sqrt(14 / 2)
        "last": "70.00 ± 1.00 (3)",
        "mean of last 10": "69.50 ± 1.00 (3)",
        "R² validation": "0.250 ± 0.000 (3)",
        "R² student": "0.200 ± 0.100 (3)",
        "seconds": "100 ± 0 (3)",
    }


def test_few_seeds_are_marked_and_unused_columns_left_out(tmp_path, tables):
    write_run(tmp_path / "runs", "CE", 1)
    for seed in (1, 2, 3):
        write_run(tmp_path / "runs", "KD", seed)
    text = tables()
    assert cells(text, "CE \\*")["last"] == "69.00"
    assert cells(text, "KD")["last"] == "69.00 ± 0.00 (3)"
    assert "R² validation |" not in text


def test_a_method_with_other_weights_is_a_row_of_its_own(tmp_path, tables):
    write_run(tmp_path / "runs", "TopKD", last=70)
    write_run(tmp_path / "runs", "TopKD", last=60, run="resnet56-resnet20_cifar100_TopKD_d10_dim1_trial1", delta=10)
    text = tables()
    assert cells(text, "TopKD \\*")["last"] == "70.00"
    assert cells(text, "TopKD d10 dim1 \\*")["last"] == "60.00"


def test_pairs_teachers_and_networks_alone_have_their_own_tables(tmp_path, tables):
    write_run(tmp_path / "runs", "KD")
    write_run(
        tmp_path / "runs", "KD", run="resnet56-resnet20_cifar100_KD_trial2", teacher_sha256="cd34", teacher_acc=""
    )
    write_run(tmp_path / "runs", run="resnet56_cifar100_trial1", teacher="", student="resnet56", teacher_sha256="")
    text = tables()
    assert text.count("## ") == 3
    assert "## cifar100: resnet56 (accuracy unknown) > resnet20" in text
    assert "## cifar100: trained alone" in text
    alone = text.split("## cifar100: trained alone")[1].split("##")[0]
    assert cells(alone, "resnet56 \\*")["best"] == "70.00"


@pytest.mark.parametrize(
    "changes, complaint",
    [
        ({"lr": 0.1}, "lr is 0.05 and 0.1"),
        ({"epochs": 100, "amp": "bf16"}, "amp is nothing and bf16; epochs is 240 and 100"),
        ({"seed": 1, "trial": 2, "run": "resnet56-resnet20_cifar100_KD_trial2"}, "a seed comes twice"),
    ],
)
def test_refuses_to_average_what_is_no_repetition(tmp_path, tables, changes, complaint):
    write_run(tmp_path / "runs", seed=1)
    write_run(tmp_path / "runs", **{"seed": 2} | changes)
    with pytest.raises(UserError, match=r"KD_trial1.csv, .*KD_trial2.csv: no repetitions of one run") as error:
        tables()
    assert complaint in str(error.value)
    assert not (tmp_path / "tables.md").exists()


def test_place_and_machine_may_differ(tmp_path, tables):
    write_run(tmp_path / "runs", seed=1)
    write_run(tmp_path / "runs", seed=2, device="another", commit="4567", command="other", path_t="elsewhere/best.pth")
    assert cells(tables(), "KD \\*")["last"] == "69.00 ± 0.00 (2)"


def test_refuses_an_empty_folder_and_a_foreign_file(tmp_path, tables):
    with pytest.raises(UserError, match="--runs: found no CSV file"):
        tables()
    write_run(tmp_path / "runs")
    (tmp_path / "runs" / "log.csv").write_text("epoch,loss\n1,2\n2,1\n")
    with pytest.raises(UserError, match="log.csv: 2 rows, expected one row of a finished run"):
        tables()
