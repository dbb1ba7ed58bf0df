"""dataset/: the batched augmentation against torchvision's transforms, the loaders, and the readers of each set."""

import dataclasses
import hashlib
import pickle
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torchvision.transforms.functional as TF
from scipy.stats import chisquare
from sklearn.datasets import load_digits
from torchvision.datasets import CIFAR10, CIFAR100

from dataset import DatasetInfo, DatasetUnavailable, ImageSet, TrainLoader, batches_in_order, dataset_dict, load_dataset

CIFAR = dataset_dict["cifar100"]


def image_set(count, info=CIFAR, size=32):
    generator = torch.Generator().manual_seed(count)
    images = torch.randint(0, 256, (count, size, size, 3), dtype=torch.uint8, generator=generator)
    return ImageSet(images, torch.arange(count), info)  # the label tells which image it is


def torchvision_image(pixels, info, top=None, left=None, flip=False):
    """One image through torchvision's own functions; without top, as at evaluation."""
    image = TF.to_pil_image(pixels.permute(2, 0, 1))
    if top is not None:
        image = TF.crop(TF.pad(image, 4), top, left, 32, 32)
        image = TF.hflip(image) if flip else image
    return TF.normalize(TF.to_tensor(image), info.mean, info.std)


def test_training_images_equal_torchvisions_bit_for_bit():
    train = image_set(300)
    plan = train.plan(0, 0)
    images, labels, indices = plan.images(0, 300)
    assert images.shape == (300, 3, 32, 32) and images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(labels, plan.order) and torch.equal(indices, plan.order)
    for i in range(300):
        top, left, flip = plan.top[i].item(), plan.left[i].item(), plan.flip[i].item()
        assert torch.equal(images[i], torchvision_image(train.images[plan.order[i]], CIFAR, top, left, flip)), i


def test_every_offset_equals_torchvisions():
    train = image_set(1)
    top, left, flip = torch.cartesian_prod(torch.arange(9), torch.arange(9), torch.arange(2)).unbind(1)
    images = train.normalize(train.crop(torch.zeros_like(top), top, left, flip.bool()))
    for image, *offsets in zip(images, top, left, flip, strict=True):
        assert torch.equal(image, torchvision_image(train.images[0], CIFAR, *(value.item() for value in offsets)))


def test_normalize_equals_torchvisions_for_every_byte():
    pixels = torch.arange(256, dtype=torch.uint8).view(1, 16, 16, 1).repeat(1, 1, 1, 3)
    for info in dataset_dict.values():
        images = ImageSet(pixels, torch.zeros(1, dtype=torch.int64), info).normalize(pixels)
        assert torch.equal(images[0], torchvision_image(pixels[0], info))


def test_offsets_and_flips_are_uniform():
    plan = image_set(40_000, size=1).plan(3, 0)
    cells = torch.bincount((plan.top * 9 + plan.left) * 2 + plan.flip.long(), minlength=162)
    assert len(cells) == 162
    assert chisquare(cells.numpy()).pvalue > 0.01
    assert chisquare(torch.bincount(plan.flip.long()).numpy()).pvalue > 0.01


@pytest.mark.parametrize("count, batch_size, drop_last, sizes", [
    (50, 16, False, [16, 16, 16, 2]),
    (50, 16, True, [16, 16, 16]),
    (48, 16, False, [16, 16, 16]),
    (48, 16, True, [16, 16, 16]),
    (5, 16, False, [5]),
])  # fmt: skip
def test_an_epoch_shows_every_image_once(count, batch_size, drop_last, sizes):
    loader = TrainLoader(image_set(count), batch_size, seed=0, drop_last=drop_last)
    batches = list(loader.epoch(0))
    assert [list(map(len, batch)) for batch in batches] == [[size] * 3 for size in sizes]
    assert len(loader) == len(sizes)
    assert all(torch.equal(labels, indices) for _, labels, indices in batches)
    seen = torch.cat([labels for _, labels, _ in batches]).tolist()
    assert len(set(seen)) == len(seen) == sum(sizes)
    assert seen != sorted(seen)


