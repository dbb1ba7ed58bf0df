"""dataset/folder.py and imagenet.py: image files against torchvision's transforms and Pillow's pixels."""

import gc
import os
import pickle
import re
import subprocess
import sys
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.stats import binomtest, ks_2samp
from sklearn.datasets import load_sample_image
from torchvision import transforms
from torchvision.models import ResNet34_Weights
from torchvision.transforms import v2

from dataset import (
    DatasetInfo,
    DatasetUnavailable,
    FolderSet,
    TrainLoader,
    batches_in_order,
    dataset_dict,
    load_dataset,
    open_folders,
)
from dataset.folder import Reader, Task, best_decoder, decode_with_pillow, decode_with_torchcodec, list_images

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
INFO = DatasetInfo("photos", 3, MEAN, STD, flip=True, image_size=64, open=open_folders)
SIZES = [(160, 107), (107, 160), (120, 120), (90, 70), (200, 71), (161, 109), (64, 64)]  # width, height
PREPARE = ["", "", "grey", "cmyk", "png", "exif", ""]  # of the images of a class


def photograph(name, number, width, height):
    image = Image.fromarray(load_sample_image(name))
    left, top = 13 * number, 7 * number
    return image.crop((left, top, left + 2 * width, top + 2 * height)).resize((width, height), Image.Resampling.BICUBIC)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """photos/{train,val}/{a,b,c}/ with 7 images a class: grey, CMYK, a PNG named JPEG and a turned one among them."""
    data_dir = tmp_path_factory.mktemp("data")
    for split, shift in (("train", 0), ("val", 3)):
        for label, name in enumerate(("china.jpg", "flower.jpg", "china.jpg")):
            folder = data_dir / "photos" / split / "abc"[label]
            folder.mkdir(parents=True)
            for i, ((width, height), prepare) in enumerate(zip(SIZES, PREPARE, strict=True)):
                image, kind, exif = photograph(name, i + shift + 2 * label, width, height), "JPEG", Image.Exif()
                if prepare == "grey":
                    image = image.convert("L")
                elif prepare == "cmyk":
                    image = image.convert("CMYK")
                elif prepare == "png":
                    kind = "PNG"
                elif prepare == "exif":
                    exif[0x0112] = 6  # turned by a quarter
                image.save(folder / f"{i}.JPEG", kind, quality=90, exif=exif)
            (folder / "notes.txt").write_text("no image")
    return data_dir


def load(data_dir, workers=0, info=INFO):
    return open_folders(info, str(data_dir), "cpu", workers)


def files(data_dir, split="train"):
    return sorted((data_dir / "photos" / split).rglob("*.JPEG"))


def listed(data_dir, split="train"):
    """The files in the order of the set."""
    sorted_by_name = files(data_dir, split)
    return [sorted_by_name[number] for number in np.random.RandomState(0).permutation(len(sorted_by_name))]


def pixels_of(normalized):
    """Back to uint8 (B, H, W, 3)."""
    mean, std = (torch.tensor(value).view(3, 1, 1) for value in (MEAN, STD))
    return ((normalized * std + mean) * 255).round().to(torch.uint8).permute(0, 2, 3, 1)


def same(batches, others):
    return all(
        torch.equal(part, other)
        for batch, other_batch in zip(batches, others, strict=True)
        for part, other in zip(batch, other_batch, strict=True)
    )


def test_files_are_listed_in_a_fixed_order_that_mixes_the_classes(data_dir, capsys):
    train, test = load(data_dir)
    assert (len(train), len(test)) == (21, 21)
    assert sorted(train.labels.tolist()) == [0] * 7 + [1] * 7 + [2] * 7 and train.labels.dtype == torch.int64
    assert all(len(set(part.tolist())) > 1 for part in train.labels.split(7))
    listing = list_images(data_dir / "photos" / "train")
    assert listing.classes == ["a", "b", "c"]
    assert [name.decode() for name in listing.names] == [f"{p.parent.name}/{p.name}" for p in listed(data_dir)]
    assert [listing.classes[label] for label in listing.labels] == [name.decode()[0] for name in listing.names]
    assert listing.names.dtype.kind == "S"
    line = f"photos: 21 training and 21 test images in {data_dir}/photos\n"
    assert capsys.readouterr().out == line


