"""The table of a teacher's outputs, --teacher_cache: what it holds, who may read it, and how it is computed.

Views are compared with torchvision, outputs with forward passes of the network as it was saved.
"""

import csv
import itertools
import json
import os
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from PIL import Image
from support.artefacts import artefacts
from support.marks import slow_but
from support.processes import execute
from support.running import CLASSES, CLOUDS, NOISE, POINTS, TEACHER, call, make_clouds, make_teacher, refused, work_in

import generate_PCD_PI
import train_student
from dataset import ImageSet, TrainLoader, dataset_dict, load_dataset
from distiller_zoo import distiller_dict
from helper.clouds import outputs
from helper.clouds.outputs import OutputFiles, cached_teacher
from helper.errors import Interrupted, RunStopped, UserError
from helper.files import checkpoint
from helper.networks import load_network
from models import create_model, fold_batchnorm

FOLDER = TEACHER.with_name("outputs_noise")
CORNERS = 9  # of a crop in an image with a border of 4, in each direction
USUAL = ["--path_t", TEACHER, "--dataset", "noise", "--device", "cpu", "--batch_size", POINTS]


def work_with_few_views(folder, patch):
    """A place to run in, as `work_in` makes it, but with a border of one pixel: 18 views. Returns the training set."""
    work_in(folder, patch)
    patch.setitem(dataset_dict, "noise", replace(NOISE, padding=1))
    return load_dataset("noise", "")[0]


