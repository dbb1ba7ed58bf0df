"""ImageNet's settings from the command line to the commands of its tables, without its images."""

import hashlib
import importlib
from collections import OrderedDict

import PIL
import pytest
import torch
import torchvision
from support.running import refused

import evaluate
from dataset import dataset_dict, folder
from helper.cli.parser import read
from helper.files.provenance import versions
from helper.networks import TORCHVISION, Network, load_network
from helper.report.evaluation import network_report, report_text
from helper.settings import Clouds
from models import create_model


def parsed(script, *options):
    """The options of a script as `run` reads them, with the data set's own defaults."""
    parser = importlib.import_module(script).get_args_parser()
    words = [str(option) for option in options]
    parser.adopt_recipe(words)
    return parser.parse_args(words)


IMAGENET = ("--path_t", "t.pth", "--dataset", "imagenet", "--device", "cpu")


def test_the_epochs_of_a_data_set_are_those_of_networks_not_of_a_fit():
    assert parsed("train_teacher", "--dataset", "imagenet").epochs == 100
    assert parsed("train_ripsnet", *IMAGENET).epochs == 25000


@pytest.mark.parametrize(
    "script, command",
    [
        ("generate_PCD_PI", ()),
        ("train_ripsnet", ()),
        ("train_student", ("--model_s", "resnet18_imagenet")),
        ("evaluate", ("--path", "s.pth")),
        ("visualize", ("pi",)),
        ("visualize", ("scatter",)),
        ("visualize", ("diagram",)),
    ],
)
def test_every_script_takes_the_clouds_of_the_data_set(script, command):
    clouds = read(parsed(script, *command, *IMAGENET), Clouds)
    assert (clouds.cloud_size, clouds.points) == (64, 64)
    clouds = read(parsed(script, *command, *IMAGENET, "--cloud_size", 32), Clouds)
    assert clouds.points == 32
    clouds = read(parsed(script, *command, "--path_t", "t.pth", "--batch_size", 32, "--device", "cpu"), Clouds)
    assert (clouds.cloud_size, clouds.points) == (None, 32)


def test_a_network_is_scored_without_topology():
    args = parsed("evaluate", "--path", "s.pth", "--dataset", "imagenet", "--device", "cpu")
    evaluate.check_options(args, evaluate.comparison_of(args))
    assert args.batch_size == dataset_dict["imagenet"].recipe.batch_size


# Files of torchvision's


def foreign_weights():
    """Weights as torchvision's first files hold them: parameters in an OrderedDict, without num_batches_tracked."""
    torch.manual_seed(0)
    weights = OrderedDict()
    for name, value in torchvision.models.resnet18().state_dict().items():
        if not name.endswith("num_batches_tracked"):
            weights[name] = value if "running" in name else torch.nn.Parameter(value)
    return weights


@pytest.fixture(scope="module")
def old_file(tmp_path_factory):
    path = tmp_path_factory.mktemp("hub") / "old.pth"
    torch.save(foreign_weights(), path, _use_new_zipfile_serialization=False)
    return path


def named(source, folder, digits=None):
    """A copy under the name that torchvision would give it, or with other digits."""
    found = hashlib.sha256(source.read_bytes()).hexdigest()[:8]
    path = folder / f"resnet18-{digits or found}.pth"
    path.write_bytes(source.read_bytes())
    return path


def test_a_file_from_before_zip_archives_and_counters_is_torchvisions_network(old_file, tmp_path):
    network = load_network(named(old_file, tmp_path), "resnet18_imagenet", "--model", dataset="imagenet")
    counters = [value for name, value in network.model.state_dict().items() if name.endswith("num_batches_tracked")]
    assert len(counters) == 20 and all(value == 0 and value.dtype == torch.int64 for value in counters)
    reference = torchvision.models.resnet18()
    reference.load_state_dict(foreign_weights(), strict=False)
    images = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(network.model(images), reference.eval()(images), rtol=1e-4, atol=1e-4)
    complete = tmp_path / "complete.pth"
    torch.save(reference.state_dict(), complete)
    assert load_network(complete, "resnet18_imagenet", "--model").sha256 == network.sha256
    assert (network.num_classes, network.accuracy, network.dataset) == (1000, None, None)


def test_a_file_that_is_not_what_its_name_says_is_refused(old_file, tmp_path, monkeypatch, capsys):
    path = named(old_file, tmp_path, "f37072fd")
    found = hashlib.sha256(old_file.read_bytes()).hexdigest()[:8]
    options = ("--path", path, "--model", "resnet18_imagenet", "--dataset", "imagenet", "--device", "cpu")
    line = refused(monkeypatch, capsys, evaluate, *options)
    assert f"{path}: damaged, its SHA-256 begins with {found} and not as its name says" in line
    path.unlink()
    line = refused(monkeypatch, capsys, evaluate, *options)
    assert line == (
        f"evaluate.py: {path}: no such file; download https://download.pytorch.org/models/resnet18-f37072fd.pth to it\n"
    )


def test_names_and_accuracies_are_those_that_torchvision_publishes():
    for arch, published in TORCHVISION.items():
        weights = torchvision.models.get_model_weights(arch.split("_")[0].replace("netv2", "net_v2")).IMAGENET1K_V1
        assert weights.url == f"https://download.pytorch.org/models/{published.file}"
        assert weights.meta["_metrics"]["ImageNet-1K"]["acc@1"] == published.accuracy


@pytest.mark.parametrize("dataset, shown", [("imagenet", True), ("imagenette", False)])
def test_the_published_accuracy_stands_beside_a_measured_one(dataset, shown):
    with torch.device("meta"):
        network = Network(create_model("resnet34_imagenet", 3), "resnet34_imagenet", 3, "", None, None, None)
    logits, labels = torch.eye(3), torch.arange(3)
    report = network_report(network, "x.pth", logits, labels, ["a", "b", "c"], dataset)
    text = report_text({"network": report, "amp": "off", "images": 3, "dataset": dataset}, per_class=False)
    lines = [line.split() for line in text.splitlines() if "as published" in line]
    assert [line[-1] for line in lines] == (["73.314"] if shown else [])
    assert report.get("published_top1") == (73.314 if shown else None)


def test_versions_name_the_decoder_of_image_files_alone(monkeypatch):
    monkeypatch.setattr(folder, "best_decoder", lambda: folder.decode_with_pillow)
    assert versions("imagenet")["decoder"] == f"Pillow {PIL.__version__}"
    assert versions("cifar100") == versions() and "decoder" not in versions()
