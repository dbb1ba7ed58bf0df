"""helper/files/checkpoint.py, helper/networks.py: files written whole, networks read from files of four code bases."""

import os
import pickle
import re
import zipfile

import numpy as np
import pytest
import torch

from helper.errors import RunStopped, UserError
from helper.files import checkpoint
from helper.files.checkpoint import weights_sha256
from helper.networks import load_network
from models import create_model


@pytest.fixture
def weights():
    torch.manual_seed(0)
    model = create_model("resnet8", 4)
    for name, buffer in model.named_buffers():
        buffer.copy_(torch.rand(buffer.shape) + 0.5) if "running" in name else buffer.fill_(7)
    return model.state_dict()


def read(path, arch="resnet8", **options):
    return load_network(path, arch, "--model_t", **options)


def save(path, value):
    torch.save(value, path)
    return path


def test_a_checkpoint_comes_back_as_it_was(tmp_path):
    state = {
        "weights": {"a": torch.randn(3, 2).to(torch.bfloat16), "b": torch.tensor(5)},
        "strided": torch.randn(2, 3, 4, 4).to(memory_format=torch.channels_last),
        "plain": [1, 2.5, None, "text", (True, {"nested": float("inf")})],
    }
    path = tmp_path / "new folder" / "best.pth"
    checkpoint.save(path, state)
    for found in (checkpoint.load(path), torch.load(path, weights_only=True)):
        assert found["plain"] == state["plain"]
        assert torch.equal(found["weights"]["a"], state["weights"]["a"]) and found["weights"]["b"] == 5
        assert torch.equal(found["strided"], state["strided"])
        assert found["strided"].is_contiguous(memory_format=torch.channels_last)
    assert os.listdir(path.parent) == ["best.pth"]


def test_the_checkpoint_before_is_kept_where_that_is_asked_for(tmp_path):
    for number in range(4):
        checkpoint.save(tmp_path / "last.pth", {"number": number}, keep_previous=True)
    assert sorted(os.listdir(tmp_path)) == ["last.pth", "previous.pth"]
    assert checkpoint.load(tmp_path / "last.pth") == {"number": 3}
    assert checkpoint.load(tmp_path / "previous.pth") == {"number": 2}


def test_a_failed_write_leaves_the_file_and_nothing_else(tmp_path, monkeypatch):
    def no_space(file):
        raise OSError(28, "No space left on device")

    path = tmp_path / "last.pth"
    checkpoint.save(path, {"number": 1}, keep_previous=True)
    monkeypatch.setattr(os, "fsync", no_space)
    with pytest.raises(RunStopped, match=r"last\S* No space left on device; .*make room"):
        checkpoint.save(path, {"number": 2}, keep_previous=True)
    assert os.listdir(tmp_path) == ["last.pth"] and checkpoint.load(path) == {"number": 1}


def authors_file(path, weights):
    """As TopKD's authors saved it: a NumPy scalar in the optimizer, pickled under its module path in NumPy 1."""
    group = {"lr": np.float64(0.05), "momentum": 0.9, "params": [0]}
    state = {"model": weights, "epoch": 240, "best_acc": torch.tensor(72.25), "optimizer": {"param_groups": [group]}}
    save(made_by_numpy2 := path.with_suffix(".numpy2"), state)
    with zipfile.ZipFile(made_by_numpy2) as old, zipfile.ZipFile(path, "w") as new:
        for name in old.namelist():
            data = old.read(name)
            if name.endswith("data.pkl"):
                # Protocol 2 writes a global as two lines after the letter c.
                assert data.count(b"cnumpy._core.multiarray\nscalar\n") == 1
                data = data.replace(b"cnumpy._core.multiarray\n", b"cnumpy.core.multiarray\n")
            new.writestr(name, data)
    return path


def test_the_authors_files_load(tmp_path, weights):
    path = authors_file(tmp_path / "best.pth", weights)
    with pytest.raises(pickle.UnpicklingError, match=re.escape("numpy.core.multiarray.scalar")):
        torch.load(path, weights_only=True)
    assert checkpoint.load(path)["optimizer"]["param_groups"][0]["lr"] == 0.05
    network = read(path)
    assert network.accuracy == 72.25 and network.sha256 == weights_sha256(weights)


