"""ImageNet's settings from the command line to the commands of its tables, without its images."""

import hashlib
import importlib
import os
from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import PIL
import pytest
import torch
import torchvision
from support.running import refused
from torch import nn

import evaluate
import reproduce
from dataset import dataset_dict, folder
from distiller_zoo import Batch, distiller_dict, forward
from helper.cli.parser import read
from helper.experiments import catalogue, estimate
from helper.experiments.catalogue import TABLES
from helper.experiments.jobs import Work
from helper.experiments.plan import student_settings
from helper.files.provenance import versions
from helper.networks import TORCHVISION, Network, load_network
from helper.report.evaluation import network_report, report_text
from helper.settings import Clouds, Training
from helper.student.build import build_loss
from helper.student.distillation import Distillation, Reading
from models import create_model

ROOT = Path(__file__).resolve().parent.parent


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


@pytest.mark.slow
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


# Its tables

IMAGENET_TABLES = ("imagenet_homogeneous", "imagenet_heterogeneous")
RESNET18 = ("resnet34_imagenet", "resnet18_imagenet")
MOBILENETV1 = ("resnet50_imagenet", "mobilenetv1_imagenet")
MOBILENETV2 = ("resnet50_imagenet", "mobilenetv2_imagenet")


def test_a_table_has_the_schedule_and_clouds_of_its_data_set():
    for name in IMAGENET_TABLES:
        table, recipe = TABLES[name], dataset_dict["imagenet"].recipe
        assert table.teacher == table.student == Training.of(recipe)
        assert table.clouds == Clouds.of(recipe)
        clouds = table.making.num_clouds
        assert 9 * 20_018 < clouds <= table.making.passes * 20_018  # 1,281,167 images are 20,018 clouds of 64
    for dataset in dataset_dict:
        if dataset != "imagenette":
            recipe = dataset_dict[dataset].recipe
            assert catalogue.published_for(dataset) == (Training.of(recipe), Clouds.of(recipe))


def test_the_rows_are_those_of_the_field_and_mobilenetv2():
    assert TABLES["imagenet_homogeneous"].rows == (":".join(RESNET18),)
    assert TABLES["imagenet_heterogeneous"].rows == (":".join(MOBILENETV1), ":".join(MOBILENETV2))


# (gamma, alpha, beta, temperature, warm-up, options of the method) on ResNet-34 > ResNet-18 and on ResNet-50 >
# MobileNetV1: mdistiller's configurations for ImageNet, those of newer methods' authors, and ReviewKD's width.
PUBLISHED = {
    "kd": ((0.5, 0.5, 0, 1, 0, {}), (0.5, 0.5, 0, 1, 0, {})),
    "at": ((1, 0, 1000, 4, 0, {"p": 2}), None),
    "crd": (
        (1, 0, 0.8, 4, 0, {"feat_dim": 128, "nce_k": 16384, "nce_t": 0.07, "nce_m": 0.5}),
        (1, 0, 0.8, 4, 0, {"feat_dim": 128, "nce_k": 16384, "nce_t": 0.07, "nce_m": 0.5}),
    ),
    "dkd": ((1, 0, 1, 1, 1, {"tckd": 1, "nckd": 0.5}), (1, 0, 1, 1, 1, {"tckd": 1, "nckd": 2})),
    "reviewkd": ((1, 0, 1, 4, 1, {"width": 512}), (1, 0, 8, 4, 1, {"width": 256})),
    "dist": ((1, 0, 2, 1, 0, {"inter": 1, "intra": 1}), (1, 0, 2, 1, 0, {"inter": 1, "intra": 1})),
    "mgd": ((1, 0, 7e-5, 4, 0, {"mask": "channel", "rate": 0.15}),) * 2,
    "mlkd": ((0.5, 0, 1, 1, 0, {"ce": 0.5, "kd": 0.5, "form": "public"}),) * 2,
    "ctkd": ((1, 0, 1, 4, 0, {"form": "global", "t_start": 1, "t_range": 20, "ramp": 5}), None),
    "norm": (
        (1, 0, 1, 4, 0, {"logits": "standardised", "segments": 8, "before": "pool"}),
        (1 / 8, 0, 1, 4, 0, {"logits": "standardised", "segments": 8, "before": "pool"}),
    ),
}


@pytest.mark.parametrize("key", distiller_dict)
def test_settings_of_a_pair_are_the_published_ones_or_marked_assumed(key):
    for pair, expected in zip((RESNET18, MOBILENETV1), PUBLISHED.get(key, (None, None)), strict=True):
        method = distiller_dict[key].for_pair(*pair)
        beta, options, source = distiller_dict[key].settings(*pair)
        found = method.gamma, method.alpha, beta, method.kd_T, method.warmup, options
        assert source.startswith("assumed: " if expected is None else "published: "), source
        assert expected in (None, found)
    assert distiller_dict[key].settings(*MOBILENETV2)[2].startswith("assumed: ")


def test_ofd_has_its_weight_for_imagenet():
    for pair in (RESNET18, MOBILENETV1, MOBILENETV2):
        assert distiller_dict["ofd"].settings(*pair)[0] == 1e-4


