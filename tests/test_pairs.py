"""helper/pairs.py: weights of the pairs and where they come from, and the names of methods and runs."""

import itertools

import pytest
from torch import nn

import train_student
from distiller_zoo import Method, distiller_dict
from helper.options import UserError
from helper.pairs import method_name, pair_settings, resolve_weights, run_name

PAIR = "resnet56", "resnet20"


@pytest.fixture
def mine(monkeypatch):
    """A method with a loss of its own."""
    monkeypatch.setitem(distiller_dict, "mine", Method("Mine", "", nn.Identity, beta=2.0, source="published: here"))


def resolve(*options, pair=PAIR):
    """The options of a student, its weights resolved, and the names of the method and of the run."""
    command = ["--path_t", "", "--model_s", pair[1], "--device", "cpu", *options]
    args = train_student.get_args_parser().parse_args([str(option) for option in command])
    resolve_weights(args, *pair)
    return args, method_name(args, *pair), run_name(args, *pair)


def weights(args):
    return args.gamma, args.alpha, args.beta, args.delta


@pytest.mark.parametrize(
    "pair, alpha, delta, operator",
    [(("resnet56", "resnet20"), 2, 5, "mean"), (("wrn_40_2", "ShuffleV1"), 4, 5, "sum")],
)
def test_the_published_pairs_are_those_of_the_authors_logs(pair, alpha, delta, operator):
    settings = pair_settings(*pair)
    assert (settings.alpha, settings.delta, settings.operator) == (alpha, delta, operator)
    assert settings.source.startswith("published: ")
    args, name, _ = resolve("--topology", "ripsnet", pair=pair)
    assert weights(args) == (1, alpha, 0, delta) and args.operator == operator
    assert name == "TopKD" and args.weights_source.startswith("published: ")


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
        (("--logit_stand", "-d", 5), (1, 2, 0, 5), "TopKD+LS", "given on the command line"),
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
    args, found, _ = resolve(*options)
    assert (weights(args), found, args.weights_source) == (expected, name, source)


def test_topology_is_none_without_a_weight():
    assert resolve("--topology", "exact", "-d", 0, "-a", 1)[0].topology is None
    assert resolve("-d", 5)[0].topology == "ripsnet"


def test_beta_of_kd_is_refused():
    with pytest.raises(UserError, match="--beta: found 0.5, but --distill kd has no loss beside KD; use --alpha"):
        resolve("-b", "0.5")


def test_nothing_to_train_is_refused():
    with pytest.raises(UserError, match="are all 0: there is nothing to train"):
        resolve("-r", 0, "-a", 0, "-d", 0)


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
        args, _, name = resolve(*itertools.chain(*options))
        operator = args.operator if args.topology == "ripsnet" else None
        settings.setdefault(name, set()).add((args.distill, *weights(args), args.topology, operator))
    assert not {name: found for name, found in settings.items() if len(found) > 1}


@pytest.mark.parametrize("topology", ["ripsnet", "exact", "wasserstein"])
def test_every_setting_of_a_cloud_and_of_the_loss_shows_in_the_name(topology):
    one_each = [
        (),
        ("--kd_T", 2),
        ("--batch_size", 32),
        ("--trial", 2),
        ("--dataset", "cifar10"),
        ("--tda_layer_t", -2),
        ("--tda_layer_s", -2),
    ]
    if topology != "wasserstein":
        one_each += [("--dim", "1"), ("--dim", "01"), ("--pcd_bn", "train"), ("--sigma_rule", "subsample")]
        one_each += [("--resolution", 10), ("--resolution", 40), ("--range", "q99")]
    if topology == "ripsnet":
        one_each += [("--ripsnet_clouds", 10), ("--ripsnet_clouds", 20)]
    names = [resolve("--topology", topology, *options)[2] for options in one_each]
    assert len(set(names)) == len(names), names


def test_names_of_the_usual_runs_are_short():
    assert resolve()[2] == "resnet56-resnet20_cifar100_KD_trial1"
    assert resolve("-d", 5, "--trial", 3)[2] == "resnet56-resnet20_cifar100_TopKD_trial3"
    assert resolve("-r", 1, "-a", 2)[2] == "resnet56-resnet20_cifar100_KD-control_trial1"
    assert resolve("-r", 1, "-a", 0)[2] == "resnet56-resnet20_cifar100_CE_trial1"
    assert resolve("--logit_stand")[2] == "resnet56-resnet20_cifar100_KD+LS_trial1"
    assert resolve("--distill", "dkd", "--logit_stand")[2] == "resnet56-resnet20_cifar100_DKD+LS_trial1"
    assert resolve("-d", 5, "-a", 3)[2] == "resnet56-resnet20_cifar100_TopKD_a3_trial1"