@pytest.mark.parametrize("drops, batches", [(True, 3), (False, 4)])
def test_a_loader_drops_the_short_batch_where_the_data_set_does(drops, batches):
    loader = TrainLoader(image_set(50, dataclasses.replace(CIFAR, drop_last=drops)), 16, seed=0)
    assert len(loader) == len(list(loader.epoch(0))) == batches


def test_seed_and_epoch_decide_the_batches():
    train = image_set(64)
    first, same, seed, epoch = (
        next(TrainLoader(train, 64, seed=s).epoch(e)) for s, e in ((1, 2), (1, 2), (2, 2), (1, 3))
    )
    assert all(map(torch.equal, first, same))
    for other in (seed, epoch, next(TrainLoader(train, 64, seed=2).epoch(1))):
        assert not torch.equal(first[1], other[1])
        by_image, other_by_image = first[0][first[1].argsort()], other[0][other[1].argsort()]
        assert not torch.equal(by_image, other_by_image)  # other crops and flips, beside another order


@pytest.mark.parametrize("drop_last", [False, True])
def test_start_equals_skipping(drop_last):
    loader = TrainLoader(image_set(50), 16, seed=0, drop_last=drop_last)
    whole = list(loader.epoch(7))
    for start in range(len(loader) + 1):
        rest = list(loader.epoch(7, start=start))
        assert len(rest) == len(whole) - start
        for batch, expected in zip(rest, whole[start:], strict=True):
            assert all(map(torch.equal, batch, expected))
    for start in (-1, len(loader) + 1):
        with pytest.raises(ValueError, match=f"batch {start} of an epoch of {len(loader)} batches"):
            loader.epoch(7, start=start)


def test_images_do_not_depend_on_the_batch_size():
    train = image_set(50)
    whole = next(train.augmented(0, [(4, 0, 50)]))
    for size in (1, 16, 50):
        batches = zip(*TrainLoader(train, size, seed=0).epoch(4), strict=True)
        assert all(torch.equal(torch.cat(parts), expected) for parts, expected in zip(batches, whole, strict=True))
    for first, last in ((-1, 3), (3, 3), (0, 51)):
        with pytest.raises(ValueError, match=f"positions {first} to {last} of an epoch of 50 images"):
            next(train.augmented(0, [(4, first, last)]))


def test_any_spans_of_any_epochs_can_be_asked_for():
    loader = TrainLoader(image_set(50), 16, seed=5)
    wholes = [next(loader.image_set.augmented(5, [(epoch, 0, 50)])) for epoch in (0, 1)]
    requests = [(1, 13, 29), (0, 0, 48), (1, 49, 50), (1, 13, 29)]
    batches = list(loader.spans(requests))
    for (epoch, first, last), batch in zip(requests, batches, strict=True):
        assert all(torch.equal(part, whole[first:last]) for part, whole in zip(batch, wholes[epoch], strict=True))