def test_the_weight_of_norm_follows_the_epochs_of_imagenet():
    """NORM's script: 0.1, 0.5, 0.9, 0.5 and 0.1 until epochs 5, 15, 60, 80 and 100."""
    method = distiller_dict["norm"].for_pair(*RESNET18)
    found = [method.factor("other", epoch, 100) for epoch in range(1, 101)]
    assert found == [0.1] * 5 + [0.5] * 10 + [0.9] * 45 + [0.5] * 20 + [0.1] * 20
    table = TABLES["imagenet_homogeneous"]
    settings = student_settings(table, ":".join(RESNET18), table.arm("NORM"))
    objective = Distillation(nn.Identity(), nn.Identity(), settings.loss, epochs=100, method=settings.method)
    objective.begin(20)
    assert objective.weights["other"] == 0.9


def test_standardised_logits_take_no_values_of_imagenet():
    """What is published for them is for CIFAR-100."""
    for key in ("kd", "dkd", "dist"):
        method = distiller_dict[key].on_standardized_logits().for_pair(*RESNET18)
        assert method.kd_T == 2 and method.source == "assumed: as for CIFAR-100"
    assert distiller_dict["kd"].on_standardized_logits().for_pair(*RESNET18).alpha == 9


@pytest.mark.parametrize("name", IMAGENET_TABLES)
def test_runs_at_their_own_settings_have_no_variant_and_no_schedule(name):
    table = TABLES[name]
    for row in table.rows:
        for arm in table.arms:
            settings = student_settings(table, row, arm)
            assert (settings.variant, settings.schedule) == ("", ""), arm.name
            assert settings.loss.weights_source.startswith(("published: ", "assumed: ")) or arm.name == "CE"
            assert settings.training.lr == 0.1 and settings.training.batch_size == 256
    topkd = student_settings(table, table.rows[0], table.arm("TopKD"))
    operator = "mean" if name == "imagenet_homogeneous" else "sum"
    loss = topkd.loss
    assert (loss.gamma, loss.alpha, loss.delta, loss.operator) == (1, 1, 5, operator)
    assert topkd.clouds.points == 64 and loss.kd_T == 1


def test_the_commands_of_a_row(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ("--table", "imagenet_heterogeneous", "--row", ":".join(MOBILENETV1), "--methods", "KD,TopKD,ReviewKD")
    reproduce.main(parsed("reproduce", *options, "--dry_run", "--data_dir", "sets"))
    lines = [line.removeprefix(f"python {os.path.relpath(ROOT)}/") for line in capsys.readouterr().out.splitlines()]
    teacher = "save_t_models/resnet50_imagenet_torchvision/best.pth"
    common, student = "--dataset imagenet", f"--path_t {teacher} --model_s mobilenetv1_imagenet --dataset imagenet"
    expected = [
        f"evaluate.py --path save_t_models/resnet50-0676ba61.pth --model resnet50_imagenet {common} --adopt {teacher}",
        f"train_student.py {student} --trial 1",
        f"generate_PCD_PI.py --path_t {teacher} {common} --passes 10 --num_clouds 199936",
        f"train_ripsnet.py --path_t {teacher} {common} --operator sum",
        f"train_student.py {student} -d 5 --trial 1",
        f"train_student.py {student} --distill reviewkd --trial 1",
    ]
    assert lines == [*(f"{line} --data_dir sets" for line in expected), "make_tables.py"]


def test_an_adopted_teacher_is_finished(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = Path("save_t_models/resnet34_imagenet_torchvision/best.pth")
    path.parent.mkdir(parents=True)
    path.touch()
    reproduce.main(parsed("reproduce", "--table", "imagenet_homogeneous", "--methods", "CE", "--dry_run"))
    assert capsys.readouterr().out.splitlines()[0] == "# resnet34_imagenet_torchvision: finished"


@pytest.mark.slow
def test_hours_are_estimated_from_images_of_224_pixels():
    """Multiply-adds of one image: those in torchvision's metadata, and 569 M of MobileNetV1 (Howard et al., 2017)."""
    for network, giga in zip((*RESNET18, *MOBILENETV1), (3.664, 1.814, 4.089, 0.569), strict=True):
        assert estimate.costs(network, "imagenet")[1] / 2e9 == pytest.approx(giga, rel=0.02)
    work = Work("train_student", "imagenet", *RESNET18, "KD", 100, 256)
    assert estimate.steps(work) == 5004
    assert estimate.steps(Work("generate_PCD_PI", "imagenet", RESNET18[0], "", "0", 10, 64)) == 20018


@pytest.mark.slow
@pytest.mark.parametrize("pair", [RESNET18, MOBILENETV1, MOBILENETV2])
def test_every_loss_of_the_tables_takes_the_pair(pair):
    """On images of the size for which it is built."""
    torch.manual_seed(0)
    teacher, student = (create_model(name, 1000).eval() for name in pair)
    table = TABLES[IMAGENET_TABLES[pair != RESNET18]]
    images, batch = torch.randn(3, 3, 224, 224), Batch(torch.tensor([1, 2, 3]), torch.arange(3), torch.tensor(1))
    with torch.no_grad():
        read = {
            (network, preact): Reading(*forward(network, images, preact, last_map=True))
            for network in (student, teacher)
            for preact in (False, True)
        }
    train_set = SimpleNamespace(info=dataset_dict["imagenet"], labels=torch.arange(1000).repeat(2))
    for arm in table.arms:
        settings = student_settings(table, ":".join(pair), arm)
        if settings.loss.beta:
            method, other = settings.method, build_loss(settings, student, teacher, train_set)
            objective = Distillation(student, teacher, settings.loss, other=other, epochs=100, method=method)
            readings = read[student, method.preact_s], read[teacher, method.preact_t]
            value = other(*map(objective.output, readings), batch)
            assert value.isfinite() and value > 0, arm.name