FORMATS = {
    "this project's": lambda weights: {
        "model": weights,
        "arch": "resnet8",
        "dataset": "tiny",
        "epoch": 3,
        "accuracy": 71.5,
    },
    "RepDistiller's": lambda weights: {"epoch": 240, "model": weights, "accuracy": torch.tensor(71.5), "optimizer": {}},
    "a bare state dict": lambda weights: weights,
    "of DataParallel": lambda weights: {"model": {f"module.{key}": value for key, value in weights.items()}},
    "under state_dict": lambda weights: {"state_dict": weights, "best_acc": 71.5},
}


@pytest.mark.parametrize("kind", FORMATS)
@pytest.mark.parametrize("zipped", [True, False], ids=["zip", "before torch 1.6"])
def test_a_network_is_read_from_every_known_format(tiny, tmp_path, weights, kind, zipped):
    content = FORMATS[kind](weights)
    torch.save(content, tmp_path / "teacher.pth", _use_new_zipfile_serialization=zipped)
    network = read(tmp_path / "teacher.pth", dataset="tiny")
    assert not network.model.training
    assert (network.arch, network.num_classes, network.sha256) == ("resnet8", 4, weights_sha256(weights))
    assert network.accuracy == (71.5 if {"accuracy", "best_acc"} & content.keys() else None)
    assert network.dataset == ("tiny" if kind == "this project's" else None)
    found = network.model.state_dict()
    assert found.keys() == weights.keys() and all(torch.equal(found[key], weights[key]) for key in weights)


def test_a_file_that_names_its_architecture_needs_no_option(tmp_path, weights):
    path = save(tmp_path / "t.pth", {"model": weights, "arch": "resnet8"})
    assert read(path, arch=None).arch == "resnet8"


@pytest.mark.parametrize(
    "content, arch, message",
    [
        (lambda weights: {"model": weights}, None, "does not name its architecture; give it with --model_t"),
        (lambda weights: {"model": weights, "arch": "resnet8"}, "resnet20", "--model_t: found resnet20, .* a resnet8"),
        (lambda weights: {"model": weights, "arch": "vit_b"}, None, "file.pth: unknown model 'vit_b'"),
        (lambda weights: {"model": weights, "arch": "vit_b"}, "resnet8", "file.pth: unknown model 'vit_b'"),
        (lambda weights: weights, "resnet20", "do not fit resnet20 .*check --model_t"),
        (lambda weights: weights, "resnet8x4", "do not fit resnet8x4 .*first 'conv1.weight'"),
        (lambda weights: weights | {"extra": torch.zeros(1)}, "resnet8", "do not fit resnet8 .1 names .*'extra'"),
        (lambda weights: {"model": {}}, "resnet8", "no weights found"),
        (lambda weights: list(weights.values()), "resnet8", "no weights found"),
        (lambda weights: {0: torch.zeros(1)}, "resnet8", "no weights found"),
        (lambda weights: torch.zeros(3), "resnet8", "no weights found"),
    ],
)
def test_a_file_that_does_not_fit_is_refused_in_one_line(tmp_path, weights, content, arch, message):
    path = save(tmp_path / "file.pth", content(weights))
    with pytest.raises(UserError, match=message) as error:
        read(path, arch)
    assert str(path) in str(error.value) and "\n" not in str(error.value) and error.value.exit_code == 2


def test_another_number_of_classes_is_refused(tmp_path, weights):
    path = save(tmp_path / "t.pth", weights)
    with pytest.raises(UserError, match="for 4 classes, but --dataset has 10"):
        read(path, dataset="digits")


@pytest.mark.parametrize("data", [None, b"", b"hello, world\n", b"PK\x03\x04" + bytes(100), pickle.dumps({"a": 1})])
def test_what_is_no_checkpoint_is_refused_in_one_line(tmp_path, data):
    path = tmp_path / "file.pth"
    if data is not None:
        path.write_bytes(data)
    with pytest.raises(UserError, match="no such file" if data is None else "not a checkpoint|no weights") as error:
        read(path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


def test_the_hash_is_of_the_weights_and_not_of_the_file(tmp_path, weights):
    expected = weights_sha256(weights)
    model = create_model("resnet8", 4).to(memory_format=torch.channels_last)
    model.load_state_dict(weights)
    assert weights_sha256(dict(reversed(model.state_dict().items()))) == expected
    for key in ("conv1.weight", "bn1.running_var", "bn1.num_batches_tracked", "fc.bias"):
        changed = weights | {key: weights[key].clone()}
        changed[key].reshape(-1).view(torch.uint8)[0] ^= 1
        assert weights_sha256(changed) != expected
    renamed = {key.replace("fc.", "head."): value for key, value in weights.items()}
    assert weights_sha256(renamed) != expected
