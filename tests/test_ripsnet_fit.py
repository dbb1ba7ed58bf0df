"""Stage 3, train_ripsnet.py: the data of the fit, its optimizer, early stopping, and what is reported, by NumPy."""

import copy
import csv
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from support.gudhis import gudhi_image
from support.running import CLASSES, CLOUDS, POINTS, TEACHER, call, make_clouds, work_in
from support.tape import Tape

import train_ripsnet
from dataset import TrainLoader, load_dataset
from helper.clouds import fitting
from helper.clouds.fitting import CloudData, TrainStep, fit_ripsnet, steps_at_once
from helper.clouds.store import CloudSet, Origin, claim
from helper.errors import RunStopped, UserError
from helper.files import checkpoint
from helper.files.run import Run
from helper.settings import Fit, plain
from helper.student.topology import load_spec
from models import create_model
from ripsnet import RipsNet

CPU = torch.device("cpu")
FITTED = CLOUDS / "ripsnet_dim0_mean"


def fit(*options):
    """Stage 3 for at most twelve epochs; `options` may say otherwise."""
    usual = ["--path_t", TEACHER, "--dataset", "noise", "--device", "cpu", "--batch_size", POINTS]
    call(train_ripsnet, *usual, "--epochs", 12, "--batch_clouds", 4, *options)


def read(kind, folder=CLOUDS):
    return np.concatenate([np.load(path) for path in sorted((folder / kind).glob("*.npy"))])


def read_spec(dim, folder=CLOUDS):
    return json.loads((folder / f"spec_dim{dim}.json").read_text())


def read_log(path):
    with open(path) as file:
        return [{key: float(value) for key, value in row.items()} for row in csv.DictReader(file)]


def numpy_ripsnet(weights, clouds, operator="mean"):
    """RipsNet written out: (N, n, d) -> (N, 400)."""
    weights = {name: tensor.double().numpy() for name, tensor in weights.items()}
    x = clouds.astype(np.float64)
    for layer in (1, 2, 3):
        x = np.maximum(0, x @ weights[f"layer{layer}.linear.weight"].T + weights[f"layer{layer}.linear.bias"])
    x = getattr(np, operator)(x, axis=1)
    for layer in (4, 5, 6):
        x = np.maximum(0, x @ weights[f"layer{layer}.linear.weight"].T)
    return 1 / (1 + np.exp(-x @ weights["layer7.linear.weight"].T))


def random_set(count, points=6, width=5):
    """A set of random clouds and images in chunks of eight, dimension 0."""
    rng = np.random.default_rng(0)
    origin = Origin("", "", "", -1, points, width, "eval", "released", 0, "float16")
    files = CloudSet(Path("set"), count, origin, pixels=400)
    claim(files.folder, origin)
    for chunk in files.chunks:
        start, stop = files.span(chunk)
        files.write("clouds", chunk, rng.normal(size=(stop - start, points, width)).astype(np.float16))
        files.write("images_dim0", chunk, rng.uniform(size=(stop - start, 400)).astype(np.float32))
    return files, *(torch.from_numpy(read(kind, files.folder)) for kind in ("clouds", "images_dim0"))


def fit_set(files, train, validation, epochs, patience=1000, lr=1e-3, resume=False):
    """fit_ripsnet on ranges of clouds of width 5: (network, log)."""
    torch.manual_seed(0)
    network = RipsNet(5)
    fit = Fit(epochs=epochs, patience=patience, lr=lr, batch_clouds=4)
    data = [CloudData(files, 0, span.start, span.stop, CPU, True) for span in (train, validation)]
    return network, fit_ripsnet(network, *data, Run(Path("run"), plain(fit), CPU, resume), fit)


@pytest.fixture(autouse=True)
def in_tmp_path(tmp_path, monkeypatch):
    work_in(tmp_path, monkeypatch)