@pytest.fixture
def noise(tmp_path, monkeypatch):
    """The training set `noise`, in a folder of its own with a teacher."""
    return work_with_few_views(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """The folder in which the outputs of the teacher were computed; not to be changed."""
    folder = tmp_path_factory.mktemp("filled")
    with pytest.MonkeyPatch.context() as patch:
        cached(work_with_few_views(folder, patch))
    return folder


@pytest.fixture
def ready(noise, filled):
    """The same as `noise`, and the outputs of the teacher are there."""
    shutil.copytree(filled, ".", dirs_exist_ok=True)
    return noise


def cached(images, seed=1):
    """The table of the outputs of TEACHER, computed where it is not there."""
    return cached_teacher(TEACHER, load_network(TEACHER, None, ""), images, seed)


def small_set(flip=True, padding=4, size=6, count=5):
    info = replace(NOISE, flip=flip, padding=padding, image_size=size)
    rng = np.random.default_rng(3)
    images = rng.integers(0, 256, (count, size, size, 3), dtype=np.uint8)
    return ImageSet(torch.from_numpy(images), torch.zeros(count, dtype=torch.int64), info)


def by_torchvision(image, info, top, left, flip):
    """The crop with its upper left corner at (top, left) of the padded image, mirrored if flip, as a normal transform
    makes it of a PIL image."""
    found = TF.pad(Image.fromarray(image.numpy()), info.padding)
    found = TF.crop(found, top, left, info.image_size, info.image_size)
    found = TF.hflip(found) if flip else found
    return TF.normalize(TF.to_tensor(found), info.mean, info.std)


def plain_outputs(images, path=TEACHER):
    """(logits, pooled) of the teacher as it was saved, batch norms not folded."""
    model = create_model("resnet8", CLASSES)
    model.load_state_dict(checkpoint.load(path)["model"])
    with torch.no_grad():
        features, logits = model.eval()(images, is_feat=True)
    return logits, features[-1]


def train(*options, name="run"):
    call(train_student, *USUAL, "--model_s", "resnet8", "--epochs", 2, "--lr", 0.01, "--name", name, *options)


def weights(name):
    return checkpoint.load(Path("save_s_models", name, "last.pth"))["model"]


def equal(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


# What a view is


@pytest.mark.parametrize("flip", [True, False])
def test_the_views_are_all_crops_and_mirrored_crops_that_torchvision_makes(flip):
    images = small_set(flip)
    indices = torch.tensor([3, 0])
    seen = set()
    for number in range(images.view_count):
        flipped = flip and number % 2
        top, left = divmod(number // (1 + flip), CORNERS)
        seen.add((top, left, bool(flipped)))
        for found, index in zip(images.view(number, indices), indices, strict=True):
            assert torch.equal(found, by_torchvision(images.images[index], images.info, top, left, flipped))
    assert len(seen) == images.view_count == (162 if flip else 81)


@pytest.mark.parametrize("flip, padding", [(True, 4), (False, 4), (True, 1)])
def test_an_epoch_shows_each_image_in_the_view_that_it_says(flip, padding):
    images = small_set(flip, padding, count=40)
    views = images.views(seed=7, epoch=3)
    assert len(views.unique()) > 5 and 0 <= views.min() and views.max() < images.view_count
    for batch, _, indices in TrainLoader(images, 16, seed=7).epoch(3):
        for shown, index in zip(batch, indices, strict=True):
            assert torch.equal(shown, images.view(int(views[index]), index[None])[0])


def test_the_views_of_two_epochs_differ_and_follow_from_seed_and_epoch():
    images, again = small_set(count=40), small_set(count=40)
    assert not torch.equal(images.views(1, 1), images.views(1, 2))
    assert torch.equal(images.views(1, 1), again.views(1, 1))


# What the table holds


def test_the_table_holds_what_the_teacher_makes_of_every_view(ready):
    tables = cached(ready).tables
    indices = torch.arange(len(ready))
    assert tables["logits"].shape == (18 * 70, CLASSES) and tables["pooled"].shape == (18 * 70, 64)
    for number in range(ready.view_count):
        rows = slice(number * len(ready), (number + 1) * len(ready))
        for kind, expected in zip(("logits", "pooled"), plain_outputs(ready.view(number, indices)), strict=True):
            torch.testing.assert_close(tables[kind][rows], expected, rtol=1e-4, atol=1e-4)
            assert expected.std(0).min() > 1e-3  # images differ by more than what is tolerated


def test_the_table_equals_a_forward_of_the_same_block_bit_for_bit(noise, monkeypatch):
    monkeypatch.setattr(outputs, "BLOCK", 32)  # 70 images: two blocks and a short one
    network = load_network(TEACHER, None, "")
    tables = cached(noise).tables
    folded = fold_batchnorm(network.model)
    for number, first, last in ((0, 0, 32), (9, 32, 64), (17, 64, 70)):
        with torch.no_grad():
            features, logits = folded(noise.view(number, torch.arange(first, last)), is_feat=True)
        rows = slice(number * 70 + first, number * 70 + last)
        assert torch.equal(tables["logits"][rows], logits) and torch.equal(tables["pooled"][rows], features[-1])


def test_a_step_is_given_the_outputs_on_its_images(ready):
    cache = cached(ready, seed=5)
    addresses = [table.data_ptr() for table in cache.now.values()]
    for epoch in (1, 2):
        cache.begin(epoch)
        for batch, _, indices in TrainLoader(ready, POINTS, seed=5).epoch(epoch):
            (pooled,), logits = cache.at(indices)
            expected = plain_outputs(batch)
            torch.testing.assert_close(logits, expected[0], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(pooled, expected[1], rtol=1e-4, atol=1e-4)
    assert addresses == [table.data_ptr() for table in cache.now.values()]


def test_every_image_of_a_set_without_flips_has_its_outputs(noise, monkeypatch):
    info = replace(NOISE, flip=False, padding=1)
    images = ImageSet(noise.images, noise.labels, info)
    cache = cached(images)
    assert cache.tables["logits"].shape == (9 * 70, CLASSES)
    cache.begin(4)
    batch, _, indices = next(TrainLoader(images, 70, seed=1).epoch(4))
    torch.testing.assert_close(cache.at(indices)[1], plain_outputs(batch)[0], rtol=1e-4, atol=1e-4)


# Students


METHODS = {
    "KD": (),
    "TopKD-wasserstein": ("-d", 5, "--topology", "wasserstein"),
    "layer 0": ("-d", 0.01, "--topology", "wasserstein", "--tda_layer_t", 0, "--tda_layer_s", -3),
}


@pytest.mark.parametrize("method", slow_but(["TopKD-wasserstein"], METHODS))
def test_a_student_with_the_cache_follows_one_without(ready, monkeypatch, method):
    train(*METHODS[method], name="without")
    monkeypatch.setattr(outputs.OutputFiles, "fill", None)  # fails when called
    train(*METHODS[method], "--teacher_cache", name="with")
    (one, other), logs = (weights(name) for name in ("without", "with")), []
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-3)
    for name in ("without", "with"):
        with open(Path("save_s_models", name, "log.csv")) as file:
            logs.append([float(row["loss"]) for row in csv.DictReader(file)])
    assert logs[0] == pytest.approx(logs[1], rel=1e-3)


def test_a_student_reads_the_table_and_not_the_teacher(ready):
    train("--teacher_cache", name="true")
    table = np.load(FOLDER / "logits.npy", mmap_mode="r+")
    table[:] = -table
    table.flush()
    train("--teacher_cache", name="false")
    assert not equal(weights("true"), weights("false"))


def test_students_side_by_side_share_the_table(ready, monkeypatch):
    prepared, prepare = [], train_student.prepare

    def recorded(*arguments):
        prepared.append(prepare(*arguments))
        return prepared[-1]

    monkeypatch.setattr(train_student, "prepare", recorded)
    options = [*USUAL, "--model_s", "resnet8", "--epochs", 1, "--teacher_cache"]
    call(train_student, *options, "--trial", 1, 2)
    one, other = (student.objective.cache for student in prepared)
    assert (one.seed, other.seed) == (1, 2)
    for kind in outputs.KINDS:
        assert one.tables[kind] is other.tables[kind] and one.now[kind] is not other.now[kind]
    name = prepared[1].run.name
    shutil.move(Path("save_s_models", name), "beside")
    call(train_student, *options, "--trial", 2)
    assert equal(weights(name), checkpoint.load(Path("beside", "last.pth"))["model"])


def test_the_row_and_the_name_of_a_student_say_that_it_reads_the_table(ready):
    call(train_student, *USUAL, "--model_s", "resnet8", "--epochs", 1, "--teacher_cache")
    (path,) = Path("results/runs").iterdir()
    (row,) = csv.DictReader(path.read_text().splitlines())
    assert "cache" in row["schedule"].split() and row["teacher_cache"] == "True"
    assert "_cache_" in path.name and "cacheTrue" not in path.name


def test_a_student_of_cross_entropy_alone_asks_for_no_table(noise):
    train("-r", 1, "-a", 0, "--teacher_cache")
    assert not FOLDER.exists()


def test_which_methods_may_read_the_table():
    may = {name for name, method in distiller_dict.items() if method.reads_outputs_alone}
    assert may == {"kd", "cc", "rkd", "pkt", "crd", "srrl", "dkd", "dist", "crcd", "ctkd"}


@pytest.mark.parametrize(
    "options, words",
    [
        (("--distill", "at"), ["--distill at", "more of the teacher"]),
        (("--distill", "reviewkd"), ["--distill reviewkd"]),
        (("--distill", "simkd"), ["--distill simkd"]),
        (("--distill", "mlkd"), ["--distill mlkd"]),
        (("--distill", "ft"), ["--distill ft"]),
        (("-d", 5, "--topology", "wasserstein", "--tda_layer_t", -2), ["--tda_layer_t is -2"]),
    ],
)
def test_a_student_that_reads_more_of_its_teacher_is_refused(noise, monkeypatch, capsys, options, words):
    line = refused(monkeypatch, capsys, train_student, *USUAL, "--model_s", "resnet8", "--teacher_cache", *options)
    assert line.startswith("train_student.py: --teacher_cache: ") and all(word in line for word in words)
    assert not FOLDER.exists() and not Path("save_s_models").exists()


@pytest.mark.slow
def test_a_set_of_image_files_is_refused(noise, monkeypatch, capsys):
    options = ["--path_t", TEACHER, "--dataset", "imagenette", "--model_s", "resnet18_imagenet", "--teacher_cache"]
    content = checkpoint.load(TEACHER)
    own = {"arch": "resnet18_imagenet", "num_classes": 10, "dataset": "imagenette"}
    checkpoint.save(TEACHER, content | own | {"model": create_model(own["arch"], 10).state_dict()})
    line = refused(monkeypatch, capsys, train_student, *options)
    assert "--teacher_cache: --dataset imagenette consists of image files" in line


# Stage 2


@pytest.mark.parametrize("layer", [-1, 0])
def test_clouds_from_the_table_equal_those_of_the_teacher(ready, monkeypatch, layer):
    folder = CLOUDS.with_name(f"layer{layer}_n12_eval_released")
    read = {}
    for name, option in (("without", ()), ("with", ("--teacher_cache",))):
        make_clouds("--cloud_dtype", "float32", "--tda_layer_t", layer, *option)
        paths = sorted((folder / "clouds").glob("*.npy"))
        read[name] = np.concatenate([np.load(path) for path in paths])
        shutil.rmtree(folder)
    assert read["with"].shape == (10, POINTS, 64 if layer else CLASSES)
    np.testing.assert_allclose(read["with"], read["without"], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "options, word", [(("--pcd_bn", "train"), "--pcd_bn train"), (("--tda_layer_t", -2), "--tda_layer_t is -2")]
)
def test_clouds_that_the_table_cannot_give_are_refused(noise, monkeypatch, capsys, options, word):
    line = refused(monkeypatch, capsys, generate_PCD_PI, *USUAL, "--passes", 1, "--teacher_cache", *options)
    assert "--teacher_cache: " in line and word in line and not FOLDER.exists()


# Files


def test_another_teacher_is_refused(ready, monkeypatch, capsys):
    make_teacher(seed=1)
    line = refused(monkeypatch, capsys, train_student, *USUAL, "--model_s", "resnet8", "--teacher_cache")
    assert f"{FOLDER}: " in line and "teacher_sha256 was " in line and "remove the folder" in line


@pytest.mark.parametrize(
    "change, word",
    [
        ({"mean": (0.4, 0.5, 0.5)}, "mean was"),
        ({"padding": 2}, "padding was 1, now 2"),
        ({"flip": False}, "flip was True, now False"),
    ],
)
def test_other_images_are_refused(ready, change, word):
    images = ImageSet(ready.images, ready.labels, replace(NOISE, **({"padding": 1} | change)))
    with pytest.raises(UserError, match=word):
        cached(images)


def test_a_changed_pixel_is_refused(ready):
    ready.images[5, 3, 3, 1] ^= 1
    with pytest.raises(UserError, match="images_sha256 was"):
        cached(ready)


def test_checkpoints_and_data_sets_are_kept_apart(ready):
    shutil.copy(TEACHER, TEACHER.with_name("last.pth"))
    assert outputs.outputs_folder(TEACHER, "noise") == FOLDER
    others = {outputs.outputs_folder(TEACHER, "tiny"), outputs.outputs_folder(TEACHER.with_name("last.pth"), "noise")}
    assert len(others | {FOLDER}) == 3


def test_other_versions_are_the_same_outputs(ready, monkeypatch):
    content = json.loads((FOLDER / "outputs.json").read_text())
    (FOLDER / "outputs.json").write_text(json.dumps(content | {"versions": {"torch": "0.1"}, "device": "another"}))
    monkeypatch.setattr(OutputFiles, "fill", None)
    cached(ready)


@pytest.mark.parametrize("kind", outputs.KINDS)
def test_a_file_that_has_been_cut_is_completed(ready, filled, kind):
    path = FOLDER / f"{kind}.npy"
    os.truncate(path, path.stat().st_size // 3)
    cached(ready)
    for name in outputs.KINDS:
        assert (FOLDER / f"{name}.npy").read_bytes() == (filled / FOLDER / f"{name}.npy").read_bytes()


def test_a_file_of_another_shape_is_refused(ready):
    table = np.load(FOLDER / "pooled.npy")
    np.save(FOLDER / "pooled.npy", table.reshape(2 * len(table), 32))
    with pytest.raises(UserError, match="pooled.npy: not a table of 1260 rows of 64 float32 numbers; remove"):
        cached(ready)


def test_the_files_are_those_that_numpy_reads(ready):
    assert np.load(FOLDER / "pooled.npy").tobytes() == cached(ready).tables["pooled"].numpy().tobytes()


def test_a_table_that_is_complete_is_read_without_writing(ready):
    before = {path: path.stat().st_mtime_ns for path in FOLDER.iterdir()}
    train("--teacher_cache")
    assert {path: path.stat().st_mtime_ns for path in FOLDER.iterdir()} == before


def test_a_disk_without_room_is_refused_before_anything_is_computed(noise, monkeypatch):
    monkeypatch.setattr(outputs.shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**7, 10**7, 10**5))
    with pytest.raises(RunStopped, match=r"take 337\.7 kB more in .*, where 100\.0 kB are free; make room, or leave"):
        cached(noise)
    assert not (FOLDER / "logits.npy").exists()


# Signals, kills, two at once


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_keeps_what_was_computed(noise, filled, monkeypatch, number):
    computed, forward = [], OutputFiles._outputs

    def interrupted(*arguments):
        computed.append(arguments[-1])
        if len(computed) == 4:
            signal.raise_signal(number)
        return forward(*arguments)

    monkeypatch.setattr(OutputFiles, "_outputs", interrupted)
    with pytest.raises(Interrupted, match="stopped after 280 of 1,260 outputs of the teacher, which are kept"):
        cached(noise)
    cached(noise)
    assert computed == list(range(18))
    assert table(FOLDER) == table(filled / FOLDER)


def test_one_who_comes_while_the_table_is_computed_waits_and_reads_it(noise, filled, monkeypatch, capsys):
    """The folder is in use when it is looked at twice; before the third look the other has computed the table."""
    looks, fills = [], []
    hold, fill = outputs.lock.hold, OutputFiles.fill

    def in_use_at_first(folder):
        looks.append(folder)
        if len(looks) < 3:
            raise outputs.lock.InUse(f"{folder}: in use")
        if len(looks) == 3:
            cached(noise)
        hold(folder)

    monkeypatch.setattr(outputs.lock, "hold", in_use_at_first)
    monkeypatch.setattr(outputs, "LOOK_EVERY", 0.0)
    monkeypatch.setattr(OutputFiles, "fill", lambda *arguments: fills.append(len(looks)) or fill(*arguments))
    cached(noise)
    assert len(looks) == 4 and fills == [4]  # the fourth is that of the other
    assert capsys.readouterr().out.count("waiting for them") == 1
    assert table(FOLDER) == table(filled / FOLDER)


TEACHER_OF_FEW = "save_t_models/resnet8_few_lr0.02_n16_trial1"
TABLE = f"{TEACHER_OF_FEW}/outputs_few"
IMAGES = "--dataset few --device cpu --batch_size 16 --epochs 2 --lr 0.02"
STUDENT = f"train_student.py --path_t {TEACHER_OF_FEW}/best.pth --model_s resnet8 --teacher_cache {IMAGES}"


def table(folder):
    """The bytes of a table, and of what says how much is done."""
    return {name: (Path(folder) / name).read_bytes() for name in ("logits.npy", "pooled.npy", "done.json")}


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder with a teacher of `few`; not to be changed."""
    folder = tmp_path_factory.mktemp("trained")
    status, printed = execute("none", folder, f"train_teacher.py --model resnet8 {IMAGES}")
    assert status == 0, printed
    return folder


@pytest.fixture(scope="module")
def ended(trained, tmp_path_factory):
    """A folder in which a student has computed the table and ended; not to be changed."""
    folder = tmp_path_factory.mktemp("ended")
    shutil.copytree(trained, folder, dirs_exist_ok=True)
    status, printed = execute("none", folder, STUDENT)
    assert status == 0 and "computing the teacher's outputs on 9 views of 40 images" in printed, printed
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["replace", "half", "full"])
def test_the_computation_may_be_stopped_at_any_of_its_writes(trained, ended, tmp_path, kind):
    for number in itertools.count(1):
        folder = tmp_path / str(number)
        shutil.copytree(trained, folder)
        status, printed = execute(f"{kind}:{number}", folder, STUDENT)
        assert status == (1 if kind == "full" else -signal.SIGKILL) and "Traceback" not in printed
        if kind == "full":
            assert printed.count("cannot write") == 1 and "make room" in printed.splitlines()[-1]
        if (folder / "save_s_models").exists():
            break
        status, printed = execute("none", folder, STUDENT)
        assert status == 0, printed
        assert table(folder / TABLE) == table(ended / TABLE), f"{kind}:{number}"
        shutil.rmtree(folder)
    assert number > 6


@pytest.mark.slow
def test_a_student_that_was_killed_ends_as_one_that_never_stopped(trained, ended, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    assert execute("batch:5", tmp_path, STUDENT)[0] == -signal.SIGKILL  # in the middle of epoch 2
    status, printed = execute("none", tmp_path, f"{STUDENT} --resume")
    assert status == 0, printed
    assert artefacts(tmp_path) == artefacts(ended)


@pytest.mark.slow
def test_two_students_that_begin_at_once_compute_one_table(trained, ended, tmp_path):
    shutil.copytree(trained, tmp_path, dirs_exist_ok=True)
    with ThreadPoolExecutor() as pool:
        runs = [pool.submit(execute, "none", tmp_path, command) for command in (STUDENT, f"{STUDENT} --trial 2")]
    found = [run.result() for run in runs]
    assert [status for status, _ in found] == [0, 0], found
    assert sum("computing the teacher's outputs" in printed for _, printed in found) == 1
    assert table(tmp_path / TABLE) == table(ended / TABLE)
    (run,) = (ended / "save_s_models").iterdir()
    assert artefacts(tmp_path / "save_s_models" / run.name) == artefacts(run)


def test_two_that_compute_one_table_without_locks_leave_it_whole(noise, filled, monkeypatch):
    """One begins and ends when the other has computed half of it."""
    outputs_of, calls = OutputFiles._outputs, []

    def compute(self, teacher, images, block):
        calls.append(block)
        if len(calls) == 9:
            cached(images)
        return outputs_of(self, teacher, images, block)

    monkeypatch.setattr(OutputFiles, "_outputs", compute)
    monkeypatch.setattr(outputs, "SAVE_EVERY", 0.0)
    monkeypatch.setattr(outputs.lock, "hold", lambda folder: None)
    cached(noise)
    assert len(calls) > 18
    for kind in outputs.KINDS:
        assert (FOLDER / f"{kind}.npy").read_bytes() == (filled / FOLDER / f"{kind}.npy").read_bytes()


@pytest.mark.slow
@pytest.mark.parametrize("method", [name for name, entry in distiller_dict.items() if entry.reads_outputs_alone])
def test_every_method_that_may_read_the_table_trains_on_it(ready, method):
    options = ("--set", "nce_k=16") if method == "crd" else ()
    for name, cache in (("without", ()), ("with", ("--teacher_cache",))):
        train("--distill", method, *options, "--lr", 0.001, *cache, name=name)
    one, other = (weights(name) for name in ("without", "with"))
    for name in one:
        torch.testing.assert_close(one[name], other[name], rtol=1e-3, atol=1e-3)


@pytest.mark.slow
def test_the_table_of_a_set_with_the_border_of_cifar(tmp_path, monkeypatch):
    work_in(tmp_path, monkeypatch)
    images = load_dataset("noise", "")[0]
    cache = cached(images)
    assert cache.tables["logits"].shape == (162 * 70, CLASSES)
    cache.begin(2)
    for batch, _, indices in TrainLoader(images, POINTS, seed=1).epoch(2):
        torch.testing.assert_close(cache.at(indices)[1], plain_outputs(batch)[0], rtol=1e-4, atol=1e-4)
