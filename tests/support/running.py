"""Running the stages on a small data set of noise, in a folder of their own."""

import functools
import io
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch

import generate_PCD_PI
import helper.clouds.store
from dataset import DatasetInfo, TrainLoader, dataset_dict, load_dataset
from helper.cli.parser import run
from models import create_model

CLASSES, POINTS = 3, 12
TRAINING_IMAGES = 70  # five clouds of 12 a pass; ten images are left over
TEACHER = Path("save_t_models/teacher/best.pth")
TIME_COLUMNS = ("seconds", "images_per_s")  # of a log: what no two runs have in common
CLOUDS = Path("ripsnet/teacher/layer-1_n12_eval_released")


def noise(data_dir):
    rng = np.random.default_rng(0)
    counts = (TRAINING_IMAGES, 40)
    return [
        (rng.integers(0, 256, (count, 16, 16, 3), dtype=np.uint8), rng.integers(0, CLASSES, count)) for count in counts
    ]


NOISE = DatasetInfo("noise", CLASSES, (0.5,) * 3, (0.29,) * 3, flip=True, load=noise, image_size=16)


def work_in(folder, monkeypatch):
    """A place to run the stages in: the folder, the data set `noise`, small files of clouds, and a teacher."""
    monkeypatch.chdir(folder)
    monkeypatch.setitem(dataset_dict, "noise", NOISE)
    monkeypatch.setattr(helper.clouds.store, "CHUNK", 8)
    make_teacher()


def make_teacher(seed=0):
    """Write TEACHER: an untrained network whose batch norms know the data, and are not the identity."""
    TEACHER.parent.mkdir(parents=True, exist_ok=True)
    TEACHER.write_bytes(teacher(seed))


@functools.cache
def teacher(seed):
    torch.manual_seed(seed)
    model = create_model("resnet8", CLASSES).train()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            module.momentum = None  # the mean over all batches
    train, _ = load_dataset("noise", "")
    with torch.no_grad():
        for images, _, _ in TrainLoader(train, 32, seed).epoch(0):
            model(images)
    about = {"arch": "resnet8", "num_classes": CLASSES, "dataset": "noise", "accuracy": 33.0}
    file = io.BytesIO()
    torch.save({"model": model.state_dict(), **about}, file)
    return file.getvalue()


def call(script, *options):
    script.main(script.get_args_parser().parse_args([str(option) for option in options]))


def refused(monkeypatch, capsys, script, *options):
    """The one line on stderr with which a script refuses what it was given; its exit code is 2."""
    monkeypatch.setattr("sys.argv", [f"{script.__name__}.py", *map(str, options)])
    with pytest.raises(SystemExit) as stopped, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        warnings.simplefilter("ignore", ImportWarning)  # hidden from users; umap-learn gives one
        warnings.simplefilter("ignore", ResourceWarning)  # hidden from users; NumPy gives one for a damaged file
        run(script.main, script.get_args_parser)
    assert not caught  # a warning would be another line
    line = capsys.readouterr().err
    assert stopped.value.code == 2 and line.endswith("\n") and line.count("\n") == 1, line
    assert line.startswith(f"{script.__name__}.py: "), line
    return line


def make_clouds(*options):
    """Stage 2 with two passes; `options` may say otherwise."""
    usual = ["--path_t", TEACHER, "--dataset", "noise", "--device", "cpu", "--batch_size", POINTS, "--passes", 2]
    call(generate_PCD_PI, *usual, *options)
