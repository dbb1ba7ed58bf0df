"""helper/student: weights of the pairs and where they come from, and the names of methods and runs."""

import dataclasses
import itertools

import pytest
from torch import nn

import train_student
from distiller_zoo import Method, distiller_dict
from helper.cli.parser import read
from helper.errors import UserError
from helper.settings import Clouds, Data, Loss, Repetition, Training
from helper.student import names, weights
from helper.student.distillation import Distillation
from helper.student.names import method_name, schedule, student_name, teacher_name
from helper.student.pairs import pair_settings

PAIR = "resnet56", "resnet20"


@pytest.fixture
def mine(monkeypatch):
    """A method with a loss of its own."""
    monkeypatch.setitem(distiller_dict, "mine", Method("Mine", "", nn.Identity, beta=2.0, source="published: here"))


def resolve(*options, pair=PAIR):
    """(settings of a student, name of the method, name of the run) for options of train_student.py."""
    command = ["--path_t", "", "--model_s", pair[1], "--device", "cpu", *options]
    args = train_student.get_args_parser().parse_args([str(option) for option in command])
    settings = weights.resolve(*(read(args, each) for each in (Loss, Clouds, Data, Training, Repetition)), *pair)
    return settings, method_name(settings), student_name(settings)


def weights_of(settings):
    return settings.loss.gamma, settings.loss.alpha, settings.loss.beta, settings.loss.delta


@pytest.mark.parametrize(
    "pair, alpha, delta, operator",
    [(("resnet56", "resnet20"), 2, 5, "mean"), (("wrn_40_2", "ShuffleV1"), 4, 5, "sum")],
)
def test_the_published_pairs_are_those_of_the_authors_logs(pair, alpha, delta, operator):
    own = pair_settings(*pair)
    assert (own.alpha, own.delta, own.operator) == (alpha, delta, operator)
    assert own.source.startswith("published: ")
    settings, name, _ = resolve("--topology", "ripsnet", pair=pair)
    assert weights_of(settings) == (1, alpha, 0, delta) and settings.loss.operator == operator
    assert name == "TopKD" and settings.loss.weights_source.startswith("published: ")


@pytest.mark.parametrize(
    "pair, like",
    [
        (("resnet110", "resnet32"), "resnet56 > resnet20"),
        (("resnet32x4", "resnet8x4"), "resnet56 > resnet20"),
        (("wrn_40_2", "wrn_16_2"), "resnet56 > resnet20"),
        (("vgg13", "vgg8"), "resnet56 > resnet20"),
        (("vgg13", "MobileNetV2"), "wrn_40_2 > ShuffleV1"),
        (("ResNet50", "vgg8"), "wrn_40_2 > ShuffleV1"),
        (("resnet32x4", "ShuffleV2"), "wrn_40_2 > ShuffleV1"),
        (("42net", "resnet20"), "wrn_40_2 > ShuffleV1"),
    ],
)
def test_other_pairs_are_marked_as_assumed(pair, like):
    settings = pair_settings(*pair)
    assert settings.source == f"assumed: as {like}"
    assert (settings.alpha, settings.operator) == ((2, "mean") if like.startswith("resnet") else (4, "sum"))


@pytest.mark.parametrize(
    "options, expected, name, source",
    [
        ((), (0.1, 0.9, 0, 0), "KD", "published: RepDistiller's scripts, mdistiller"),
        (("-d", 5), (1, 2, 0, 5), "TopKD", "published: the authors' released log"),
        (("--topology", "exact"), (1, 2, 0, 5), "TopKD-exact", "assumed: alpha and delta as for RipsNet"),
        (("-r", 1, "-a", 2), (1, 2, 0, 0), "KD-control", "published: the authors' released log"),
        (("-r", 1, "-a", 2, "-d", 0), (1, 2, 0, 0), "KD-control", "published: the authors' released log"),
        (("-r", 1, "-a", 0), (1, 0, 0, 0), "CE", "given on the command line"),
        (("-a", 0, "-d", 5), (1, 0, 0, 5), "CE+Top", "given on the command line"),
        (("-a", 3, "--topology", "wasserstein"), (1, 3, 0, 5), "TopKD-wasserstein", "given on the command line"),
        (("-r", 1, "-a", 3), (1, 3, 0, 0), "KD", "given on the command line"),
        (("--logit_stand",), (0.1, 9, 0, 0), "KD+LS", "published: logit-standardization-KD's README"),
        (("--logit_stand", "-d", 5), (1, 2, 0, 5), "TopKD+LS", "assumed: alpha and delta as without --logit_stand"),
        (("--distill", "dkd"), (1, 0, 1, 0), "DKD", "published: mdistiller"),
        (("--distill", "dkd", "--logit_stand"), (1, 0, 9, 0), "DKD+LS", "published: logit-standardization-KD's README"),
        (
            ("--distill", "dist", "--logit_stand"),
            (1, 0, 1, 0),
            "DIST+LS",
            "assumed: the method's own, with standardised logits",
        ),
        (("--distill", "mine"), (1, 0, 2, 0), "Mine", "published: here"),
        (
            ("--distill", "mine", "-d", 5),
            (1, 0, 2, 5),
            "Mine+Top",
            "assumed: the method's own weights with the pair's delta",
        ),
    ],
)
def test_defaults_and_names(mine, options, expected, name, source):
    settings, found, _ = resolve(*options)
    assert (weights_of(settings), found, settings.loss.weights_source) == (expected, name, source)