@pytest.fixture(scope="module")
def fitted(tmp_path_factory):
    """The folder in which stages 2 and 3 ran, the former in both BatchNorm modes; not to be changed."""
    folder = tmp_path_factory.mktemp("fitted")
    with pytest.MonkeyPatch.context() as patch:
        work_in(folder, patch)
        make_clouds("--passes", 8)
        make_clouds("--passes", 8, "--pcd_bn", "train")
        fit("--patience", 3, "--lr", 0.01)
    return folder


@pytest.mark.parametrize("span", [(0, 21), (3, 6), (7, 17), (20, 21)])
def test_data_on_the_device_and_on_disk_is_the_same(span):
    files, clouds, images = random_set(21)
    start, stop = span
    index = torch.from_numpy(np.random.default_rng(0).permutation(stop - start))
    for on_device in (True, False):
        data = CloudData(files, 0, start, stop, CPU, on_device)
        assert len(data) == stop - start
        found = data.batch(index)
        assert found[0].dtype == found[1].dtype == torch.float32
        assert torch.equal(found[0], clouds[start:stop].float()[index])
        assert torch.equal(found[1], images[start:stop][index])
        torch.testing.assert_close(data.mean_image(), images[start:stop].mean(0))


def test_training_on_the_device_and_from_disk_gives_equal_networks(monkeypatch):
    weights = []
    for on_device in (True, False):
        monkeypatch.setattr(train_ripsnet, "fits_in_memory", lambda *_, answer=on_device: answer)
        make_clouds()
        fit("--epochs", 3)
        weights.append(checkpoint.load(FITTED / "best.pth")["model"])
        Path(FITTED).rename(f"on_device_{on_device}")
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_an_epochs_order_shows_each_cloud_once_and_follows_from_seed_and_epoch():
    files, _, _ = random_set(21)
    data, on_disk = (CloudData(files, 0, 5, 21, CPU, on_device) for on_device in (True, False))
    orders = {(seed, epoch): data.order(seed, epoch) for seed in (1, 2) for epoch in (1, 2)}
    torch.manual_seed(3)
    np.random.seed(3)
    for key, order in orders.items():
        assert sorted(order.tolist()) == list(range(16))
        assert torch.equal(order, data.order(*key)) and torch.equal(order, on_disk.order(*key))
    assert len({tuple(order.tolist()) for order in orders.values()}) == 4


def test_bytes_needed_are_those_of_the_arrays():
    files, clouds, images = random_set(21)
    assert CloudData.bytes_needed(files, 0) == clouds.nbytes + images.nbytes


def test_adamax_takes_the_steps_of_its_formula():
    """Kingma and Ba, ICLR 2015, algorithm 2, with epsilon where PyTorch documents it."""
    torch.manual_seed(0)
    network = RipsNet(5)
    clouds, images = torch.randn(3, 4, 6, 5), torch.rand(3, 4, 400)
    weight = network.layer7.linear.weight
    theta, m, u = weight.detach().double().clone(), 0.0, 0.0
    step = TrainStep(network, lr=0.01)
    for t in (1, 2, 3):
        loss = step(clouds[t - 1], images[t - 1])
        g = weight.grad.double()
        m = 0.9 * m + 0.1 * g
        u = torch.maximum(0.999 * torch.as_tensor(u), g.abs() + 1e-8)
        theta = theta - 0.01 / (1 - 0.9**t) * m / u
        torch.testing.assert_close(weight.double(), theta, rtol=1e-4, atol=1e-6)
    assert loss.item() == pytest.approx(0.085, abs=0.02)  # the mean over pixels: 1/12 for uniform pixels


@pytest.mark.parametrize("whole, count", [(2343, 71), (2347, 69), (100, 100), (7, 7), (1, 1), (101, 100), (97, 97)])
def test_the_steps_of_a_graph_leave_few_over(whole, count):
    assert steps_at_once(whole) == count


