"""Stage 2, generate_PCD_PI.py: stored clouds, diagrams, images and specs against GUDHI and plain forward passes."""

import dataclasses
import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from support.gudhis import gudhi_bars, gudhi_image, released_recipe
from support.running import CLASSES, CLOUDS, POINTS, TEACHER, make_clouds, make_teacher, refused, work_in

import generate_PCD_PI
import train_ripsnet
from dataset import DatasetInfo, TrainLoader, load_dataset
from helper.clouds import embedding, making, store
from helper.clouds.embedding import Embedder
from helper.clouds.store import CLAIM, CloudSet, Origin, claim, read_origin
from helper.errors import UserError
from helper.files import checkpoint
from helper.networks import load_network
from helper.settings import CloudMaking, Repetition
from helper.student.topology import load_spec
from models import create_model
from ripsnet import subsample_sigma

SET = ("--path_t", TEACHER, "--dataset", "noise", "--device", "cpu", "--batch_size", POINTS)


def read(kind, folder=CLOUDS):
    return np.concatenate([np.load(path) for path in sorted((folder / kind).glob("*.npy"))])


def read_spec(dim, folder=CLOUDS):
    return json.loads((folder / f"spec_dim{dim}.json").read_text())


def batches(passes=2, points=POINTS, seed=0):
    """The images of the clouds, in order."""
    loader = TrainLoader(load_dataset("noise", "")[0], points, seed, drop_last=True)
    return [images for number in range(passes) for images, _, _ in loader.epoch(number)]


def plain_forward(layer=-1, train=False):
    """Clouds (N, n, d) of the teacher, a forward pass a cloud, BatchNorm not folded."""
    model = create_model("resnet8", CLASSES)
    model.load_state_dict(checkpoint.load(TEACHER)["model"])
    model.train(train)
    clouds = []
    with torch.no_grad():
        for images in batches():
            features, logits = model(images, is_feat=True)
            cloud = logits if layer == 0 else features[layer]
            clouds.append(cloud.mean((2, 3)) if cloud.ndim == 4 else cloud)
    return torch.stack(clouds).numpy()


def contents(folder):
    """Bytes of everything below a folder, but for the options with which it was made and the lock of a process."""
    paths = [path for path in folder.rglob("*") if path.is_file() and path.name != "args.json"]
    return {path.relative_to(folder): path.read_bytes() for path in paths if not path.name.startswith(".lock")}


