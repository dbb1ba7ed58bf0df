"""The contract of distiller_zoo/method.py: what an entry makes of a pair and of features, and how networks are read."""

import pytest
import torch
from torch import nn

from distiller_zoo import Method, classifier, distiller_dict, forward
from models import create_model


class Loss(nn.Module):
    def __init__(self, pair, *, power=2.0, form="mean"):
        super().__init__()


class Pooled(nn.Module):
    """A network whose `pool` takes the mean of the second of two maps; `preact` is before that map's ReLU."""

    def __init__(self):
        super().__init__()
        self.stem, self.conv = nn.Conv2d(3, 4, 1), nn.Conv2d(4, 5, 3)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.hidden, self.head = nn.Linear(5, 6), nn.Linear(6, 2)

    def forward(self, images, is_feat=False, preact=False):
        stem = self.stem(images).relu()
        before = self.conv(stem)
        pooled = self.hidden(self.pool(before.relu()).flatten(1))
        logits = self.head(pooled)
        return ([stem, before if preact else before.relu(), pooled], logits) if is_feat else logits


PUBLISHED = {("t", "s"): {"beta": 7.0, "power": 3.0}, ("t", "r"): {"form": "sum"}}
OWN = Method("Own", "", Loss, beta=2.0, source="published: a", by_pair=PUBLISHED, elsewhere="assumed: b")


@pytest.mark.parametrize(
    "pair, expected",
    [
        (("t", "s"), (7.0, {"power": 3.0, "form": "mean"}, "published: a")),
        (("t", "r"), (2.0, {"power": 2.0, "form": "sum"}, "published: a")),
        (("s", "t"), (2.0, {"power": 2.0, "form": "mean"}, "assumed: b")),
    ],
)
def test_settings_are_the_pairs_own_or_the_defaults(pair, expected):
    assert OWN.settings(*pair) == expected
    assert OWN.settings(*pair) == expected  # the first call took nothing away


def test_settings_that_hold_for_every_pair():
    assert Method("Own", "", Loss, beta=2.0, source="published: a").settings("t", "s")[::2] == (2.0, "published: a")
    assert Method("Own", "", Loss).settings("t", "s")[2].startswith("assumed: ")


def test_a_pair_may_have_a_source_of_its_own():
    by_pair = {("t", "s"): {"power": 3.0, "source": "assumed: c"}, ("t", "r"): {"power": 1.0}}
    own = Method("Own", "", Loss, source="published: a", by_pair=by_pair, elsewhere="assumed: b")
    assert own.settings("t", "s") == (1.0, {"power": 3.0, "form": "mean"}, "assumed: c")
    assert own.settings("t", "r")[2] == "published: a" and own.settings("s", "t")[2] == "assumed: b"


class Inserted(nn.Module):
    """A student with something in it, as large as an option has it."""

    def __init__(self, network, pair, *, width=3, power=1.0):
        super().__init__()
        self.network, self.pair, self.given = network, pair, (width, power)


class Recorded(Loss):
    def __init__(self, pair, *, power=2.0, form="mean"):
        super().__init__(pair)
        self.pair, self.given = pair, (power, form)


def test_loss_and_deployed_student_are_given_their_own_options():
    method, network = Method("Own", "", Recorded, student=Inserted), nn.Identity()
    assert method.options == {"power": 1.0, "form": "mean", "width": 3}
    options = method.options | {"form": "sum", "width": 7}
    loss, student = method.make_loss("pair", options), method.make_student(network, "pair", options)
    assert (loss.given, loss.pair) == ((1.0, "sum"), "pair")
    assert (student.given, student.network, student.pair) == ((7, 1.0), network, "pair")


@pytest.mark.parametrize("features, read", [
    ((), []), ((-1,), [3]), ((0, -2), [0, 2]), ((-5,), []), ((4,), []), (slice(1, -1), [1, 2]), (slice(4, None), []),
])  # fmt: skip
def test_the_features_that_are_read_are_those_that_a_network_has(features, read):
    assert list(Method("Own", "", Loss, features=features).read(4)) == read