@pytest.mark.parametrize("count, sizes", [(64, [12, 12, 12, 12, 12, 4]), (62, [12, 12, 12, 12, 12]), (60, [12] * 5)])
@pytest.mark.parametrize("world", [1, 2, 4])
def test_processes_share_every_batch(count, sizes, world):
    train = image_set(count)
    whole = next(train.augmented(0, [(3, 0, count)]))
    loaders = [TrainLoader(train, 12, seed=0, rank=rank, world=world) for rank in range(world)]
    if world < 4 and count == 62:
        sizes = [*sizes, 2]  # two are too few for four
    assert [len(loader) for loader in loaders] == [len(sizes)] * world
    for number, shares in enumerate(zip(*(loader.epoch(3) for loader in loaders), strict=True)):
        assert [len(share[1]) for share in shares] == [sizes[number] // world] * world
        start = 12 * number
        for parts, expected in zip(zip(*shares, strict=True), whole, strict=True):
            assert torch.equal(torch.cat(parts), expected[start : start + sizes[number]])


def test_processes_that_cannot_share_a_batch_are_refused():
    with pytest.raises(ValueError, match="batch_size 12 cannot be shared equally by 5 processes"):
        TrainLoader(image_set(50), 12, seed=0, world=5)


def digest(*tensors):
    return hashlib.sha256(b"".join(tensor.contiguous().numpy().tobytes() for tensor in tensors)).hexdigest()[:16]


def test_batches_are_those_of_the_published_runs():
    """Fixed digests of images, labels and order, so that a run of an earlier version can be repeated bit for bit."""
    rng = np.random.RandomState(0)
    pixels, labels = rng.randint(0, 256, (50, 32, 32, 3)).astype(np.uint8), rng.randint(0, 100, 50)
    images = ImageSet(torch.from_numpy(pixels), torch.from_numpy(labels), CIFAR)
    for seed, epoch, expected in (
        (0, 1, ["b44ffd41298ac4b6", "3af3d84cdcdc4be3", "bcd0199f757ec477"]),
        (0, 2, ["d51ee8f95975867e", "3cbd907fdb51ac00", "4596992229a380c2"]),
        (7, 1, ["1855d480ea7fabd7", "c7e5d8710cbc3a99", "42103105420a1341"]),
    ):
        batches = zip(*TrainLoader(images, 16, seed).epoch(epoch), strict=True)
        assert [digest(torch.cat(parts)) for parts in batches] == expected
    batches = zip(*batches_in_order(images, 16), strict=True)
    assert [digest(torch.cat(parts)) for parts in batches] == ["90a464a308506dc9", "8abe2df17014216b"]


def test_plain_images_come_in_the_order_asked_for():
    images = image_set(20)
    requests = [torch.tensor([7, 3, 3]), torch.tensor([19])]
    for (batch, labels), indices in zip(images.plain(requests), requests, strict=True):
        assert torch.equal(labels, indices)
        for image, index in zip(batch, indices, strict=True):
            assert torch.equal(image, torchvision_image(images.images[index], CIFAR))


def test_the_global_generators_stay_untouched():
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    list(TrainLoader(image_set(10), 4, seed=0).epoch(0))
    load_dataset("digits", "")
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)


@pytest.mark.parametrize("batch_size, drop_last", [(0, False), (-1, True), (11, True)])
def test_a_loader_without_a_batch_is_refused(batch_size, drop_last):
    with pytest.raises(ValueError, match=f"batch_size {batch_size} makes no batch of 10 cifar100 images"):
        TrainLoader(image_set(10), batch_size, seed=0, drop_last=drop_last)


@pytest.mark.parametrize("batch_size", [1, 7, 20, 1000])
def test_evaluation_counts_each_image_once(batch_size):
    test = image_set(20)
    images, labels = map(torch.cat, zip(*batches_in_order(test, batch_size), strict=True))
    assert torch.equal(labels, torch.arange(20))
    assert images.is_contiguous(memory_format=torch.channels_last)
    for i in range(20):
        assert torch.equal(images[i], torchvision_image(test.images[i], CIFAR))


IMAGES, LABELS = np.zeros((4, 32, 32, 3), np.uint8), np.arange(4)