def test_a_warm_up_that_is_left_out_is_not_as_published():
    assert resolve("--distill", "reviewkd")[0].loss.weights_source == "published: ReviewKD's script"
    assert resolve("--distill", "reviewkd", "--warmup", 0)[0].loss.weights_source == "given on the command line"


def test_topology_is_none_without_a_weight():
    assert resolve("-d", 0, "-a", 1)[0].loss.topology is None
    assert resolve("-d", 5)[0].loss.topology == "ripsnet"


@pytest.mark.parametrize(
    "options, message",
    [
        ("--topology exact -d 0", "--topology exact: has no effect with --delta 0; leave one of them out"),
        ("--operator sum", "--operator: has no effect with no topology term .--delta 0.; leave it out"),
        ("--dim 1", "--dim: has no effect with no topology term"),
        ("--tda_layer_s -2", "--tda_layer_s: has no effect with no topology term"),
        ("--tda_layer_t -2", "--tda_layer_t: has no effect with no topology term"),
        ("--pcd_bn train", "--pcd_bn: has no effect with no topology term"),
        ("-d 5 --topology wasserstein --sigma_rule subsample", "--sigma_rule: has no effect with --topology wass"),
        ("-d 5 --topology wasserstein --operator sum", "--operator: has no effect with --topology wasserstein"),
        (
            "-d 5 --topology wasserstein --dim 1",
            "--dim: found 1, but --topology wasserstein is defined for dimension 0",
        ),
        ("-d 5 --topology exact --operator mean", "--operator: has no effect with --topology exact"),
        ("-d 5 --topology exact --ripsnet_clouds 9", "--ripsnet_clouds: has no effect with --topology exact"),
        ("-d 5 --ripsnet x.pth --ripsnet_clouds 9", "--ripsnet_clouds: has no effect with --ripsnet"),
        ("-d 5 --batch_size 1", "--batch_size: found 1, expected at least 2 with --topology ripsnet"),
        ("--set hint=1", "--set: has no effect with --distill kd"),
        ("--distill crd --kd_T 2", "--kd_T: has no effect with --distill crd"),
        ("--distill ctkd --kd_T 2", "--kd_T: has no effect with --distill ctkd"),
        ("--distill crd --logit_stand", "--logit_stand: has no effect with --distill crd"),
        (
            "--distill mlkd --logit_stand",
            "--logit_stand: not offered with --distill mlkd, which also takes cross entropy",
        ),
        ("--distill norm -d 5 --tda_layer_s -2", "--tda_layer_s: found -2, expected -1 or 0, because NORM puts a part"),
        ("--distill crd --warmup 2", "--warmup: has no effect with --distill crd"),
        ("--distill crd --first_epochs 2", "--first_epochs: has no effect with --distill crd"),
    ],
)
def test_options_without_effect_are_refused(options, message):
    with pytest.raises(UserError, match=message) as error:
        resolve(*options.split())
    assert "\n" not in str(error.value)


def test_beta_of_kd_is_refused():
    with pytest.raises(UserError, match="--beta: found 0.5, but --distill kd has no loss beside KD; use --alpha"):
        resolve("-b", "0.5")


def test_nothing_to_train_is_refused():
    with pytest.raises(UserError, match="are all 0: there is nothing to train"):
        resolve("-r", 0, "-a", 0, "-d", 0)