@pytest.mark.parametrize(
    "epochs, expected",
    [
        (8, [0.5, 0.5, 1, 1, 1, 1, 0, 0]),
        (4, [0.5, 1, 1, 0]),
        (3, [0.5, 1, 0]),  # a quarter and three quarters of 3, rounded
        (2, [0.5, 1]),
        (1, [1]),
    ],
)
def test_a_schedule_multiplies_a_weight_by_shares_of_the_run(epochs, expected):
    method = Method("Own", "", Loss, schedule={"other": ((0.25, 0.5), (0.75, 1.0), (1.0, 0.0))})
    assert [method.factor("other", epoch, epochs) for epoch in range(1, epochs + 1)] == expected
    assert {method.factor("kd", epoch, epochs) for epoch in range(1, epochs + 1)} == {1.0}
    assert Method("Own", "").factor("other", 1, epochs) == 1.0


def test_options_are_the_keyword_only_parameters():
    assert OWN.options == {"power": 2.0, "form": "mean"}
    assert Method("None", "").options == {}


@pytest.mark.parametrize(
    "read, expected",
    [
        ((), []),
        ((-1,), [4]),
        ((-2, 0), [0, 3]),
        (slice(1, -1), [1, 2, 3]),
        (slice(0, -1), [0, 1, 2, 3]),
        (slice(1, None), [1, 2, 3, 4]),
    ],
)
def test_features_are_selected_and_cast(read, expected):
    features = [torch.full((2, 3), float(i), dtype=torch.bfloat16) for i in range(5)]
    selected = Method("Own", "", features=read).select(features)
    assert [i for i, feature in enumerate(selected) if feature is not None] == expected
    for i in expected:
        assert selected[i].dtype == torch.float32 and (selected[i] == i).all()


def test_the_methods_on_logits_read_nothing_else():
    on_logits = {key for key, method in distiller_dict.items() if method.on_logits}
    assert on_logits == {"kd", "dkd", "dist", "ctkd", "mlkd"}


@pytest.mark.parametrize(
    "model", ["resnet8", "resnet8x4", "wrn_16_1", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2", "ResNet50"]
)
def test_the_classifier_makes_the_logits(model):
    network = create_model(model, 7).eval()
    name, linear = classifier(network)
    with torch.no_grad():
        features, logits = network(torch.randn(1, 3, 32, 32), is_feat=True)
        torch.testing.assert_close(linear(features[-1]), logits)
    assert linear is network.get_submodule(name)


def test_the_classifier_is_the_last_of_several_linear_layers():
    network = Pooled()
    name, linear = classifier(network)
    assert name == "head" and linear is network.head


@pytest.mark.parametrize("preact", [False, True])
def test_a_forward_pass(preact):
    torch.manual_seed(0)
    network, images = Pooled(), torch.randn(2, 3, 6, 6)
    stem = network.stem(images).relu()
    before = network.conv(stem)
    features, logits, last_map = forward(network, images, preact, last_map=True)
    assert torch.equal(features[0], stem) and torch.equal(features[1], before if preact else before.relu())
    assert torch.equal(last_map, before.relu())
    torch.testing.assert_close(network.hidden(last_map.mean((2, 3))), features[-1])
    torch.testing.assert_close(logits, network(images))
    last_map.sum().backward()
    assert network.conv.weight.grad.abs().sum() > 0


def test_a_forward_pass_without_the_map_needs_no_pool_and_leaves_no_hook():
    network, images = Pooled(), torch.randn(2, 3, 6, 6)
    forward(network, images, last_map=True)
    assert not network.pool._forward_pre_hooks
    assert forward(network, images)[2] is None

    class NoPreact(nn.Module):
        def forward(self, images, is_feat):
            return [images], images

    assert forward(NoPreact(), images)[2] is None