@pytest.mark.parametrize("images, labels, classes, expected", [
    (IMAGES, np.array([0, 1, 100, 102]), 100,
     "found label 100 (2 of 4 labels are out of range), expected 0 to 99, as num_classes is 100"),
    (IMAGES, np.array([0, 1, 2, -1]), 100,
     "found label -1 (1 of 4 labels are out of range), expected 0 to 99, as num_classes is 100"),
    (IMAGES[:, :28, :28], LABELS, 4, "found images of shape (4, 28, 28, 3), expected (N, 32, 32, 3)"),
    (IMAGES[..., 0], LABELS, 4, "found images of shape (4, 32, 32), expected (N, 32, 32, 3)"),
    (IMAGES, LABELS[:, None], 4, "found labels of shape (4, 1), expected (N,)"),
    (IMAGES, LABELS[:3], 4, "found 4 images and 3 labels, expected a label for each image"),
    (IMAGES[:0], LABELS[:0], 4, "found no images, expected at least one"),
    (IMAGES.astype(np.float32), LABELS, 4, "found images of type float32, expected uint8"),
    (IMAGES, LABELS.astype(np.int32), 4, "found labels of type int32, expected int64"),
    (IMAGES, [0, 1, 2, 3], 4, "found labels as list, expected a NumPy array"),
])  # fmt: skip
@pytest.mark.parametrize("split", ["training set", "test set"])
def test_a_set_that_is_not_as_its_description_is_refused(images, labels, classes, expected, split, monkeypatch):
    sets = {"training set": (IMAGES, LABELS), "test set": (IMAGES, LABELS)} | {split: (images, labels)}
    info = DatasetInfo("mine", classes, (0.5,) * 3, (0.25,) * 3, True, lambda data_dir: tuple(sets.values()))
    monkeypatch.setitem(dataset_dict, "mine", info)
    with pytest.raises(ValueError) as failure:
        load_dataset("mine", "")
    assert str(failure.value) == f"mine, {split}: {expected}"


def test_a_single_class_is_refused(monkeypatch):
    info = DatasetInfo("mine", 1, (0.5,) * 3, (0.25,) * 3, True, lambda data_dir: ((IMAGES, 0 * LABELS),) * 2)
    monkeypatch.setitem(dataset_dict, "mine", info)
    with pytest.raises(ValueError, match="^mine, training set: found num_classes 1, expected at least 2 classes$"):
        load_dataset("mine", "")


def test_digits_hold_scikit_learns_images():
    train, test = load_dataset("digits", "")
    assert (len(train), len(test)) == (1438, 359) == dataset_dict["digits"].images
    assert train.images.shape[1:] == (32, 32, 3)

    source, labels = load_digits(return_X_y=True)
    # Bilinear enlargement worked out by numpy: 32 pixel centres among 8, first along the rows, then the columns.
    centres, wanted = np.arange(8) + 0.5, (np.arange(32) + 0.5) / 4
    wide = np.apply_along_axis(lambda line: np.interp(wanted, centres, line), 2, source.reshape(-1, 8, 8) * 255 / 16)
    expected = np.rint(np.apply_along_axis(lambda line: np.interp(wanted, centres, line), 1, wide))

    def content(images, labels):
        pairs = zip(images.astype(np.uint8), labels.tolist(), strict=True)
        return sorted((label, image.tobytes()) for image, label in pairs)

    gray = np.concatenate([train.images.numpy(), test.images.numpy()])
    assert (gray == gray[..., :1]).all()
    assert content(gray[..., 0], torch.cat([train.labels, test.labels]).numpy()) == content(expected, labels)


def test_digits_are_split_the_same_way_in_every_class_and_every_time():
    (train, test), again = load_dataset("digits", ""), load_dataset("digits", "")
    for one, other in zip((train, test), again, strict=True):
        assert torch.equal(one.images, other.images) and torch.equal(one.labels, other.labels)
    in_train, in_test = train.labels.bincount(minlength=10), test.labels.bincount(minlength=10)
    assert torch.equal(in_test, (0.2 * (in_train + in_test)).round().long())


def test_digits_are_normalised_by_their_own_statistics_and_never_mirrored():
    train, _ = load_dataset("digits", "")
    scaled = train.images.double() / 255
    assert train.info.mean == pytest.approx(scaled.mean((0, 1, 2)).tolist(), abs=5e-5)
    assert train.info.std == pytest.approx(scaled.std((0, 1, 2)).tolist(), abs=5e-5)
    plan = train.plan(0, 0)
    assert not plan.flip.any() and plan.top.unique().tolist() == list(range(9))