class Capturable(TrainStep):
    """A step as on CUDA: Adamax counts its steps in a tensor that takes part in the computation."""

    def __init__(self, network, lr):
        super().__init__(network, lr)
        self.on_cuda = self.optimizer.param_groups[0]["capturable"] = True


@pytest.fixture
def capturable(monkeypatch):
    monkeypatch.setattr(sys.modules["torch.optim.adamax"], "_get_capturable_supported_devices", lambda **_: ["cpu"])
    monkeypatch.setattr(fitting, "TrainStep", Capturable)


def test_a_fit_whose_steps_are_replayed_equals_one_whose_steps_run(capturable, monkeypatch):
    """43 clouds to train: ten whole batches in graphs of three, and a batch of three clouds."""
    files, tape, found = random_set(50)[0], Tape(), []
    monkeypatch.setattr(fitting, "steps_at_once", lambda whole: 3)
    for capture in (None, tape):
        monkeypatch.setattr(fitting, "capture_on", lambda device, capture=capture: capture)
        network, history = fit_set(files, range(43), range(43, 50), epochs=3)
        optimizer = checkpoint.load("run/last.pth")["optimizer"]["state"]
        found.append((network.state_dict(), optimizer, [(row["train_mse"], row["val_mse"]) for row in history]))
        shutil.rmtree("run")
    (weights, slots, losses), (replayed, replayed_slots, replayed_losses) = found
    assert tape.captures == 1 and losses == replayed_losses and len(set(losses)) == 3
    assert all(torch.equal(weights[name], replayed[name]) for name in weights)
    for number, slot in slots.items():
        assert slot["step"] == 33 and all(torch.equal(slot[name], replayed_slots[number][name]) for name in slot)


def test_a_replayed_fit_goes_on_from_its_checkpoint(capturable, monkeypatch):
    files = random_set(50)[0]
    monkeypatch.setattr(fitting, "steps_at_once", lambda whole: 3)
    monkeypatch.setattr(fitting, "capture_on", lambda device: Tape())
    monkeypatch.setattr(fitting, "SAVE_EVERY", 0.0)
    whole, _ = fit_set(files, range(43), range(43, 50), epochs=4)
    shutil.rmtree("run")
    fit_set(files, range(43), range(43, 50), epochs=2)
    state = checkpoint.load("run/last.pth")
    state["args"]["epochs"] = 4
    checkpoint.save(Path("run/last.pth"), state)
    parts, _ = fit_set(files, range(43), range(43, 50), epochs=4, resume=True)
    assert all(torch.equal(weights, parts.state_dict()[name]) for name, weights in whole.state_dict().items())


def test_fitting_stops_after_patience_epochs_without_a_better_loss_and_keeps_the_best(monkeypatch):
    losses = [5.0, 4.0, 4.5, 3.0, 3.0 - 5e-11, 3.2, 3.1, 1.0]
    seen = []

    def validation_loss(network, data):
        seen.append({name: tensor.clone() for name, tensor in network.state_dict().items()})
        return losses[len(seen) - 1]

    monkeypatch.setattr(fitting, "mean_squared_error", validation_loss)
    network, history = fit_set(random_set(12)[0], range(8), range(8, 12), epochs=8, patience=3)
    assert [row["val_mse"] for row in history] == losses[:7]  # a gain of 5e-11 is none
    assert [row["best_val_mse"] for row in history] == [5, 4, 4, 3, 3, 3, 3]
    assert all(torch.equal(tensor, seen[3][name]) for name, tensor in network.state_dict().items())
    assert not torch.equal(seen[3]["layer1.linear.weight"], seen[6]["layer1.linear.weight"])