@pytest.mark.parametrize("epoch", [0, 3])
def test_training_images_are_torchvisions_given_the_seed_of_the_image(data_dir, epoch):
    """Bit for bit those of its tensor transforms; of its transforms for Pillow, which round otherwise, by a level."""
    train, _ = load(data_dir)
    images, labels, indices = next(train.augmented(5, [(epoch, 0, 21)]))
    assert images.shape == (21, 3, 64, 64) and images.dtype == torch.float32
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(labels, train.labels[indices]) and sorted(indices.tolist()) == list(range(21))
    crop = v2.RandomResizedCrop(64, antialias=True)
    tensors = v2.Compose([crop, v2.RandomHorizontalFlip()])
    pillow = transforms.Compose([transforms.RandomResizedCrop(64), transforms.RandomHorizontalFlip()])
    normalize = transforms.Compose([transforms.ToTensor(), transforms.Normalize(MEAN, STD)])
    turned = 0
    for image, index in zip(images, indices.tolist(), strict=True):
        original = Image.open(listed(data_dir)[index]).convert("RGB")
        number = int(np.random.SeedSequence((5, epoch, index)).generate_state(1)[0])
        torch.manual_seed(number)
        expected = tensors(v2.functional.pil_to_tensor(original))
        assert torch.equal(image, normalize(expected.permute(1, 2, 0).numpy())), index
        torch.manual_seed(number)
        difference = pixels_of(image[None])[0].int() - torch.from_numpy(np.array(pillow(original))).int()
        assert difference.abs().max() <= 1
        torch.manual_seed(number)
        turned += bool((crop(v2.functional.pil_to_tensor(original)) != expected).any())
    assert 0 < turned < 21


def ramps(data):
    """An image (3, 100, 100) whose values are the column, the row, and nothing."""
    ramp = torch.arange(100, dtype=torch.uint8).expand(100, 100)
    return torch.stack([ramp, ramp.T, torch.zeros_like(ramp)])


def extents(images):
    """Width, height and leftmost column of crops of `ramps`, in pixels, from uint8 (B, 64, 64, 3); whether mirrored."""
    columns, rows = images[:, 0, :, 0].int(), images[:, :, 0, 1].int()
    ends = columns[:, [0, -1]]
    return [
        (ends[:, 1] - ends[:, 0]).abs().numpy(),
        (rows[:, -1] - rows[:, 0]).numpy(),
        ends.min(1).values.numpy(),
        (ends[:, 0] > ends[:, 1]).numpy(),
    ]


@pytest.mark.slow
def test_crops_and_flips_have_torchvisions_distribution(data_dir):
    train, _ = load(data_dir)
    listing = list_images(data_dir / "photos" / "train")
    reader = Reader(listing.folder, listing.names, INFO, ramps)
    ours = torch.cat([reader.__getitems__(Task(np.arange(21), 0, epoch))[0] for epoch in range(60)])
    transform = v2.Compose([v2.RandomResizedCrop(64, antialias=True), v2.RandomHorizontalFlip()])
    torch.manual_seed(0)
    theirs = torch.stack([transform(ramps(None)) for _ in range(1260)]).permute(0, 2, 3, 1)
    *found, mirrored = extents(ours)
    *expected, _ = extents(theirs)
    assert binomtest(int(mirrored.sum()), len(mirrored)).pvalue > 0.01
    for one, other in zip(found, expected, strict=True):
        assert ks_2samp(one, other).pvalue > 0.01
        assert len(np.unique(one)) > 20
    unflipped = Reader(listing.folder, listing.names, DatasetInfo("x", 3, MEAN, STD, False, image_size=64), ramps)
    assert not extents(unflipped.__getitems__(Task(np.arange(21), 0, 0))[0])[-1].any()


