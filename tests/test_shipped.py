"""The checkpoints that the repository ships: what save_t_models/README.md says of them, and that they fit together."""

import csv
import hashlib
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from support.gudhis import gudhi_image
from test_ripsnet_fit import numpy_ripsnet

from helper.networks import load_network
from helper.student.topology import load_ripsnet, load_spec
from ripsnet import ImageSpec

ROOT = Path(__file__).resolve().parent.parent
TEACHER = ROOT / "save_t_models/resnet20_cifar100_small_trial1/best.pth"
CLOUDS = ROOT / "ripsnet/resnet20_cifar100_small_trial1/layer-1_n64_eval_released"
RIPSNET = CLOUDS / "ripsnet_dim0_mean/best.pth"
SAMPLE = CLOUDS / "sample_dim0.npz"
# Run -> the beginning of the SHA-256 of its row as it was measured, before it had the columns variant and schedule.
MEASURED = {
    "resnet20-resnet8_cifar100_CE+Top-exact_small_trial1": "e89790360291462c",
    "resnet20-resnet8_cifar100_CE_small_trial1": "81077cf800d6ba4a",
    "resnet20-resnet8_cifar100_KD-control_small_trial1": "1514278b4a90856e",
    "resnet20-resnet8_cifar100_KD-control_small_trial2": "7d8054acf03f9e0e",
    "resnet20-resnet8_cifar100_KD-control_small_trial3": "ff0ec69fc1961a87",
    "resnet20-resnet8_cifar100_KD-control_small_trial4": "9ee4f568a9b124de",
    "resnet20-resnet8_cifar100_KD-control_small_trial5": "23e143b548dac3f3",
    "resnet20-resnet8_cifar100_TopKD-exact_d125_small_trial1": "692fec05b82afb9b",
    "resnet20-resnet8_cifar100_TopKD-exact_d1_small_trial1": "a394387e8def5bf6",
    "resnet20-resnet8_cifar100_TopKD-exact_d25_small_trial1": "25ebb7a25301e000",
    "resnet20-resnet8_cifar100_TopKD-exact_small_trial1": "abcb42b67bfb6fd8",
    "resnet20-resnet8_cifar100_TopKD-exact_small_trial2": "6bc79ce595419176",
    "resnet20-resnet8_cifar100_TopKD-exact_small_trial3": "5109be751f428ca7",
    "resnet20-resnet8_cifar100_TopKD-exact_small_trial4": "b0570d94f3c8383c",
    "resnet20-resnet8_cifar100_TopKD-exact_small_trial5": "d0ee43675de2ecc5",
    "resnet20-resnet8_cifar100_TopKD-wasserstein_d125_small_trial1": "72de4aa732f7907e",
    "resnet20-resnet8_cifar100_TopKD-wasserstein_d1_small_trial1": "d0b830fda85c71c7",
    "resnet20-resnet8_cifar100_TopKD-wasserstein_d25_small_trial1": "71b8ad0bc6e06f6d",
    "resnet20-resnet8_cifar100_TopKD-wasserstein_small_trial1": "9a5f7c1892781c0d",
    "resnet20-resnet8_cifar100_TopKD-wasserstein_small_trial2": "37dd3eb84287908e",
    "resnet20-resnet8_cifar100_TopKD-wasserstein_small_trial3": "a4d2db46f23ebb09",
    "resnet20-resnet8_cifar100_TopKD_small_trial1": "d2eb8810233cb9d7",
    "resnet20-resnet8_cifar100_TopKD_small_trial2": "44daeeb6aa06d5e3",
    "resnet20-resnet8_cifar100_TopKD_small_trial3": "428d25c510774fee",
    "resnet20-resnet8_cifar100_TopKD_small_trial4": "091c2e3c5acb59dc",
    "resnet20-resnet8_cifar100_TopKD_small_trial5": "dd18ac6382c735f3",
    "resnet20_cifar100_small_trial1": "ea8313134bb18d38",
}


# Path -> SHA-256, as README lists them.
LISTED = dict(
    re.findall(r"^\| `(\S+)` \|.*\| `(\w+)` \|$", (ROOT / "save_t_models" / "README.md").read_text(), re.MULTILINE)
)


def test_readme_lists_the_teacher_and_what_was_made_of_it():
    assert LISTED.keys() >= {
        str(path.relative_to(ROOT)) for path in (TEACHER, CLOUDS / "spec_dim0.json", SAMPLE, RIPSNET)
    }


@pytest.mark.parametrize("path", LISTED)
def test_a_checkpoint_is_the_file_that_readme_lists(path):
    assert hashlib.sha256((ROOT / path).read_bytes()).hexdigest() == LISTED[path]


@pytest.mark.parametrize("path", [path for path in LISTED if "/ripsnet_dim" in path])
def test_a_ripsnet_belongs_to_the_spec_beside_it(path):
    folder, name = (ROOT / path).parent.parent, Path(path).parent.name
    _, dim, operator = name.split("_")
    spec = load_spec(folder / f"spec_{dim}.json")
    assert spec.teacher_sha256 == load_network(TEACHER, None, "--model_t").sha256
    _, content = load_ripsnet(ROOT / path, operator, spec.cloud_width)
    assert ImageSpec.from_dict(content["spec"]) == spec
    quality = json.loads((ROOT / path).with_name("quality.json").read_text())
    assert (
        quality["r2"] == content["quality"]["r2"] == pytest.approx(1 - quality["val_mse"] / quality["mean_image_mse"])
    )


def test_the_teacher_loads_with_the_accuracy_of_its_row():
    teacher = load_network(TEACHER, None, "--model_t", dataset="cifar100")
    (row,) = csv.DictReader((ROOT / "results/runs" / f"{TEACHER.parent.name}.csv").read_text().splitlines())
    assert (teacher.arch, teacher.accuracy) == ("resnet20", float(row["best"]))


@pytest.mark.parametrize("run", MEASURED)
def test_every_number_of_a_row_is_as_it_was_measured(run):
    text = (ROOT / "results/runs" / f"{run}.csv").read_text()
    columns, row = csv.reader(text.splitlines())
    kept = [index for index, name in enumerate(columns) if name not in ("variant", "schedule")]
    measured = io.StringIO(newline="")
    csv.writer(measured, lineterminator="\n").writerows([line[index] for index in kept] for line in (columns, row))
    assert hashlib.sha256(measured.getvalue().encode()).hexdigest().startswith(MEASURED[run])


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