@pytest.mark.slow
def test_a_ripsnet_learns_eight_clouds_by_heart():
    files, clouds, _ = random_set(8)
    spec = {"dim": 0, "sigma": 0.5, "image_range": [0, 0, 0, 6], "maximum": 1}
    clouds = clouds.numpy() * np.linspace(0.5, 2, 8, dtype=np.float16)[:, None, None]
    images = np.stack([gudhi_image(cloud, spec) for cloud in clouds])
    images /= images.max()
    files.write("clouds", 0, clouds)
    files.write("images_dim0", 0, images.astype(np.float32))
    network, _ = fit_set(files, range(8), range(8), epochs=300, lr=5e-3)
    errors = (numpy_ripsnet(network.state_dict(), clouds) - images) ** 2
    assert 1 - errors.mean() / ((images.mean(axis=0) - images) ** 2).mean() > 0.9


def test_a_fit_that_diverges_stops_with_one_line(monkeypatch):
    monkeypatch.setattr(fitting, "mean_squared_error", lambda *_: float("nan"))
    with pytest.raises(RunStopped, match="non-finite in epoch 1 .*lower --lr"):
        fit_set(random_set(12)[0], range(8), range(8, 12), epochs=2)


def test_three_quarters_train_and_the_rest_validates(fitted):
    quality = json.loads((fitted / FITTED / "quality.json").read_text())
    assert (quality["train_clouds"], quality["val_clouds"]) == (30, 10)


def test_errors_and_r2_are_those_numpy_finds(fitted):
    content = torch.load(fitted / FITTED / "best.pth", weights_only=True)
    clouds, images = read("clouds", fitted / CLOUDS), read("images_dim0", fitted / CLOUDS).astype(np.float64)
    errors = (numpy_ripsnet(content["model"], clouds[30:]) - images[30:]) ** 2
    baseline = (images[:30].mean(axis=0) - images[30:]) ** 2
    quality, log = content["quality"], read_log(fitted / FITTED / "log.csv")
    assert quality["val_mse"] == pytest.approx(errors.mean(), rel=1e-4)
    assert quality["mean_image_mse"] == pytest.approx(baseline.mean(), rel=1e-4)
    assert quality["r2"] == pytest.approx(1 - errors.mean() / baseline.mean(), abs=1e-4)
    assert min(row["val_mse"] for row in log) == pytest.approx(errors.mean(), rel=1e-4)
    assert quality["epochs"] == len(log)
    assert json.loads((fitted / FITTED / "quality.json").read_text()) == quality


def test_a_ripsnet_that_sees_fewer_clouds_is_validated_on_the_same(fitted):
    shutil.copytree(fitted / "ripsnet", "ripsnet")
    fit("--ripsnet_clouds", 6, "--epochs", 2)
    folder = CLOUDS / "ripsnet_dim0_mean_clouds6"
    content, log = torch.load(folder / "best.pth", weights_only=True), read_log(folder / "log.csv")
    clouds, images = read("clouds"), read("images_dim0").astype(np.float64)
    errors = (numpy_ripsnet(content["model"], clouds[30:]) - images[30:]) ** 2
    baseline = (images[:6].mean(axis=0) - images[30:]) ** 2
    quality = content["quality"]
    assert (quality["train_clouds"], quality["val_clouds"], len(log)) == (6, 10, 2)
    assert quality["val_mse"] == pytest.approx(errors.mean(), rel=1e-4)
    assert quality["r2"] == pytest.approx(1 - errors.mean() / baseline.mean(), abs=1e-4)
    with pytest.raises(UserError, match="--ripsnet_clouds: found 31, but the training part of .* has 30"):
        fit("--ripsnet_clouds", 31)