@pytest.mark.parametrize("size", [64, 224])
def test_plain_images_are_resize_and_center_crop_within_a_level(data_dir, size):
    info = DatasetInfo("photos", 3, MEAN, STD, True, image_size=size, open=open_folders)
    _, test = load(data_dir, info=info)
    cut = transforms.Compose([transforms.Resize(size * 256 // 224), transforms.CenterCrop(size)])
    images, labels = map(torch.cat, zip(*batches_in_order(test, 4), strict=True))
    assert torch.equal(labels, test.labels) and images.shape == (21, 3, size, size)
    for path, image in zip(listed(data_dir, "val"), pixels_of(images), strict=True):
        expected = torch.from_numpy(np.array(cut(Image.open(path).convert("RGB"))))
        difference = (image.int() - expected.int()).abs()
        assert difference.max() <= 1 and (difference > 0).double().mean() < 0.02


@pytest.fixture(scope="module")
def whole(data_dir):
    """Two epochs at once, read in this process."""
    train, _ = load(data_dir)
    return list(train.augmented(1, [(0, 0, 21), (1, 0, 21)]))


@pytest.mark.filterwarnings("ignore:This DataLoader will create")  # where there are fewer cores
@pytest.mark.parametrize("workers", [0, 1, 3])
def test_images_depend_on_seed_epoch_and_index_alone(data_dir, whole, workers):
    train, test = load(data_dir, workers)
    loader = TrainLoader(train, 4, seed=1)
    abandoned = loader.epoch(0)
    next(abandoned), next(abandoned)
    epoch = list(loader.epoch(1))
    assert same([map(torch.cat, zip(*epoch, strict=True))], [whole[1]])
    assert same(loader.epoch(1, start=3), epoch[3:])
    requests = [(1, 13, 20), (0, 0, 2), (1, 20, 21), (0, 5, 6), (0, 2, 19)]
    assert same(loader.spans(requests), [[part[first:last] for part in whole[e]] for e, first, last in requests])
    shares = [list(TrainLoader(train, 4, 1, drop_last=True, rank=rank, world=2).epoch(1)) for rank in (0, 1)]
    both = [map(torch.cat, zip(*pair, strict=True)) for pair in zip(*shares, strict=True)]
    assert same(both, epoch[:5])
    order = [torch.tensor([20, 3, 3]), torch.tensor([0])]
    assert same(test.plain(order), load(data_dir)[1].plain(order))


def test_seeds_and_epochs_differ(data_dir, whole):
    train, _ = load(data_dir)
    other = next(train.augmented(2, [(0, 0, 21)]))
    for images, _, indices in (whole[1], other):
        assert not torch.equal(indices, whole[0][2])
        sorted_images = images[indices.argsort()]
        assert (sorted_images != whole[0][0][whole[0][2].argsort()]).flatten(1).any(1).sum() > 15


@pytest.mark.parametrize("workers", [0, 2])
def test_the_global_generators_stay_untouched(data_dir, workers):
    train, test = load(data_dir, workers)
    state = torch.get_rng_state()
    for _ in range(2):
        list(train.augmented(0, [(0, 0, 5)])), list(test.plain([torch.arange(3)]))
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_later_pass_ends_an_earlier_one(data_dir, workers):
    train, _ = load(data_dir, workers)
    earlier = train.augmented(0, [(0, 0, 2), (0, 2, 4), (0, 4, 6)])
    next(earlier)
    assert len(next(train.plain([torch.arange(2)]))[1]) == 2
    with pytest.raises(RuntimeError, match="photos: another pass over this set has begun"):
        next(earlier)
    with pytest.raises(ValueError, match="positions 20 to 22 of an epoch of 21 images"):
        next(train.augmented(0, [(0, 20, 22)]))


def test_a_pass_that_is_given_up_keeps_no_workers(data_dir):
    train, _ = load(data_dir, workers=2)
    batches = train.augmented(0, ((0, i, i + 3) for i in range(0, 21, 3)))
    next(batches)
    workers = train._loader._iterator._workers
    gc.disable()  # nothing is left for it to find
    del batches, train
    gc.enable()
    assert not any(worker.is_alive() for worker in workers)


def test_what_goes_to_other_processes_can_be_pickled(data_dir):
    listing = list_images(data_dir / "photos" / "train")
    reader = Reader(listing.folder, listing.names, INFO, best_decoder())
    again = pickle.loads(pickle.dumps(reader))
    for task in (Task(np.array([3, 9])), Task(np.array([3, 9]), 1, 2)):
        assert same([again.__getitems__(task)], [reader.__getitems__(task)])


# Decoding


def test_an_image_is_decoded_by_its_content_and_not_turned(data_dir):
    for path, (width, height), prepare in zip(files(data_dir), SIZES * 3, PREPARE * 3, strict=True):
        image = Image.open(path)
        assert (image.format == "PNG") == (prepare == "png") and image.size == (width, height)
        assert image.mode == {"grey": "L", "cmyk": "CMYK"}.get(prepare, "RGB")
        assert (image.getexif().get(0x0112) == 6) == (prepare == "exif")
        pixels = decode_with_pillow(path.read_bytes())
        assert np.array_equal(pixels.permute(1, 2, 0).numpy(), np.asarray(image.convert("RGB")))


def test_torchcodec_gives_the_pixels_of_pillow(data_dir):
    pytest.importorskip("torchcodec.decoders")
    assert best_decoder() is decode_with_torchcodec
    for path in files(data_dir):
        assert torch.equal(decode_with_torchcodec(path.read_bytes()), decode_with_pillow(path.read_bytes())), path


@pytest.mark.parametrize("error", [ImportError, OSError, RuntimeError])
def test_without_a_torchcodec_that_can_be_loaded_pillow_decodes(monkeypatch, error):
    class Broken:
        def __getattr__(self, name):
            raise error("libtorch is another one")

    monkeypatch.setitem(sys.modules, "torchcodec.decoders", Broken())
    monkeypatch.setitem(sys.modules, "torchcodec", Broken())
    assert best_decoder() is decode_with_pillow


@pytest.fixture
def copied(data_dir, tmp_path):
    subprocess.run(["cp", "-r", str(data_dir / "photos"), str(tmp_path)], check=True)
    return tmp_path


def truncate(path):
    os.truncate(path, path.stat().st_size // 2)


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("damage, reason", [
    (truncate, "truncated"),
    (lambda path: path.write_bytes(b""), "cannot identify image"),
    (lambda path: path.write_text("<html>404</html>"), "cannot identify image"),
    (lambda path: path.unlink(), "FileNotFoundError"),
])  # fmt: skip
def test_a_damaged_file_is_named_in_one_line(copied, workers, damage, reason):
    train, _ = load(copied, workers)
    path = listed(copied)[8]
    damage(path)
    batches = train.plain(torch.arange(21).split(3))
    assert len([next(batches) for _ in range(2)]) == 2  # it is the ninth image
    with pytest.raises(DatasetUnavailable) as failure:
        next(batches)
    line = str(failure.value)
    del failure  # it holds this frame, in a circle that keeps the workers until it is searched for
    assert line.startswith(f"{path}: not readable as an image (") and reason in line and "\n" not in line
    assert line.endswith("replace the file by an intact one")
    assert len(next(train.plain([torch.arange(3)]))[1]) == 3  # the workers are still there


# Worker processes


def kill(signal, process):
    subprocess.run(["kill", f"-{signal}", str(process)], check=True)  # as another process than the parent would


def process_ids(train):
    """Start the workers, and find them among the children of this process."""
    list(train.plain([torch.arange(3)] * 4))  # all have started
    with open(f"/proc/self/task/{os.getpid()}/children") as children:
        return [int(number) for number in children.read().split()]


@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="finds the workers in Linux's /proc")
def test_workers_leave_signals_to_their_parent(data_dir, whole):
    before = set(process_ids(load(data_dir)[0]))
    train, _ = load(data_dir, workers=2)
    workers = set(process_ids(train)) - before
    assert len(workers) == 2
    for worker in workers:
        kill("INT", worker), kill("TERM", worker)
    assert same(train.augmented(1, [(0, 0, 21), (1, 0, 21)]), whole)


@pytest.mark.slow
@pytest.mark.parametrize("ending, code", [("", 0), ("import signal; signal.raise_signal(signal.SIGTERM)", -15)])
def test_a_program_that_ends_takes_its_workers_along(data_dir, ending, code):
    script = f"""
from dataset import DatasetInfo, open_folders
info = DatasetInfo("photos", 3, (0.5,) * 3, (0.25,) * 3, flip=True, image_size=64)
train, test = open_folders(info, {str(data_dir)!r}, "cpu", workers=2)
batches = train.augmented(0, [(0, i, i + 1) for i in range(20)])
next(batches), next(test.plain(train.labels.split(3)))
{ending}
"""
    done = subprocess.run([sys.executable, "-c", script], stdout=subprocess.PIPE, timeout=300)  # until all close it
    assert done.returncode == code


# Refusals


def missing(folder):
    subprocess.run(["rm", "-r", folder / "val"], check=True)


def flat(folder):
    missing(folder)
    (folder / "val").mkdir()
    for i in range(5):
        (folder / "val" / f"{i}.JPEG").touch()


def fewer(folder):
    subprocess.run(["rm", "-r", folder / "train" / "c"], check=True)


def empty(folder):
    for path in (folder / "val" / "b").glob("*.JPEG"):
        path.unlink()


def renamed(folder):
    (folder / "val" / "b").rename(folder / "val" / "d")


@pytest.mark.parametrize("spoil, error, expected", [
    (missing, DatasetUnavailable, "{0}/val: no such folder; put the images of photos into {0}/train/<class>/ and "
     "{0}/val/<class>/, or make {0} a link to a folder that has them"),
    (flat, ValueError, "{0}/val: found no class folders but 5 files, expected <class>/<image> there"),
    (fewer, ValueError, "{0}/train: found 2 class folders, expected 3"),
    (empty, ValueError, "{0}/val/b: found no images, expected at least one in the folder of a class"),
    (renamed, ValueError, "{0}: class folder b is in only one of train and val, expected it in both"),
])  # fmt: skip
def test_a_folder_that_is_not_in_order_is_refused(copied, spoil, error, expected):
    folder = copied / "photos"
    spoil(folder)
    with pytest.raises(error) as failure:
        load(copied)
    assert type(failure.value) is error and str(failure.value) == expected.format(folder)


def test_a_negative_number_of_workers_is_refused(data_dir):
    with pytest.raises(ValueError, match="^workers: found -1, expected at least 0$"):
        load(data_dir, workers=-1)


# The entries


def test_only_the_first_process_searches_the_folders(data_dir, monkeypatch):
    monkeypatch.setitem(dataset_dict, "photos", INFO)
    called = []

    def on_first(function, *arguments):
        called.append(function.__name__)
        return pickle.loads(pickle.dumps(function(*arguments)))

    train, test = load_dataset("photos", str(data_dir), workers=0, on_first=on_first)
    assert called == ["subfolder", "list_splits"] and isinstance(train, FolderSet) and len(test) == 21
    assert train.info is INFO and train.device == torch.device("cpu")


def make_classes(folder, names):
    for split in ("train", "val"):
        for name in names:
            (folder / split / name).mkdir(parents=True)
            photograph("flower.jpg", 0, 50, 40).save(folder / split / name / "1.JPEG")


WORDNET = (  # numbers of tench to parachute, as published
    "n01440764 n02102040 n02979186 n03000684 n03028079 n03394916 n03417042 n03425413 n03445777 n03888257"
).split()


@pytest.mark.parametrize("folder", ["imagenette", "imagenette2"])
def test_imagenette_is_found(tmp_path, folder, monkeypatch, capsys):
    download = "torchvision.datasets.imagenette.download_and_extract_archive"
    monkeypatch.setattr(download, lambda *args, **kwargs: pytest.fail("downloads what is there"))
    make_classes(tmp_path / folder, WORDNET)
    train, test = load_dataset("imagenette", str(tmp_path))
    assert (len(train), len(test)) == (10, 10) and next(iter(batches_in_order(test)))[0].shape == (10, 3, 224, 224)
    assert dataset_dict["imagenette"].class_names(str(tmp_path)) == WORDNET
    assert capsys.readouterr().out == (
        f"imagenette: 10 training and 10 test images in {tmp_path / folder}; "
        "warning: the complete set has 9,469 and 3,925\n"
    )


def test_imagenette_is_downloaded_when_absent(tmp_path, monkeypatch):
    fetched = []

    def fetch(url, root, md5):
        fetched.append(url)
        make_classes(tmp_path / "imagenette2", WORDNET)

    monkeypatch.setattr("torchvision.datasets.imagenette.download_and_extract_archive", fetch)
    assert len(load_dataset("imagenette", str(tmp_path))[0]) == 10
    assert [url.rsplit("/", 1)[1] for url in fetched] == ["imagenette2.tgz"]


def test_imagenette_without_network_says_what_to_do(tmp_path, monkeypatch):
    def no_network(*args, **kwargs):
        raise URLError("Name or service\nnot known")

    monkeypatch.setattr("torchvision.datasets.imagenette.download_and_extract_archive", no_network)
    with pytest.raises(DatasetUnavailable) as failure:
        load_dataset("imagenette", str(tmp_path))
    line = str(failure.value)
    assert "\n" not in line
    for part in ("service not known", "imagenette2.tgz", "https://github.com/fastai/imagenette", str(tmp_path)):
        assert part in line


def test_imagenet_without_files_says_what_to_do(tmp_path):
    with pytest.raises(DatasetUnavailable, match=f"^{re.escape(str(tmp_path))}/imagenet/train: no such folder; put"):
        load_dataset("imagenet", str(tmp_path))


def test_imagenet_with_other_classes_is_refused(tmp_path):
    make_classes(tmp_path / "imagenet", WORDNET)
    with pytest.raises(ValueError, match="imagenet/train: found 10 class folders, expected 1000"):
        load_dataset("imagenet", str(tmp_path))


def test_the_recipe_is_the_published_one():
    """He et al. (CVPR 2016) and torchvision's reference: 0.1 at a batch of 256, weight decay 1e-4, 224 pixels."""
    for name, classes in (("imagenet", 1000), ("imagenette", 10)):
        info = dataset_dict[name]
        recipe = info.recipe
        assert (recipe.lr, recipe.batch_size, recipe.weight_decay) == (0.1, 256, 1e-4)
        assert (recipe.epochs, recipe.lr_decay_epochs) == (100, (30, 60, 90))
        assert (info.num_classes, info.image_size, info.drop_last) == (classes, 224, True)
        published = ResNet34_Weights.IMAGENET1K_V1.transforms()
        assert (list(info.mean), list(info.std)) == (published.mean, published.std)
        assert (published.crop_size, published.resize_size) == ([224], [256])
