"""The checkpoints that the repository ships: what README says of them, and that they fit together."""

import csv
import hashlib
import json
import re
from pathlib import Path

import pytest

from helper.checkpoint import load_network
from helper.topology import load_ripsnet, load_spec
from ripsnet import ImageSpec

ROOT = Path(__file__).resolve().parent.parent
TEACHER = ROOT / "save_t_models/resnet20_cifar100_small_trial1/best.pth"
CLOUDS = ROOT / "ripsnet/resnet20_cifar100_small_trial1/layer-1_n64_eval_released"
RIPSNET = CLOUDS / "ripsnet_dim0_mean/best.pth"


@pytest.mark.parametrize("path", [TEACHER, CLOUDS / "spec_dim0.json", RIPSNET], ids=lambda path: path.parent.name)
def test_a_checkpoint_is_the_file_that_readme_lists(path):
    line = re.search(rf"^\|.*{path.parent.name}/{path.name}`.*$", (ROOT / "README.md").read_text(), re.MULTILINE)[0]
    assert hashlib.sha256(path.read_bytes()).hexdigest() in line


def test_the_teacher_loads_with_the_accuracy_of_its_row():
    teacher = load_network(TEACHER, None, "--model_t", dataset="cifar100")
    (row,) = csv.DictReader((ROOT / "results/runs" / f"{TEACHER.parent.name}.csv").read_text().splitlines())
    assert (teacher.arch, teacher.accuracy) == ("resnet20", float(row["best"]))


def test_spec_and_ripsnet_belong_to_the_teacher():
    spec = load_spec(CLOUDS / "spec_dim0.json")
    assert spec.teacher_sha256 == load_network(TEACHER, None, "--model_t").sha256
    _, content = load_ripsnet(RIPSNET, "mean", spec.cloud_width)
    assert ImageSpec.from_dict(content["spec"]) == spec
    quality = json.loads((RIPSNET.parent / "quality.json").read_text())
    assert (
        quality["r2"] == content["quality"]["r2"] == pytest.approx(1 - quality["val_mse"] / quality["mean_image_mse"])
    )