def write_cifar(source, folder, monkeypatch):
    """Small files in the official layout, whose md5 torchvision then expects; returns the pixels, (N, 3, 32, 32)."""
    monkeypatch.setattr("torchvision.datasets.cifar.check_integrity", lambda path, md5=None: True)
    key, rng = "fine_labels" if source is CIFAR100 else "labels", np.random.default_rng(0)
    (folder / source.base_folder).mkdir(parents=True)
    pixels = []
    for name, _ in source.train_list + source.test_list:
        pixels.append(rng.integers(0, 256, (6, 3072), dtype=np.uint8))
        content = {"data": pixels[-1], key: [0, 1, 2, 3, 4, 9]}
        (folder / source.base_folder / name).write_bytes(pickle.dumps(content))
    meta = {source.meta["key"]: [f"class {i}" for i in range(100)]}
    (folder / source.base_folder / source.meta["filename"]).write_bytes(pickle.dumps(meta))
    return np.concatenate(pixels).reshape(-1, 3, 32, 32)


@pytest.mark.parametrize("name, source, files", [("cifar100", CIFAR100, 1), ("cifar10", CIFAR10, 5)])
def test_cifar_reads_the_official_files(name, source, files, tmp_path, monkeypatch, capfd):
    monkeypatch.setattr(source, "download", lambda self: pytest.fail("downloads files that are there"))
    pixels = torch.from_numpy(write_cifar(source, tmp_path, monkeypatch)).permute(0, 2, 3, 1)
    train, test = load_dataset(name, tmp_path)
    assert torch.equal(train.images, pixels[:-6]) and torch.equal(test.images, pixels[-6:])
    assert train.images.is_contiguous() and test.images.is_contiguous()
    assert train.labels.tolist() == [0, 1, 2, 3, 4, 9] * files and test.labels.tolist() == [0, 1, 2, 3, 4, 9]
    assert train.info is dataset_dict[name]
    assert train.info.class_names(tmp_path) == [f"class {i}" for i in range(100)]
    assert "".join(capfd.readouterr()) == ""


@pytest.mark.parametrize("name, source", [("cifar100", CIFAR100), ("cifar10", CIFAR10)])
def test_class_names_are_those_of_the_files(name, source, tmp_path, monkeypatch):
    write_cifar(source, tmp_path, monkeypatch)
    names = [f"class {label}" for label in range(dataset_dict[name].num_classes)]
    (tmp_path / source.base_folder / source.meta["filename"]).write_bytes(pickle.dumps({source.meta["key"]: names}))
    assert dataset_dict[name].class_names(tmp_path) == names


@pytest.mark.parametrize("name, source", [("cifar100", CIFAR100), ("cifar10", CIFAR10)])
@pytest.mark.parametrize("damaged", [False, True])
def test_cifar_without_files_or_network_says_what_to_do(name, source, damaged, tmp_path, monkeypatch, capfd):
    def no_network(*args, **kwargs):
        raise URLError("Name or service\nnot known")

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", no_network)
    if damaged:
        (tmp_path / source.base_folder).mkdir()
        (tmp_path / source.base_folder / source.train_list[0][0]).write_bytes(b"half a file")
    with pytest.raises(DatasetUnavailable) as failure:
        load_dataset(name, tmp_path)
    line = str(failure.value)
    assert "\n" not in line
    for part in (source.filename, str(tmp_path), "https://www.cs.toronto.edu/~kriz/cifar.html", "service not known"):
        assert part in line
    assert "".join(capfd.readouterr()) == ""


def test_cifar_is_downloaded_when_absent(tmp_path, monkeypatch):
    fetched = []

    def fetch(url, root, filename, md5):
        fetched.append(url)
        write_cifar(CIFAR100, tmp_path, monkeypatch)

    monkeypatch.setattr("torchvision.datasets.cifar.download_and_extract_archive", fetch)
    train, test = load_dataset("cifar100", tmp_path)
    assert fetched == [CIFAR100.url]
    assert (len(train), len(test)) == (6, 6)


@pytest.mark.parametrize(
    "name, near", [("cifar1000", "cifar100"), ("CIFAR10", "cifar10"), ("digit", "digits"), ("imagenet1k", "imagenet")]
)
def test_an_unknown_name_is_answered_with_the_nearest(name, near):
    with pytest.raises(ValueError, match=f"^unknown data set '{name}': did you mean '{near}'.*imagenette$"):
        load_dataset(name, "")