def opened(folder, num_clouds=10):
    """The set of clouds in a folder of stage 2."""
    return CloudSet(folder, num_clouds, read_origin(folder / CLAIM), pixels=400)


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    work_in(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def both_dimensions(tmp_path_factory):
    """The finished folder of stage 2 with --dim 01; not to be changed."""
    folder = tmp_path_factory.mktemp("clouds")
    with pytest.MonkeyPatch.context() as patch:
        work_in(folder, patch)
        make_clouds("--dim", "01")
    return folder / CLOUDS


def test_clouds_are_float16_and_have_one_row_an_image(both_dimensions):
    clouds = read("clouds", both_dimensions)
    assert clouds.dtype == np.float16 and clouds.shape == (10, POINTS, 64)


@pytest.mark.parametrize("dim", [0, 1])
def test_diagrams_are_gudhis_of_the_rounded_clouds(both_dimensions, dim):
    clouds = read("clouds", both_dimensions)
    files = opened(both_dimensions, len(clouds))
    found = [bars for chunk in files.chunks for bars in files.read_diagrams(dim, chunk)]
    assert len(found) == len(clouds)
    expected = [gudhi_bars(cloud, dim) for cloud in clouds]
    assert sum(map(len, expected)) > len(clouds)
    for bars, reference in zip(found, expected, strict=True):
        if dim == 0:
            assert bars.numpy() == pytest.approx(reference[:, 1], abs=1e-6)
        else:
            assert np.sort(bars, axis=0) == pytest.approx(np.sort(reference, axis=0), abs=1e-6)
    before_rounding = [gudhi_bars(cloud, 0)[:, 1] for cloud in plain_forward()]
    assert np.abs(read("diagrams_dim0", both_dimensions) - before_rounding).max() > 1e-5  # the test can tell


@pytest.mark.parametrize("dim", [0, 1])
def test_an_image_follows_from_its_cloud_and_the_spec_alone(both_dimensions, dim):
    images, spec = read(f"images_dim{dim}", both_dimensions), read_spec(dim, both_dimensions)
    assert images.dtype == np.float32 and images.shape == (10, 400)
    expected = [gudhi_image(cloud, spec) for cloud in read("clouds", both_dimensions)]
    assert np.abs(images - expected).max() < 1e-5
    assert images.max() == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("dim, size, numbers", [(0, 3, [7, 8, 9]), (1, 64, [8, 9])])
def test_the_sample_is_the_end_of_the_last_file_of_clouds(monkeypatch, dim, size, numbers):
    monkeypatch.setattr(making, "SAMPLE", size)
    monkeypatch.setattr(store, "CHUNK", 8 if dim else 10)
    make_clouds("--dim", dim)
    sample, spec = np.load(CLOUDS / f"sample_dim{dim}.npz"), read_spec(dim)
    assert sample["cloud"].tolist() == numbers
    assert np.array_equal(sample["points"], read("clouds")[numbers])
    expected = [gudhi_image(cloud, spec) for cloud in sample["points"]]
    assert np.abs(sample["images"] - expected).max() < 1e-5


@pytest.mark.parametrize("dim", [0, 1])
def test_sigma_and_range_are_those_of_the_released_recipe(both_dimensions, dim):
    spec = read_spec(dim, both_dimensions)
    sigma, image_range = released_recipe(read("clouds", both_dimensions), dim)
    assert spec["sigma"] == pytest.approx(sigma, rel=1e-6)
    assert spec["image_range"] == pytest.approx(image_range, rel=1e-6)


@pytest.mark.parametrize("dim", [0, 1])
def test_images_of_another_resolution_and_range_are_gudhis_in_a_folder_of_their_own(dim):
    make_clouds("--dim", dim, "--resolution", 7, "--range", "q99")
    folder = CLOUDS.with_name("layer-1_n12_eval_released_res7_q99")
    clouds, spec = read("clouds", folder), read_spec(dim, folder)
    assert spec["resolution"] == [7, 7]
    expected = [gudhi_image(cloud, spec) for cloud in clouds]
    assert np.abs(read(f"images_dim{dim}", folder) - expected).max() < 1e-5
    bars = np.concatenate([gudhi_bars(cloud, dim) for cloud in clouds])
    points = np.column_stack([bars[:, 0], bars[:, 1] - bars[:, 0]])
    low, high = (np.quantile(points, q, axis=0) for q in (0.01, 0.99))
    assert spec["image_range"] == pytest.approx([low[0], high[0], low[1], high[1]], rel=1e-6)
    quality = json.loads((folder / f"quality_dim{dim}.json").read_text())
    inside = ((points >= low * (1 - 1e-9)) & (points <= high * (1 + 1e-9))).all(axis=1)
    assert quality["in_range"] == pytest.approx(inside.mean(), abs=1.5 / len(points)) and inside.mean() < 1
    assert quality["rows_with_98_percent_of_the_mean_image"] <= 7
    make_clouds("--dim", dim)
    assert not {"range_rule", "clouds"} & read_spec(dim).keys() and read_spec(dim)["resolution"] == [20, 20]
    assert (read("clouds") == clouds).all()


@pytest.mark.parametrize("dim", [0, 1])
def test_the_released_sigma_sees_only_the_first_200_points(dim):
    make_clouds("--dim", dim, "--batch_size", 60, "--passes", 8)
    folder = CLOUDS.with_name("layer-1_n60_eval_released")
    clouds = read("clouds", folder)
    counts = np.cumsum([len(gudhi_bars(cloud, dim)) for cloud in clouds])
    assert counts[-1] > 250 and 200 not in counts  # the 200th point lies within a cloud, whose order matters
    sigma, image_range = released_recipe(clouds, dim)
    # death times are float32 in dimension 0, and sigma is a difference of such
    assert read_spec(dim, folder)["sigma"] == pytest.approx(sigma, rel=1e-5)
    assert read_spec(dim, folder)["image_range"] == pytest.approx(image_range, rel=1e-6)


@pytest.mark.parametrize("dim", [0, 1])
def test_sigma_rule_subsample_is_subsample_sigma_over_all_points(dim):
    rng = np.random.default_rng(dim)
    origin = Origin("", "", "", -1, 32, 64, "eval", "subsample", 5, "float16")
    files = CloudSet(Path("set"), 100, origin, pixels=400)
    claim(files.folder, origin)
    points = []
    for chunk in files.chunks:
        start, stop = files.span(chunk)
        if dim == 0:
            diagrams = np.sort(rng.uniform(0, 9, (stop - start, 31))).astype(np.float32)
            points += [(0, death) for death in diagrams.flat]
        else:
            diagrams = [np.cumsum(rng.uniform(0, 5, (k, 2)), axis=1) for k in rng.integers(0, 50, stop - start)]
            points += [(birth, death - birth) for bars in diagrams for birth, death in bars]
        files.write_diagrams(dim, chunk, diagrams)
    assert len(points) > 2000  # so that something is drawn
    assert making.image_sigma(files, dim, "subsample", None) == pytest.approx(
        subsample_sigma(points, seed=5), rel=1e-12
    )


def test_quality_counts_bars(both_dimensions):
    quality = json.loads((both_dimensions / "quality_dim0.json").read_text())
    spec, rows = read_spec(0, both_dimensions), read("images_dim0", both_dimensions)[:, ::20].mean(0)
    step = (spec["image_range"][3] - spec["image_range"][2]) / 19
    assert quality["bars"] == 10 * (POINTS - 1) and quality["zero_bars"] == 0 and quality["in_range"] == 1
    assert quality["persistence_step_over_sigma"] == pytest.approx(step / spec["sigma"])
    fewest = quality["rows_with_98_percent_of_the_mean_image"]
    share = np.cumsum(sorted(rows, reverse=True)) / rows.sum()
    assert share[fewest - 2] < 0.98 <= share[fewest - 1]


@pytest.mark.parametrize("layer, width", [(0, CLASSES), (-1, 64), (-2, 64), (-3, 32), (-5, 16)])
def test_eval_clouds_equal_a_plain_forward_at_every_layer(layer, width):
    make_clouds("--tda_layer_t", layer)
    folder = CLOUDS.with_name(f"layer{layer}_n12_eval_released")
    clouds, expected = read("clouds", folder).astype(np.float32), plain_forward(layer)
    assert clouds.shape == (10, POINTS, width) and read_spec(0, folder)["cloud_width"] == width
    assert np.abs(clouds - expected).max() < 1e-3 * np.abs(expected).max()


def test_train_clouds_are_normalised_by_their_own_batch():
    make_clouds("--pcd_bn", "train")
    clouds = read("clouds", CLOUDS.with_name("layer-1_n12_train_released")).astype(np.float32)
    expected = plain_forward(train=True)
    assert np.abs(clouds - expected).max() < 1e-3 * np.abs(expected).max()
    assert np.abs(plain_forward() - expected).max() > 0.1 * np.abs(expected).max()  # the two modes differ


@pytest.mark.parametrize("bn", ["eval", "train"])
def test_an_embedder_leaves_the_network_as_it_was(bn):
    model = load_network(TEACHER, None, "").model
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    loader = TrainLoader(load_dataset("noise", "")[0], POINTS, seed=0, drop_last=True)
    list(Embedder(model, loader, -1, bn).clouds(0, 7))
    assert not any(module.training for module in model.modules())
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())