@pytest.mark.slow
def test_clouds_beyond_those_it_sees_do_not_change_a_ripsnet(fitted):
    shutil.copytree(fitted / "ripsnet", "ripsnet")
    files = CloudSet.of(CLOUDS, load_spec(CLOUDS / "spec_dim0.json"))
    weights = []
    for _ in range(2):
        fit("--ripsnet_clouds", 8, "--epochs", 2)
        weights.append(checkpoint.load(CLOUDS / "ripsnet_dim0_mean_clouds8" / "last.pth")["model"])
        shutil.rmtree(CLOUDS / "ripsnet_dim0_mean_clouds8")
        said = {path: path.read_bytes() for path in CLOUDS.glob("*_dim0.json")}
        files.write("clouds", 1, 2 * files.read("clouds", 1))  # clouds 8 to 15
        for path, content in said.items():  # it does not say any more that the set is complete
            path.write_bytes(content)
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_the_last_layer_has_the_pixels_of_the_images():
    make_clouds("--resolution", 5)
    fit("--resolution", 5, "--epochs", 2)
    folder = CLOUDS.with_name("layer-1_n12_eval_released_res5")
    content = torch.load(folder / "ripsnet_dim0_mean" / "best.pth", weights_only=True)
    assert content["model"]["layer7.linear.weight"].shape == (25, 200)
    images = read("images_dim0", folder)[7:]
    errors = (numpy_ripsnet(content["model"], read("clouds", folder)[7:]) - images) ** 2
    assert content["quality"]["val_mse"] == pytest.approx(errors.mean(), rel=1e-4)


def test_r2_in_the_other_batchnorm_mode_is_that_of_the_clouds_stage_2_makes_in_it(fitted):
    content = torch.load(fitted / FITTED / "best.pth", weights_only=True)
    clouds = read("clouds", fitted / CLOUDS.with_name("layer-1_n12_train_released"))[30:]
    images = np.stack([gudhi_image(cloud, read_spec(0, fitted / CLOUDS)) for cloud in clouds])
    errors = (numpy_ripsnet(content["model"], clouds) - images) ** 2
    expected = 1 - errors.mean() / ((images.mean(axis=0) - images) ** 2).mean()
    assert content["quality"]["r2_other_bn"] == pytest.approx(expected, rel=1e-2)


def test_r2_for_an_untrained_network_is_that_of_clouds_of_its_batches_own_statistics(fitted, monkeypatch):
    """The validation clouds are the batches of passes 6 and 7; the network is a forward pass a cloud, in train mode."""
    torch.manual_seed(7)
    untrained = create_model("resnet8", CLASSES)
    monkeypatch.setattr(train_ripsnet, "create_model", lambda arch, classes: copy.deepcopy(untrained))
    shutil.copytree(fitted / "ripsnet", "ripsnet")
    fit("--ripsnet_clouds", 8, "--epochs", 2, "--lr", 0.01)
    content = torch.load(CLOUDS / "ripsnet_dim0_mean_clouds8" / "best.pth", weights_only=True)
    loader = TrainLoader(load_dataset("noise", "")[0], POINTS, seed=0, drop_last=True)
    batches = [images for number in (6, 7) for images, _, _ in loader.epoch(number)]
    with torch.no_grad():
        clouds = np.stack([untrained.train()(images, is_feat=True)[0][-1].half().numpy() for images in batches])
    assert len(clouds) == content["quality"]["val_clouds"] == 10
    images = np.stack([gudhi_image(cloud, read_spec(0, fitted / CLOUDS)) for cloud in clouds])
    errors = (numpy_ripsnet(content["model"], clouds) - images) ** 2
    expected = 1 - errors.mean() / ((images.mean(axis=0) - images) ** 2).mean()
    assert content["quality"]["r2_untrained"] == pytest.approx(expected, rel=1e-3)


def test_the_file_names_all_that_stage_4_checks(fitted):
    content = torch.load(fitted / FITTED / "best.pth", weights_only=True)
    assert (content["operator"], content["d"], content["dim"]) == ("mean", 64, 0)
    assert content["spec"] == read_spec(0, fitted / CLOUDS)