@pytest.mark.slow
def test_no_two_settings_share_a_name(mine):
    settings = {}
    choices = [
        ((), ("-r", 1), ("-r", 0.1)),
        ((), ("-a", 2), ("-a", 0.9), ("-a", 0)),
        ((), ("-d", 0), ("-d", 5), ("-d", 1)),
        ((), ("--topology", "ripsnet"), ("--topology", "exact"), ("--topology", "wasserstein")),
        (("--distill", "mine"), ("--distill", "mine", "-b", 3), ("--distill", "kd")),
        ((), ("--operator", "sum")),
    ]
    for options in itertools.product(*choices):
        try:
            found, _, name = resolve(*itertools.chain(*options))
        except UserError:  # a topology of weight 0, or an operator without RipsNet
            continue
        loss = found.loss
        operator = loss.operator if loss.topology == "ripsnet" else None
        settings.setdefault(name, set()).add((loss.distill, *weights_of(found), loss.topology, operator))
    assert len(settings) > 50
    assert not {name: found for name, found in settings.items() if len(found) > 1}


@pytest.mark.parametrize("topology", ["ripsnet", "exact", "wasserstein"])
def test_every_setting_of_a_cloud_and_of_the_loss_shows_in_the_name(topology):
    one_each = [
        (),
        ("--kd_T", 2),
        ("--batch_size", 32),
        ("--cloud_size", 32),
        ("--cloud_size", 16),
        ("--trial", 2),
        ("--dataset", "cifar10"),
        ("--tda_layer_t", -2),
        ("--tda_layer_s", -2),
    ]
    if topology != "wasserstein":
        one_each += [("--dim", "1"), ("--dim", "01"), ("--pcd_bn", "train"), ("--sigma_rule", "subsample")]
        one_each += [("--resolution", 10), ("--resolution", 40), ("--range", "q99")]
    one_each += [("--lr", 0.1), ("--lr", 0.01), ("--epochs", 24), ("--epochs", 24, "--lr_decay_epochs", "9")]
    one_each += [("--momentum", 0.8), ("--weight_decay", 0), ("--lr_decay_rate", 0.2), ("--amp", "bf16"), ("--seed", 7)]
    if topology == "ripsnet":
        one_each += [("--ripsnet_clouds", 10), ("--ripsnet_clouds", 20)]
    found = [resolve("--topology", topology, *options)[2] for options in one_each]
    assert len(set(found)) == len(found), found


def test_names_of_the_published_runs_are_short():
    assert resolve()[2] == "resnet56-resnet20_cifar100_KD_trial1"
    assert resolve("-d", 5, "--trial", 3)[2] == "resnet56-resnet20_cifar100_TopKD_trial3"
    assert resolve("-r", 1, "-a", 2)[2] == "resnet56-resnet20_cifar100_KD-control_trial1"
    assert resolve("-r", 1, "-a", 0)[2] == "resnet56-resnet20_cifar100_CE_trial1"
    assert resolve("--logit_stand")[2] == "resnet56-resnet20_cifar100_KD+LS_trial1"
    assert resolve("--distill", "dkd", "--logit_stand")[2] == "resnet56-resnet20_cifar100_DKD+LS_trial1"
    assert resolve("-d", 5, "-a", 3)[2] == "resnet56-resnet20_cifar100_TopKD_a3_trial1"


@pytest.mark.parametrize(
    "options, variant, text",
    [
        ((), "", ""),
        (("-d", 25, "--topology", "exact"), "d25", ""),
        (("-d", 5, "--operator", "sum", "--dim", "1"), "dim1 sum", ""),
        (("-d", 5, "--tda_layer_t", -3, "--tda_layer_s", -3, "--resolution", 10), "layer-3 layerS-3 res10", ""),
        (("--distill", "crd", "-b", 1, "--set", "nce_k=64"), "b1 nce_k64", ""),
        (("--epochs", 8, "--lr_decay_epochs", "5,6,7", "--amp", "bf16"), "", "e8 bf16"),  # 150, 180, 210 by 30
        (("--epochs", 24), "", "e24 decay150-180-210"),
        (("--epochs", 12, "--lr_decay_epochs", "8,11", "--lr", 0.1), "", "e12 decay8-11 lr0.1"),
        (("--lr_decay_epochs", ""), "", "decaynone"),
    ],
)
def test_departures_of_a_run(options, variant, text):
    settings, method, name = resolve(*options)
    assert (settings.variant, schedule(settings.training, "resnet20")) == (variant, text)
    parts = ["resnet56-resnet20_cifar100", method, *variant.split(), *text.split(), "trial1"]
    assert name == "_".join(parts)


def test_the_learning_rate_of_a_network_is_no_departure():
    assert schedule(Training(lr=0.01), "MobileNetV2") == "" and schedule(Training(lr=0.01), "resnet8") == "lr0.01"