@pytest.mark.parametrize("images_a_forward", [1, 2 * POINTS, 3 * POINTS, 1024])
def test_cloud_number_i_is_the_same_batch_whatever_the_group_size(monkeypatch, images_a_forward):
    monkeypatch.setitem(embedding.IMAGES_A_FORWARD, "cpu", images_a_forward)
    model = load_network(TEACHER, None, "").model
    loader = TrainLoader(load_dataset("noise", "")[0], POINTS, seed=0, drop_last=True)
    expected = torch.from_numpy(plain_forward())
    for start, stop in ((0, 10), (3, 9), (5, 6)):
        clouds = torch.cat(list(Embedder(model, loader, -1, "eval").clouds(start, stop)))
        torch.testing.assert_close(clouds, expected[start:stop], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device, size, at_once", [("cpu", 32, 4), ("cuda", 32, 16), ("cuda", 224, 4)])
def test_a_forward_has_as_many_images_as_memory_holds(device, size, at_once):
    """Clouds of 64 images, of 100 in a pass."""
    info = DatasetInfo("", 2, (0.5,) * 3, (0.5,) * 3, flip=True, image_size=size)
    images = SimpleNamespace(info=info, device=torch.device(device))

    class Loader:
        batch_size, image_set = 64, images

        def __len__(self):
            return 100

    embedder = Embedder(load_network(TEACHER, None, "").model, Loader(), -1, "eval")
    spans = list(embedder.spans(98, 120))
    assert spans[:2] == [(0, 98 * 64, 100 * 64), (1, 0, at_once * 64)] and spans[-1][2] == 20 * 64


def test_a_second_dimension_reuses_the_clouds_and_01_makes_both(both_dimensions, monkeypatch):
    make_clouds("--dim", 0)
    assert not (CLOUDS / "images_dim1").exists() and not (CLOUDS / "spec_dim1.json").exists()
    monkeypatch.setattr(Embedder, "clouds", None)  # fails when called
    make_clouds("--dim", 1)
    assert contents(CLOUDS) == contents(both_dimensions)


def test_num_clouds_cuts_the_set():
    make_clouds("--num_clouds", 9)
    assert len(read("clouds")) == len(read("images_dim0")) == read_spec(0)["num_clouds"] == 9
    with pytest.raises(UserError, match="--num_clouds: found 11, but --passes 2 make only 10"):
        make_clouds("--num_clouds", 11)


def test_a_cloud_of_part_of_a_batch_is_consecutive_images():
    """17 clouds of 4 images a pass over 70; ten of the 17 begin where no batch of 12 does."""
    make_clouds("--cloud_size", 4, "--cloud_dtype", "float32")
    folder = Path("ripsnet/teacher/layer-1_n4_eval_released")
    assert [path.name for path in Path("ripsnet/teacher").iterdir()] == [folder.name]
    loader = TrainLoader(load_dataset("noise", "")[0], 70, 0)
    model = load_network(TEACHER, None, "").model
    expected = []
    with torch.no_grad():
        for number in range(2):
            (images, _, _), *_ = loader.epoch(number)
            expected.append(model(images, is_feat=True)[0][-1][:68].view(17, 4, 64))
    assert read_spec(0, folder)["points"] == 4
    np.testing.assert_allclose(read("clouds", folder), torch.cat(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("size, what", [
    (5, "--cloud_size: found 5, expected a divisor of --batch_size 12"),
    (24, "--cloud_size: found 24, expected a divisor of --batch_size 12"),
    (1, "--cloud_size: found 1, expected at least 2"),
])  # fmt: skip
def test_a_cloud_size_that_makes_no_clouds_is_refused(size, what):
    with pytest.raises(UserError, match=what):
        make_clouds("--cloud_size", size)
    assert not Path("ripsnet").exists()


def test_more_passes_extend_the_set_as_if_made_at_once():
    make_clouds("--passes", 4, "--dim", "01")
    at_once = contents(CLOUDS)
    shutil.rmtree(CLOUDS)
    make_clouds("--passes", 2, "--dim", "01")
    finished = [CLOUDS / kind / "00000.npy" for kind in ("clouds", "diagrams_dim0", "diagrams_dim1")]
    written = [path.stat().st_mtime_ns for path in finished]
    make_clouds("--passes", 4, "--dim", "01")
    assert [path.stat().st_mtime_ns for path in finished] == written
    assert contents(CLOUDS) == at_once


def test_a_set_of_another_number_replaces_one_only_where_no_ripsnet_is_fitted_to_it(capsys):
    make_clouds("--dim", "01")
    capsys.readouterr()
    make_clouds("--num_clouds", 9)
    assert f"{CLOUDS}: its images of 10 clouds and dimension 0 are replaced by those of 9\n" in capsys.readouterr().out
    make_clouds()
    fitted = CLOUDS / "ripsnet_dim1_sum"
    fitted.mkdir()
    (fitted / "best.pth").touch()
    before = contents(CLOUDS)
    what = f"{CLOUDS} holds images of 10, to which RipsNets are fitted \\(ripsnet_dim1_sum\\); give as many, or"
    for option, value, found in (("--passes", 1, 5), ("--num_clouds", 8, 8), ("--passes", 3, 15)):
        for dims in ("0", "01"):
            with pytest.raises(UserError, match=f"{option}: found {found} clouds, but {what}"):
                make_clouds("--dim", dims, option, value)
    assert contents(CLOUDS) == before


@pytest.fixture
def published(both_dimensions):
    """A set as it is published: its specs, their quality and RipsNets, without the clouds."""
    CLOUDS.mkdir(parents=True)
    for path in both_dimensions.glob("*_dim?.json"):
        shutil.copy(path, CLOUDS)
    fitted = CLOUDS / "ripsnet_dim0_mean"
    fitted.mkdir()
    (fitted / "best.pth").touch()
    return contents(CLOUDS)


@pytest.mark.parametrize("options, what", [
    (("--seed", 2), "holds spec_dim0.json of another origin (seed was 0, now 2); give the old options or remove"),
    (("--passes", 3), "holds images of 10, to which RipsNets are fitted"),
])  # fmt: skip
def test_a_published_set_is_not_replaced_by_another(published, monkeypatch, capsys, options, what):
    line = refused(monkeypatch, capsys, generate_PCD_PI, *SET, "--passes", 2, *options)
    assert what in line and contents(CLOUDS) == published


def test_of_a_published_set_the_clouds_are_made_again(published, both_dimensions):
    make_clouds()
    assert (CLOUDS / "quality_dim1.json").is_file()  # of images that do not change
    make_clouds("--dim", "01")
    assert {path: data for path, data in contents(CLOUDS).items() if path.suffix != ".pth"} == contents(both_dimensions)


def moved(spec, share):
    """The spec with other last digits, as the same clouds have them on another device, by a share of each number; of
    the bounds, of the range."""
    low_b, high_b, low_p, high_p = spec.image_range
    births, persistences = share * (high_b - low_b), share * (high_p - low_p)
    moved_range = (low_b + births, high_b - births, low_p + persistences, high_p - persistences)
    numbers = {"sigma": (1 + share) * spec.sigma, "maximum": (1 - share) * spec.maximum, "image_range": moved_range}
    return dataclasses.replace(spec, **numbers, gudhi_version="3.1")


@pytest.mark.parametrize("dim", [0, 1])
@pytest.mark.parametrize("share, fitted", [(5e-4, True), (5e-4, False), (1e-2, True), (1e-2, False)])
def test_a_spec_stays_where_it_agrees_up_to_rounding(
    published, both_dimensions, monkeypatch, capsys, dim, share, fitted
):
    """So that a RipsNet goes on to fit the spec. The least persistence of dimension 1 is nearly 0, where no relative
    tolerance would do."""
    path = CLOUDS / f"spec_dim{dim}.json"
    spec = load_spec(path)
    rounded = moved(spec, share)
    path.write_text(json.dumps(rounded.to_dict()))
    shutil.rmtree(CLOUDS / "ripsnet_dim0_mean")
    if fitted:
        (CLOUDS / f"ripsnet_dim{dim}_sum").mkdir()
        (CLOUDS / f"ripsnet_dim{dim}_sum/best.pth").touch()
    if fitted and share > 1e-3:
        line = refused(monkeypatch, capsys, generate_PCD_PI, *SET, "--passes", 2, "--dim", dim)
        assert f"{path}: these clouds have other images (sigma was {rounded.sigma}, now {spec.sigma}, " in line
        assert f"fitted to the earlier ones (ripsnet_dim{dim}_sum); remove these folders, or make the clouds" in line
    else:
        make_clouds("--dim", dim)
    assert load_spec(path) == (rounded if fitted or share < 1e-3 else spec)
    if share < 1e-3:
        made, expected = read(f"images_dim{dim}"), read(f"images_dim{dim}", both_dimensions)
        assert np.allclose(made, expected, rtol=0, atol=2e-2) and not np.array_equal(made, expected)


def test_the_other_dimension_is_concerned_where_a_chunk_of_clouds_is_written_again(monkeypatch, capsys):
    monkeypatch.setattr(store, "CHUNK", 5)
    monkeypatch.setattr(generate_PCD_PI, "CHUNK", 5)
    make_clouds("--dim", "01")
    (CLOUDS / "ripsnet_dim1_sum").mkdir()
    (CLOUDS / "ripsnet_dim1_sum/best.pth").touch()
    before = contents(CLOUDS)
    with pytest.raises(UserError, match="--num_clouds: found 8 clouds, but .* holds images of 10, .*ripsnet_dim1_sum"):
        make_clouds("--num_clouds", 8)
    assert contents(CLOUDS) == before
    capsys.readouterr()
    for _ in range(2):
        make_clouds("--passes", 3)
    after = contents(CLOUDS)
    assert "dimension 1 are replaced" not in capsys.readouterr().out
    assert load_spec(CLOUDS / "spec_dim0.json").num_clouds == 15
    assert all(data == after[name] for name, data in before.items() if "dim1" in str(name))


def test_an_extension_that_was_cut_off_is_not_taken_for_complete(monkeypatch):
    make_clouds("--passes", 2)
    monkeypatch.setattr(generate_PCD_PI, "report_quality", None)  # fails when called
    with pytest.raises(TypeError):
        make_clouds("--passes", 4)
    assert not (CLOUDS / "quality_dim0.json").exists()


@pytest.mark.parametrize("kind", ["clouds", "diagrams_dim0", "diagrams_dim1", "images_dim1"])
def test_damaged_and_short_files_are_recognised_and_made_again(both_dimensions, kind):
    shutil.copytree(both_dimensions, CLOUDS)
    files, path = opened(CLOUDS), CLOUDS / kind / "00001.npy"
    whole = path.read_bytes()
    assert files.done(kind, 0) and files.done(kind, 1)
    assert not opened(CLOUDS, 11).done(kind, 1) and not opened(CLOUDS, 9).done(kind, 1)
    for damage in (b"", whole[:20], whole[:-1], b"not an array" * 20):
        path.write_bytes(damage)
        assert not files.done(kind, 1), damage
    path.unlink()
    assert not files.done(kind, 1)
    path.write_bytes(whole[:-8])
    make_clouds("--dim", "01")
    assert contents(CLOUDS) == contents(both_dimensions)


@pytest.mark.parametrize(
    "options, what",
    [
        ((), "teacher_sha256 was"),
        (("--seed", 2), "seed was 0, now 2"),
        (("--cloud_dtype", "float32"), "cloud_dtype was float16, now float32"),
    ],
)
def test_clouds_of_another_origin_are_not_mixed(options, what):
    make_clouds()
    before = contents(CLOUDS)
    if not options:
        make_teacher(seed=1)  # another network in the same place
    with pytest.raises(UserError, match=f"clouds of another origin .*{what}"):
        make_clouds(*options)
    assert contents(CLOUDS) == before


def test_discarded_clouds_leave_the_same_diagrams_images_and_sample(both_dimensions, monkeypatch, capsys):
    make_clouds("--dim", "01", "--discard_clouds")
    expected = {path: data for path, data in contents(both_dimensions).items() if path.parts[0] != "clouds"}
    assert contents(CLOUDS) == expected and not list(Path().rglob("clouds/*"))
    line = refused(monkeypatch, capsys, train_ripsnet, *SET)
    assert (
        f"{CLOUDS}/clouds: holds no clouds, which were discarded (--discard_clouds) or removed; make them with" in line
    )
    assert "generate_PCD_PI.py (the same options, --num_clouds 10, no --discard_clouds)" in line
    make_clouds("--dim", "01")
    assert contents(CLOUDS) == contents(both_dimensions)


def test_clouds_that_are_there_can_be_discarded_later(both_dimensions, monkeypatch):
    shutil.copytree(both_dimensions, CLOUDS)
    monkeypatch.setattr(Embedder, "clouds", None)  # fails when called
    make_clouds("--dim", "01", "--discard_clouds")
    expected = {path: data for path, data in contents(both_dimensions).items() if path.parts[0] != "clouds"}
    assert contents(CLOUDS) == expected


def test_a_set_without_clouds_can_be_extended():
    make_clouds("--passes", 1, "--discard_clouds")
    make_clouds("--passes", 4, "--discard_clouds")
    extended = contents(CLOUDS)
    shutil.rmtree("ripsnet")
    make_clouds("--passes", 4)
    assert extended == {path: data for path, data in contents(CLOUDS).items() if path.parts[0] != "clouds"}


def disk(monkeypatch, free):
    usage = shutil.disk_usage(".")._replace(free=free)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage)


# Ten clouds of 12 points: float16 of width 64, 11 death times and 400 pixels in float32.
NEEDED = {"clouds": 10 * 12 * 64 * 2, "diagrams": 10 * 11 * 4, "images": 10 * 400 * 4}


@pytest.mark.parametrize("options, bytes_needed", [
    ((), sum(NEEDED.values())),
    (("--discard_clouds",), NEEDED["diagrams"] + NEEDED["images"]),
])  # fmt: skip
def test_a_set_that_does_not_fit_the_disk_is_refused_before_it_begins(monkeypatch, capsys, options, bytes_needed):
    disk(monkeypatch, bytes_needed - 1)
    line = refused(monkeypatch, capsys, generate_PCD_PI, *SET, "--passes", 2, *options)
    parts = "clouds 0.0 kB, diagrams 0.4 kB, images 16.0 kB" if options else "clouds 15.4 kB, diagrams 0.4 kB, images"
    assert f"{CLOUDS}: {bytes_needed / 1000:.1f} kB more are needed ({parts}" in line and "kB are free" in line
    assert ("--discard_clouds" in line) is not bool(options) and not Path("ripsnet").exists()
    disk(monkeypatch, bytes_needed)
    make_clouds(*options)


def test_what_is_on_disk_already_needs_no_space(monkeypatch, capsys):
    make_clouds()
    sizes = {kind: sum(path.stat().st_size - 128 for path in (CLOUDS / kind).glob("*.npy")) for kind in store.KINDS}
    parts = sizes["clouds"], sizes["diagrams_dim0"], sizes["images_dim0"]
    assert parts == tuple(NEEDED.values())  # a header of NumPy's has 128 bytes
    disk(monkeypatch, 0)
    make_clouds()


@pytest.mark.slow
def test_sizes_of_imagenet_are_told(monkeypatch, capsys):
    """199,936 clouds of 64 points: 13.1 GB of width 512, 52.4 GB of width 2048; images 0.3 GB."""
    disk(monkeypatch, 10**12)
    for width, size in ((512, "13.1"), (2048, "52.4")):
        origin = Origin("", "", "imagenet", -1, 64, width, "eval", "released", 1, "float16")
        making.check_space(CloudSet(Path("none"), 199_936, origin, 400), ["clouds", "diagrams_dim0", "images_dim0"])
        line = capsys.readouterr().out
        assert line.startswith(f"on disk: clouds {size} GB, diagrams 50.4 MB, images 319.9 MB; {size[:2]}")


def test_float32_clouds_are_not_rounded():
    make_clouds("--cloud_dtype", "float32")
    clouds = read("clouds")
    assert clouds.dtype == np.float32
    np.testing.assert_allclose(clouds, plain_forward(), rtol=1e-4, atol=1e-4)


def test_the_first_trial_is_shown_other_clouds_than_its_ripsnet_was_fitted_to():
    images = load_dataset("noise", "")[0]
    seeds = CloudMaking().seed, Repetition().resolved().seed
    passes, epochs = ([images.views(seed, number) for number in range(1, 9)] for seed in seeds)
    assert not any(torch.equal(views, shown) for views in passes for shown in epochs)
