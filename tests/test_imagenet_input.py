"""What is wrong with a folder of images, a network or an option: one line each, exit code 2."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from support.running import refused

import evaluate
import generate_PCD_PI
import train_ripsnet
import train_student
import train_teacher
import visualize
from dataset import dataset_dict
from dataset.imagenet import IMAGENETTE
from helper.data import class_names, class_titles, load_data
from helper.files import checkpoint
from helper.settings import Data
from models import create_model

WORDNET = sorted(IMAGENETTE)


@pytest.fixture(scope="module")
def sets(tmp_path_factory):
    """imagenette/{train,val}/ with two images of noise in each of the ten classes, and a teacher of one layer's width;
    not to be changed."""
    folder = tmp_path_factory.mktemp("sets")
    rng = np.random.default_rng(0)
    for split in ("train", "val"):
        for name in WORDNET:
            (folder / "imagenette" / split / name).mkdir(parents=True)
            for number in range(2):
                pixels = rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)
                Image.fromarray(pixels).save(folder / "imagenette" / split / name / f"{number}.JPEG")
    torch.manual_seed(0)
    for name, arch in (("teacher", "resnet18_imagenet"), ("small", "resnet8")):
        content = {"arch": arch, "model": create_model(arch, 10).state_dict(), "num_classes": 10}
        checkpoint.save(folder / f"{name}.pth", content)
    return folder


@pytest.fixture
def copied(sets, tmp_path, monkeypatch):
    """A copy of it, which is the current folder."""
    shutil.copytree(sets, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


SET = ("--dataset", "imagenette", "--data_dir", ".", "--device", "cpu", "--workers", 0)
SCRIPTS = {
    "stage 1": (train_teacher, "--model resnet18_imagenet --batch_size 4 --epochs 1 --lr_decay_epochs="),
    "stage 2": (generate_PCD_PI, "--path_t teacher.pth --batch_size 4 --cloud_size 4 --passes 1"),
    "stage 3": (train_ripsnet, "--path_t teacher.pth"),
    "stage 4": (train_student, "--path_t teacher.pth --model_s resnet18_imagenet --batch_size 4"),
    "evaluate": (evaluate, "--path teacher.pth"),
    "figure": (visualize, "umap --path_t teacher.pth --method pca --images 2"),
}
every_script = pytest.mark.parametrize("script, options", SCRIPTS.values(), ids=list(SCRIPTS))


def spoiled(folder, what):
    if what == "a class is missing":
        for split in ("train", "val"):
            shutil.rmtree(folder / "imagenette" / split / WORDNET[3])
        return "imagenette/train: found 9 class folders, expected 10"
    if what == "a class is empty":
        for path in (folder / "imagenette/train" / WORDNET[3]).iterdir():
            path.unlink()
        return f"imagenette/train/{WORDNET[3]}: found no images, expected at least one in the folder of a class"
    shutil.rmtree(folder / "imagenette/val")
    return "imagenette/val: no such folder; put the images of imagenette into"


@every_script
def test_a_folder_without_test_images_is_one_line(copied, monkeypatch, capsys, script, options):
    expected = spoiled(copied, "val is missing")
    assert expected in refused(monkeypatch, capsys, script, *options.split(), *SET)


@pytest.mark.parametrize("what", ["a class is missing", "a class is empty"])
def test_a_folder_that_is_not_complete_is_one_line(copied, monkeypatch, capsys, what):
    expected = spoiled(copied, what)
    assert expected in refused(monkeypatch, capsys, generate_PCD_PI, *SCRIPTS["stage 2"][1].split(), *SET)


@pytest.mark.parametrize("name", [pytest.param("stage 1", marks=pytest.mark.slow), "stage 2", "evaluate", "figure"])
def test_an_unreadable_file_is_one_line_wherever_it_is_read(copied, monkeypatch, capsys, name):
    script, options = SCRIPTS[name]
    for split in ("train", "val"):
        path = copied / "imagenette" / split / WORDNET[2] / "1.JPEG"
        path.write_bytes(path.read_bytes()[:100])
    line = refused(monkeypatch, capsys, script, *options.split(), *SET)
    assert f"{WORDNET[2]}/1.JPEG: not readable as an image (" in line and "replace the file by an intact one" in line


@pytest.mark.parametrize("name", ["stage 2", "stage 3", "stage 4", "evaluate", "figure"])
def test_a_network_for_small_images_is_refused_for_imagenet(copied, monkeypatch, capsys, name):
    script, options = SCRIPTS[name]
    line = refused(monkeypatch, capsys, script, *options.replace("teacher.pth", "small.pth").split(), *SET)
    assert "small.pth: found resnet8, a network for images of 32 x 32 pixels, but those of --dataset imagenette" in line


def test_networks_and_images_of_unlike_sizes_are_refused(copied, monkeypatch, capsys):
    small = ("--dataset", "digits", "--device", "cpu")
    expected = "found resnet18_imagenet, a network for ImageNet's images, but those of --dataset digits are 32 x 32"
    line = refused(monkeypatch, capsys, train_teacher, "--model", "resnet18_imagenet", *small)
    assert f"--model: {expected}" in line
    line = refused(monkeypatch, capsys, evaluate, "--path", "teacher.pth", *small)
    assert f"teacher.pth: {expected}" in line
    options = ("--path_t", "teacher.pth", "--model_s", "resnet8", *SET)
    assert "--model_s: found resnet8, a network for images of 32" in refused(
        monkeypatch, capsys, train_student, *options
    )


def test_a_negative_number_of_workers_is_refused(copied, monkeypatch, capsys):
    line = refused(monkeypatch, capsys, train_teacher, *SET[:-1], -1)
    assert "argument --workers: found '-1', expected a whole number at least 0" in line


def test_workers_have_no_effect_on_images_that_are_kept_on_the_device(copied, monkeypatch, capsys):
    options = ("--model", "resnet8", "--dataset", "digits", "--device", "cpu", "--workers", 2)
    line = refused(monkeypatch, capsys, train_teacher, *options)
    assert "--workers: has no effect with --dataset digits, whose images are kept on the device; leave it out" in line


@pytest.mark.parametrize("name", ["stage 2", "stage 3"])
def test_a_cloud_size_that_does_not_divide_the_batch_is_one_line(copied, monkeypatch, capsys, name):
    script, options = SCRIPTS[name]
    options = (*options.split(), *SET, "--cloud_size", 3, "--batch_size", 4)
    line = refused(monkeypatch, capsys, script, *options)
    assert "--cloud_size: found 3, expected a divisor of --batch_size 4, which is cut into clouds" in line


def test_a_class_is_chosen_by_number_wordnets_number_or_what_it_is_called(copied, monkeypatch, capsys):
    data = Data(dataset="imagenette", data_dir=".", device=torch.device("cpu"))
    assert class_names(data) == WORDNET and class_titles(data)[0] == "tench"
    shown = []
    monkeypatch.setattr(visualize.figures, "save", lambda path, figure, numbers: shown.append(numbers))
    options = ("--path_t", "teacher.pth", "--method", "pca", "--images", 2, *SET)
    args = visualize.get_args_parser().parse_args(
        ["umap", *map(str, options), "--classes", "golf ball", WORDNET[0], "7"]
    )
    visualize.main(args)
    [numbers] = shown
    assert numbers["class_name"].tolist() == ["golf ball", "tench", "gas pump"]
    labels = load_data(data)[1].labels[numbers["image"]]
    assert labels.tolist() == [8, 8, 0, 0, 7, 7] and len(set(numbers["image"])) == 6
    line = refused(monkeypatch, capsys, visualize, "umap", *options, "--classes", "tensh", 1)
    assert "--classes: found 'tensh', expected numbers from 0 to 9 or names: n01440764" in line


def test_titles_of_the_thousand_classes_are_torchvisions():
    """In the order of WordNet's numbers, which is that of the labels."""
    titles = dataset_dict["imagenet"].class_titles([f"n{number:08d}" for number in range(1000)])
    assert titles[:2] == ["tench", "goldfish"] and titles[217] == "English springer" and len(set(titles)) == 1000
    own = [f"class{number}" for number in range(1000)]
    assert dataset_dict["imagenet"].class_titles(own) == own