def test_both_dimensions_and_sum_pooling():
    make_clouds("--dim", "01")
    fit("--dim", 0, "--operator", "sum", "--epochs", 2)
    fit("--dim", "01", "--operator", "sum", "--epochs", 2, "--resume")  # dimension 0 is there, 1 is added
    clouds = read("clouds")
    for dim in (0, 1):
        content = checkpoint.load(CLOUDS / f"ripsnet_dim{dim}_sum" / "best.pth")
        errors = (numpy_ripsnet(content["model"], clouds[7:], "sum") - read(f"images_dim{dim}")[7:]) ** 2
        assert content["quality"]["val_mse"] == pytest.approx(errors.mean(), rel=1e-4)
        assert (content["dim"], content["operator"]) == (dim, "sum")


def test_no_clouds_names_stage_2():
    with pytest.raises(UserError, match="no image spec there; make it with generate_PCD_PI.py"):
        fit()


@pytest.mark.parametrize("kind", ["clouds", "images_dim0"])
def test_spec_and_quality_without_the_clouds_name_the_missing_file(kind):
    make_clouds()
    (CLOUDS / kind / "00001.npy").unlink()
    with pytest.raises(UserError, match=f"{kind}/00001.npy: missing or damaged .*generate_PCD_PI.py .*num_clouds 10"):
        fit()


def test_incomplete_images_are_refused():
    make_clouds()
    (CLOUDS / "quality_dim0.json").unlink()
    with pytest.raises(UserError, match="not complete; run generate_PCD_PI.py again"):
        fit()


def test_a_single_cloud_cannot_be_split():
    make_clouds("--num_clouds", 1)
    with pytest.raises(UserError, match="expected at least 2"):
        fit()


def test_resume_of_a_fit_that_began_on_a_cuda_device():
    """There the optimizer is capturable, which one on the CPU must not be."""
    make_clouds()
    fit("--epochs", 4)
    whole = checkpoint.load(FITTED / "last.pth")
    shutil.rmtree(FITTED)
    fit("--epochs", 2)
    state = checkpoint.load(FITTED / "last.pth")
    state["args"]["epochs"] = 4  # as if cut off half-way
    state["optimizer"]["param_groups"][0]["capturable"] = True
    checkpoint.save(FITTED / "last.pth", state)
    fit("--epochs", 4, "--resume")
    found = checkpoint.load(FITTED / "last.pth")["model"]
    assert all(torch.equal(found[name], weights) for name, weights in whole["model"].items())


def test_a_fit_that_has_ended_is_skipped_without_its_checkpoint_and_its_clouds(capsys):
    """As those that this project ships."""
    make_clouds("--passes", 8)
    fit("--epochs", 2)
    (FITTED / "last.pth").unlink()
    for path in CLOUDS.glob("*/*.npy"):
        path.unlink()
    before = (FITTED / "best.pth").read_bytes()
    fit("--epochs", 2, "--resume")
    assert f"had ended before, as {FITTED / 'quality.json'} says" in capsys.readouterr().out
    assert (FITTED / "best.pth").read_bytes() == before
    with pytest.raises(UserError, match="--resume with other options"):
        fit("--epochs", 2, "--resume", "--lr", 0.1)
    with pytest.raises(UserError, match="holds no clouds"):  # it is to go on
        fit("--epochs", 3, "--resume")


def test_resume_refuses_a_set_that_has_grown():
    make_clouds()
    fit("--epochs", 2)
    fitted = CLOUDS / "ripsnet_dim0_mean"
    for gone in ("best.pth", "last.pth"):  # of a fit that was cut off, and of one that has ended
        with pytest.raises(UserError, match="RipsNets are fitted"):
            make_clouds("--passes", 3)
        kept = (fitted / gone).rename("kept.pth")
        with pytest.raises(UserError, match="RipsNets are fitted"):
            make_clouds("--passes", 3)
        kept.rename(fitted / gone)
    fitted.rename("kept")
    make_clouds("--passes", 3)
    Path("kept").rename(fitted)
    with pytest.raises(UserError, match="with other clouds .num_clouds was 10, now 15.*generate_PCD_PI.py as before"):
        fit("--epochs", 2, "--resume")