def test_a_teacher_is_found_by_its_network_data_and_trial_and_a_sweep_needs_no_name():
    def name(**settings):
        training = Training(**settings).resolved("resnet56")
        return teacher_name("resnet56", Data(device="cpu"), training, Repetition(trial=2).resolved())

    assert name() == name(epochs=24, amp="bf16") == "resnet56_cifar100_trial2"
    assert name(lr=0.1, weight_decay=1e-4) == "resnet56_cifar100_lr0.1_wd0.0001_trial2"


def test_settings_are_values():
    with pytest.raises(dataclasses.FrozenInstanceError):
        Clouds().dim = "1"
    assert Clouds() == Clouds(dim="0") and hash(Clouds()) == hash(Clouds())


def test_every_option_of_a_loss_or_a_cloud_can_show_in_a_name():
    """Or it is what the method's name says, or where a file lies, or how processes work together."""
    elsewhere = {"distill", "set", "logit_stand", "topology", "ripsnet", "gather_clouds"}
    fields = {field.name for section in (Loss, Clouds) for field in dataclasses.fields(section)}
    assert fields - elsewhere == names.VARIANT.keys() - {"options"}


def imagenet(*options):
    """As resolve, with the defaults of ImageNet's data sets."""
    pair = "resnet34_imagenet", "resnet18_imagenet"
    command = ["--path_t", "", "--model_s", pair[1], "--device", "cpu", "--dataset", "imagenet"]
    command += [str(option) for option in options]
    parser = train_student.get_args_parser()
    parser.adopt_recipe(command)
    args = parser.parse_args(command)
    return weights.resolve(*(read(args, each) for each in (Loss, Clouds, Data, Training, Repetition)), *pair)


@pytest.mark.parametrize(
    "options, points, variant",
    [
        ((), 64, ""),
        (("--cloud_size", 64), 64, ""),
        (("--cloud_size", 256), 256, "cloud256"),
        (("--batch_size", 128), 64, "n128"),
        (("--batch_size", 32, "--cloud_size", 32), 32, "n32 cloud32"),
    ],
)
def test_a_cloud_of_imagenet_is_part_of_a_batch(options, points, variant):
    settings = imagenet("-d", 5, *options)
    assert settings.clouds.points == points
    assert settings.variant.split() == variant.split()
    assert f"_n{points}_" in settings.clouds.folder_name
    assert settings.clouds.expected("", 512, 0)["points"] == points


@pytest.mark.parametrize("options, variant", [((), ""), (("--cloud_size", 64), ""), (("--cloud_size", 16), "cloud16")])
def test_a_cloud_of_cifar_is_the_batch_unless_it_is_given(options, variant):
    settings, _, _ = resolve("-d", 5, *options)
    assert settings.variant == variant
    assert settings.clouds.points == int(variant.removeprefix("cloud") or 64)
    assert resolve("-d", 5, "--batch_size", 128)[0].clouds.points == 128


def test_a_cloud_size_that_does_not_divide_the_batch_is_refused():
    for topology in ("ripsnet", "exact", "wasserstein"):
        with pytest.raises(UserError, match="--cloud_size: found 48, expected a divisor of --batch_size 64"):
            resolve("--topology", topology, "--cloud_size", 48)
    with pytest.raises(UserError, match="--cloud_size: found 64, expected a divisor of --batch_size 32"):
        imagenet("-d", 5, "--batch_size", 32)
    assert imagenet("--batch_size", 32).variant == "n32"  # without topology there are no clouds


def test_a_cloud_size_without_topology_is_refused():
    with pytest.raises(UserError, match="--cloud_size: has no effect with no topology term"):
        resolve("--cloud_size", 32)
    with pytest.raises(UserError, match="--cloud_size: has no effect with no topology term"):
        imagenet("--cloud_size", 32)
    assert "cloud_size" in imagenet().without_effect and "cloud_size" not in imagenet("-d", 5).without_effect


def test_the_weights_of_norm_follow_the_share_of_a_run():
    def objective(*options):
        settings, _, _ = resolve(*options, pair=("resnet32x4", "resnet8x4"))
        return Distillation(nn.Identity(), nn.Identity(), settings.loss, epochs=240)

    found = objective("--distill", "norm")
    assert found.follows_length and not objective().follows_length and not objective("--distill", "crd").follows_length
    weights_of_epochs = []
    for epoch in (1, 10, 11, 20, 21, 180, 181, 210, 211, 240):
        found.begin(epoch)
        weights_of_epochs.append(found.weights["other"])
    assert weights_of_epochs == [0.1, 0.1, 0.5, 0.5, 1, 1, 0.5, 0.5, 0.1, 0.1]
