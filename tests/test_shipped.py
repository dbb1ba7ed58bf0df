"""The checkpoints that the repository ships: what save_t_models/README.md says of them, and that they fit together."""

import csv
import hashlib
import json
import re
from pathlib import Path

import numpy as np
import pytest
from test_clouds import gudhi_image
from test_ripsnet_fit import numpy_ripsnet

from helper.checkpoint import load_network
from helper.topology import load_ripsnet, load_spec
from ripsnet import ImageSpec

ROOT = Path(__file__).resolve().parent.parent
TEACHER = ROOT / "save_t_models/resnet20_cifar100_small_trial1/best.pth"
CLOUDS = ROOT / "ripsnet/resnet20_cifar100_small_trial1/layer-1_n64_eval_released"
RIPSNET = CLOUDS / "ripsnet_dim0_mean/best.pth"
SAMPLE = CLOUDS / "sample_dim0.npz"


@pytest.mark.parametrize("path", [TEACHER, CLOUDS / "spec_dim0.json", SAMPLE, RIPSNET], ids=lambda path: path.name)
def test_a_checkpoint_is_the_file_that_readme_lists(path):
    text = (ROOT / "save_t_models" / "README.md").read_text()
    line = re.search(rf"^\|.*{path.parent.name}/{path.name}`.*$", text, re.MULTILINE)[0]
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


def test_the_sample_s_images_are_gudhi_s_and_ripsnet_errs_on_them_as_on_all_validation_clouds():
    sample, spec = np.load(SAMPLE), load_spec(CLOUDS / "spec_dim0.json")
    assert sample["cloud"].tolist() == list(range(spec.num_clouds - 64, spec.num_clouds))
    assert sample["points"].shape == (64, spec.points, spec.cloud_width)
    expected = [gudhi_image(cloud, spec.to_dict()) for cloud in sample["points"]]
    assert np.abs(sample["images"] - expected).max() < 1e-5
    network, content = load_ripsnet(RIPSNET, "mean", spec.cloud_width)
    found = numpy_ripsnet(network.state_dict(), sample["points"])
    error = np.mean((found - sample["images"]) ** 2)
    assert error == pytest.approx(content["quality"]["val_mse"], rel=0.15)
    assert error < 0.8 * np.mean((sample["images"] - sample["images"].mean(axis=0)) ** 2)
