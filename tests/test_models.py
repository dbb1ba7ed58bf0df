"""The networks against published shapes, torchvision's blocks, and forward passes written out from the state dict."""

import csv
import math
from collections import defaultdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import torchvision
from hypothesis import given, settings
from hypothesis import strategies as st
from support.marks import slow_but
from torch import fx, nn
from torch.nn import functional as F

from dataset import DatasetInfo, usual_test_batch
from models import (
    create_model,
    feature_shapes,
    fold_batchnorm,
    map_shape,
    model_dict,
    preactivation_norms,
    resolve_name,
)
from models.layers import channel_shuffle

PUBLISHED = Path(__file__).parent / "published"
LIGHT = ["resnet8", "resnet8x4", "wrn_16_1", "wrn_16_2", "vgg8", "MobileNetV2", "ShuffleV1", "ShuffleV2"]
FAMILIES = slow_but(LIGHT, [*LIGHT, "ResNet50"])
SMALL = [name for name in model_dict if not name.endswith("_imagenet")]  # for 32 x 32 images
EVERY = slow_but(LIGHT, SMALL)


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Layers this small gain nothing from threads, and on a busy machine wait for each other's."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def published_models():
    with open(PUBLISHED / "models.csv") as file:
        rows = list(csv.reader(file))[1:]
    return {name: (int(parameters), features.split("; ")) for name, parameters, features in rows}


def published_state_dicts():
    state_dicts = defaultdict(list)
    with open(PUBLISHED / "state_dicts.csv") as file:
        for row in csv.DictReader(file):
            state_dicts[row["model"]].append((row["key"], row["shape"]))
    return state_dicts


def by_cross(shape):
    return "x".join(map(str, shape))


def meta_model(name):
    with torch.device("meta"):
        return create_model(name)


def seasoned(model, seed=0):
    """The model in float64 and eval mode, with batch norms as training might leave them."""
    generator = torch.Generator().manual_seed(seed)
    for module in model.double().modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5, generator=generator)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.2, generator=generator)
    return model.eval()


def images(batch=2, size=16, dtype=torch.float64):
    return torch.randn(batch, 3, size, size, dtype=dtype, generator=torch.Generator().manual_seed(1))


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10 * expected.abs().max().item())


def shuffled_by_hand(x, groups):
    size = x.shape[1] // groups
    return x[:, [group * size + i for i in range(size) for group in range(groups)]]


# Published figures


@pytest.mark.parametrize("name", published_state_dicts())
def test_state_dict_has_published_keys_and_shapes_in_order(name):
    found = [(key, by_cross(tensor.shape)) for key, tensor in meta_model(name).state_dict().items()]
    assert found == published_state_dicts()[name]


@pytest.mark.parametrize("name", EVERY)
def test_parameter_count_and_feature_shapes(name):
    parameters, features = published_models()[name]
    model = meta_model(name)
    assert sum(parameter.numel() for parameter in model.parameters()) == parameters
    assert [by_cross(shape) for shape in feature_shapes(model)] == features
    assert feature_shapes(model, preact=True) == feature_shapes(model)


def test_registry_is_the_published_list():
    assert set(SMALL) == set(published_models())


# Calling convention


@pytest.mark.parametrize("name", FAMILIES)
def test_calls_agree_and_classifier_reads_the_last_feature(name):
    torch.manual_seed(0)
    model = seasoned(create_model(name, num_classes=7))
    x = images()
    with torch.no_grad():
        logits = model(x)
        features, logits_beside_features = model(x, is_feat=True)
        _, logits_beside_preact = model(x, is_feat=True, preact=True)
        (classifier,) = (module for module in model.modules() if isinstance(module, nn.Linear))
        assert logits.shape == (2, 7)
        assert torch.equal(logits, logits_beside_features)
        assert torch.equal(logits, logits_beside_preact)
        assert features[-1].shape == (2, classifier.in_features)
        assert torch.equal(logits, classifier(features[-1]))


@pytest.mark.parametrize("name", FAMILIES)
def test_pre_activations(name):
    torch.manual_seed(0)
    model = seasoned(create_model(name))
    with torch.no_grad():
        features, _ = model(images(), is_feat=True)
        pre_activations, _ = model(images(), is_feat=True, preact=True)
        assert len(features) == len(pre_activations)
        assert torch.equal(features[0], pre_activations[0])
        assert torch.equal(features[-1], pre_activations[-1])
        stages = list(zip(features[1:-1], pre_activations[1:-1], strict=True))
        if name == "MobileNetV2":
            assert all(torch.equal(feature, pre) for feature, pre in stages)
            return
        assert all(pre.min() < 0 for _, pre in stages)
        if name.startswith("wrn"):
            following = [model.block2.layer[0].bn1, model.block3.layer[0].bn1, model.bn1]
            for (feature, pre), batch_norm in zip(stages, following, strict=True):
                assert torch.equal(batch_norm(feature), pre)
            assert_same(features[-1], F.adaptive_avg_pool2d(pre_activations[-2].relu(), 1).flatten(1))
        elif name == "ShuffleV2":
            for feature, pre in stages:
                assert torch.equal(shuffled_by_hand(pre.clamp(min=0), 2), feature)
        else:
            for feature, pre in stages:
                assert torch.equal(pre.clamp(min=0), feature)


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("preact", [False, True])
def test_training_step_reaches_every_weight_and_counts_the_batch_once(name, preact):
    torch.manual_seed(0)
    model = create_model(name)
    features, logits = model(images(batch=4, dtype=torch.float32), is_feat=True, preact=preact)
    (logits.square().sum() + sum(feature.square().mean() for feature in features)).backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad.isfinite().all(), key
        # In front of a batch norm a constant is cancelled, so a convolution's bias there gets no gradient worth a test.
        if not (name.startswith("vgg") and key.endswith("0.bias")):
            assert parameter.grad.abs().max() > 0, key
    assert all(count == 1 for key, count in model.state_dict().items() if key.endswith("num_batches_tracked"))


@pytest.mark.parametrize("name", FAMILIES)
@pytest.mark.parametrize("preact", [False, True])
def test_torch_fx_traces_the_model(name, preact):
    torch.manual_seed(0)
    model = seasoned(create_model(name))
    traced = fx.symbolic_trace(model, concrete_args={"is_feat": True, "preact": preact})
    with torch.no_grad():
        expected, expected_logits = model(images(1), is_feat=True, preact=preact)
        found, logits = traced(images(1), True, preact)
    assert torch.equal(logits, expected_logits)
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# The networks, computed a second time


def batch_norm(state, x, key):
    scale = state[f"{key}.weight"] / torch.sqrt(state[f"{key}.running_var"] + 1e-5)
    shift = state[f"{key}.bias"] - state[f"{key}.running_mean"] * scale
    return x * scale[:, None, None] + shift[:, None, None]


def convolve(state, x, key, stride=1, groups=1):
    weight = state[f"{key}.weight"]
    return F.conv2d(x, weight, state.get(f"{key}.bias"), stride, padding=weight.shape[-1] // 2, groups=groups)


def pooled(x):
    return x.flatten(2).mean(2)


def linear(state, x, key):
    return x @ state[f"{key}.weight"].T + state[f"{key}.bias"]


def resnet_by_hand(state, x, blocks):
    x = batch_norm(state, convolve(state, x, "conv1"), "bn1").relu()
    features = [x]
    for stage in (1, 2, 3):
        for block in range(blocks):
            key = f"layer{stage}.{block}"
            stride = 2 if block == 0 and stage > 1 else 1
            out = batch_norm(state, convolve(state, x, f"{key}.conv1", stride), f"{key}.bn1").relu()
            out = batch_norm(state, convolve(state, out, f"{key}.conv2"), f"{key}.bn2")
            if f"{key}.downsample.0.weight" in state:
                x = batch_norm(state, convolve(state, x, f"{key}.downsample.0", stride), f"{key}.downsample.1")
            x = (out + x).relu()
        features.append(x)
    features.append(pooled(x))
    return features, linear(state, features[-1], "fc")


def wrn_by_hand(state, x, blocks):
    x = convolve(state, x, "conv1")
    features = [x]
    for stage in (1, 2, 3):
        for block in range(blocks):
            key = f"block{stage}.layer.{block}"
            stride = 2 if block == 0 and stage > 1 else 1
            activated = batch_norm(state, x, f"{key}.bn1").relu()
            out = convolve(state, activated, f"{key}.conv1", stride)
            out = convolve(state, batch_norm(state, out, f"{key}.bn2").relu(), f"{key}.conv2")
            if f"{key}.convShortcut.weight" in state:
                x = convolve(state, activated, f"{key}.convShortcut", stride)
            x = x + out
        features.append(x)
    features.append(pooled(batch_norm(state, x, "bn1").relu()))
    return features, linear(state, features[-1], "fc")


def mobilenetv2_by_hand(state, x):
    def unit(x, key, position, **options):
        return batch_norm(state, convolve(state, x, f"{key}.{position}", **options), f"{key}.{position + 1}")

    x = unit(x, "conv1", 0, stride=2).relu()
    features = [x]
    for stage, (repeats, stage_stride) in enumerate([(1, 1), (2, 1), (3, 2), (4, 2), (3, 1), (3, 2), (1, 1)]):
        for block in range(repeats):
            key = f"blocks.{stage}.{block}.conv"
            out = unit(x, key, 0).relu()
            out = unit(out, key, 3, stride=stage_stride if block == 0 else 1, groups=out.shape[1]).relu()
            out = unit(out, key, 6)
            x = out + x if block > 0 else out
        if stage in (1, 2, 4, 6):
            features.append(x)
    features.append(pooled(unit(x, "conv2", 0).relu()))
    return features, linear(state, features[-1], "classifier.0")


def shufflenetv1_by_hand(state, x):
    x = batch_norm(state, convolve(state, x, "conv1"), "bn1").relu()
    features = [x]
    for stage, units in ((1, 4), (2, 8), (3, 4)):
        for unit in range(units):
            key = f"layer{stage}.{unit}"
            groups = 1 if stage == 1 and unit == 0 else 3
            out = batch_norm(state, convolve(state, x, f"{key}.conv1", groups=groups), f"{key}.bn1").relu()
            out = shuffled_by_hand(out, groups)
            out = convolve(state, out, f"{key}.conv2", stride=2 if unit == 0 else 1, groups=out.shape[1])
            out = convolve(state, batch_norm(state, out, f"{key}.bn2").relu(), f"{key}.conv3", groups=3)
            out = batch_norm(state, out, f"{key}.bn3")
            if unit == 0:
                ninths = torch.full((x.shape[1], 1, 3, 3), 1 / 9, dtype=x.dtype)
                x = torch.cat([out, F.conv2d(x, ninths, stride=2, padding=1, groups=x.shape[1])], dim=1).relu()
            else:
                x = (out + x).relu()
        features.append(x)
    features.append(pooled(x))
    return features, linear(state, features[-1], "linear")


@pytest.mark.parametrize(
    ("name", "by_hand", "arguments"),
    [
        ("resnet20", resnet_by_hand, [3]),
        ("resnet8x4", resnet_by_hand, [1]),
        ("wrn_16_1", wrn_by_hand, [2]),
        ("wrn_16_2", wrn_by_hand, [2]),
        ("MobileNetV2", mobilenetv2_by_hand, []),
        ("ShuffleV1", shufflenetv1_by_hand, []),
        pytest.param("resnet56", resnet_by_hand, [9], marks=pytest.mark.slow),
        pytest.param("resnet32x4", resnet_by_hand, [5], marks=pytest.mark.slow),
        pytest.param("wrn_40_2", wrn_by_hand, [6], marks=pytest.mark.slow),
    ],
)
def test_forward_written_out_from_the_state_dict(name, by_hand, arguments):
    torch.manual_seed(0)
    model = seasoned(create_model(name))
    with torch.no_grad():
        features, logits = model(images(), is_feat=True)
        expected, expected_logits = by_hand(model.state_dict(), images(), *arguments)
    for found, wanted in zip(features, expected, strict=True):
        assert_same(found, wanted)
    assert_same(logits, expected_logits)


def with_weights_of(model, reference):
    """Give torchvision's network our weights, in the order in which both name them."""
    ours, theirs = model.state_dict(), reference.double().state_dict()
    reference.load_state_dict(dict(zip(theirs, ours.values(), strict=True)))
    return reference.eval()


def test_resnet50_equals_torchvision():
    torch.manual_seed(0)
    model = seasoned(create_model("ResNet50"))
    reference = torchvision.models.resnet50(num_classes=100)
    reference.conv1, reference.maxpool = nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.Identity()
    reference = with_weights_of(model, reference)
    with torch.no_grad():
        assert_same(model(images()), reference(images()))


def test_shufflenetv2_equals_torchvision():
    torch.manual_seed(0)
    model = seasoned(create_model("ShuffleV2"))
    reference = torchvision.models.ShuffleNetV2([4, 8, 4], [24, 116, 232, 464, 1024], num_classes=100)
    reference.conv1[0], reference.maxpool = nn.Conv2d(3, 24, 1, bias=False), nn.Identity()
    reference = with_weights_of(model, reference)
    with torch.no_grad():
        assert_same(model(images()), reference(images()))


@pytest.mark.parametrize("letter_and_depth", ["A11", pytest.param("E19", marks=pytest.mark.slow)])
@pytest.mark.parametrize(("image_size", "pools"), [(32, 3), (64, 4)])
def test_vgg_equals_torchvision_with_fewer_pools(letter_and_depth, image_size, pools):
    torch.manual_seed(0)
    letter, depth = letter_and_depth[0], letter_and_depth[1:]
    model = seasoned(create_model(f"vgg{depth}"))
    plan = torchvision.models.vgg.cfgs[letter]
    pool_places = [i for i, entry in enumerate(plan) if entry == "M"]
    layers = torchvision.models.vgg.make_layers(
        [entry for i, entry in enumerate(plan) if i not in pool_places[pools:]], batch_norm=True
    )
    reference = nn.Sequential(layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 100))
    reference = with_weights_of(model, reference)
    with torch.no_grad():
        assert_same(model(images(1, image_size)), reference(images(1, image_size)))


def test_channel_shuffle_of_six_channels():
    x = torch.arange(6.0).view(1, 6, 1, 1).expand(2, 6, 3, 5)
    assert channel_shuffle(x, 2)[1, :, 2, 4].tolist() == [0, 3, 1, 4, 2, 5]
    assert channel_shuffle(x, 3)[0, :, 0, 0].tolist() == [0, 2, 4, 1, 3, 5]
    assert torch.equal(channel_shuffle(x, 1), x)


# Initialisation


@pytest.mark.parametrize("name", ["resnet20", "ResNet50", "wrn_16_2", "vgg8", "MobileNetV2"])
def test_convolutions_start_with_fan_out_variance(name):
    torch.manual_seed(0)
    for key, module in create_model(name).named_modules():
        if isinstance(module, nn.Conv2d):
            weight = module.weight.detach().double()
            expected = math.sqrt(2 / (module.kernel_size[0] ** 2 * module.out_channels))
            count = weight.numel()
            assert abs(weight.std().item() / expected - 1) < 5 / math.sqrt(2 * count), key
            assert abs(weight.mean().item()) < 5 * expected / math.sqrt(count), key
            if count > 1000:  # a normal reaches beyond 2.5 deviations, the uniform of equal variance stops at 1.73
                assert weight.abs().max().item() > 2.5 * expected, key
            assert module.bias is None or not module.bias.any(), key


@pytest.mark.parametrize("name", ["vgg8", "MobileNetV2"])
def test_classifier_starts_near_zero(name):
    torch.manual_seed(0)
    (classifier,) = (module for module in create_model(name).modules() if isinstance(module, nn.Linear))
    assert classifier.weight.std().item() == pytest.approx(0.01, rel=0.02)
    assert not classifier.bias.any()


def test_the_classifier_of_a_wide_resnet_starts_without_bias():
    classifier = create_model("wrn_16_2").fc
    assert classifier.weight.any() and not classifier.bias.any()


@pytest.mark.parametrize("name", ["ShuffleV1", "ShuffleV2"])
def test_shufflenets_start_as_pytorch_does(name):
    torch.manual_seed(0)
    for key, module in create_model(name).named_modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 1000:
            bound = 1 / math.sqrt(module.weight[0].numel())
            assert 0.98 * bound < module.weight.abs().max().item() <= bound * (1 + 1e-6), key


# Names


def test_aliases():
    assert resolve_name("mobilenetv2") == "MobileNetV2"
    assert resolve_name("shufflev1") == "ShuffleV1"
    assert resolve_name("shufflev2") == "ShuffleV2"
    assert all(resolve_name(name) == name for name in model_dict)
    assert type(create_model("shufflev1")) is type(create_model("ShuffleV1"))


@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("resnet50", "ImageNet's is 'resnet50_imagenet', that for 32 x 32 images 'ResNet50'"),
        ("resnet34", "ImageNet's is 'resnet34_imagenet'"),
        ("resnet18_imagnet", "'resnet18_imagenet'"),
        ("rsnet20", "'resnet20'"),
        ("ResNet56", "'resnet56'"),
        ("wrn-40-2", "'wrn_40_2'"),
        ("VGG13", "'vgg13'"),
        ("shufflenetv2", "'ShuffleV2'"),
        ("transformer", "known are resnet8, "),
    ],
)
def test_unknown_name_is_refused_with_a_hint(name, hint):
    with pytest.raises(ValueError, match="unknown model") as error:
        create_model(name)
    assert hint in str(error.value)
    assert repr(name) in str(error.value)


@settings(max_examples=50, deadline=None, database=None)
@given(st.text(max_size=20))
def test_a_refusal_is_one_line(name):
    try:
        assert resolve_name(name) in model_dict
    except ValueError as error:
        assert len(str(error).splitlines()) == 1


# Dry forward


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1"])
def test_feature_shapes_leaves_no_trace(name):
    model = create_model(name).train()
    model.bn1.eval()
    modes = [module.training for module in model.modules()]
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    random_state = torch.get_rng_state()
    shapes = feature_shapes(model, image_size=16, preact=True)
    assert shapes == [(16, 16, 16), (16, 16, 16), (32, 8, 8), (64, 4, 4), (64,)]
    assert torch.equal(random_state, torch.get_rng_state())
    assert modes == [module.training for module in model.modules()]
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())


def test_feature_shapes_restores_the_mode_after_a_failure():
    model = create_model("resnet8").train()
    model.fc.register_forward_pre_hook(lambda *_: (_ for _ in ()).throw(RuntimeError("interrupted")))
    with pytest.raises(RuntimeError, match="interrupted"):
        feature_shapes(model)
    assert all(module.training for module in model.modules())


# Folding


@pytest.mark.parametrize("name", EVERY)
def test_folded_model_agrees_with_the_model(name):
    torch.manual_seed(0)
    model = seasoned(create_model(name))
    folded = fold_batchnorm(model)
    with torch.no_grad():
        assert_same(folded(images()), model(images()))
        for preact in (False, True):
            expected, expected_logits = model(images(), is_feat=True, preact=preact)
            found, logits = folded(images(), is_feat=True, preact=preact)
            assert_same(logits, expected_logits)
            for a, b in zip(found, expected, strict=True):
                assert_same(a, b)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_batch_norm_behind_a_convolution_is_folded(name):
    torch.manual_seed(0)
    folded = fold_batchnorm(create_model(name))
    remaining = [key for key, module in folded.named_modules() if isinstance(module, nn.BatchNorm2d)]
    # In a wide ResNet the batch norms that open a block, and the last one, read a sum, or the stem, itself a feature.
    blocks = [f"block{stage}.layer.{block}.bn1" for stage in (1, 2, 3) for block in (0, 1)]
    assert sorted(remaining) == (sorted([*blocks, "bn1"]) if name.startswith("wrn") else [])


@pytest.mark.parametrize("name", ["resnet8", "wrn_16_1"])
def test_folding_leaves_the_model_alone_and_freezes_the_copy(name):
    model = create_model(name).train()
    state = {key: tensor.clone() for key, tensor in model.state_dict().items()}
    folded = fold_batchnorm(model)
    assert all(module.training for module in model.modules())
    assert all(parameter.requires_grad for parameter in model.parameters())
    assert list(model.state_dict()) == list(state)
    assert all(torch.equal(tensor, state[key]) for key, tensor in model.state_dict().items())
    assert not any(module.training for module in folded.modules())
    assert not any(parameter.requires_grad for parameter in folded.parameters())
    shared = {p.data_ptr() for p in model.parameters()} & {p.data_ptr() for p in folded.parameters()}
    assert not shared


@pytest.mark.parametrize("name", ["resnet8", "ShuffleV1", "ShuffleV2"])
def test_folding_keeps_channels_last(name):
    folded = fold_batchnorm(create_model(name).to(memory_format=torch.channels_last))
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in folded.parameters() if p.dim() == 4)
    x = images(dtype=torch.float32).to(memory_format=torch.channels_last)
    features, _ = folded(x, is_feat=True)
    assert all(f.is_contiguous(memory_format=torch.channels_last) for f in features[:-1])


# What methods of distillation ask for


@pytest.mark.parametrize("pool", [
    lambda maps: maps.mean((2, 3)) if maps.shape[-1] > 2 else maps.flatten(1),
    lambda maps: maps.mean((2, 3)).view(len(maps), -1),
])  # fmt: skip
def test_a_model_that_cannot_be_traced_is_not_folded(pool):
    class Untraceable(nn.Module):
        def __init__(self):
            super().__init__()
            self.conv, self.bn, self.fc = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Linear(4, 2)

        def forward(self, x, is_feat=False, preact=False):
            maps = self.bn(self.conv(x))
            pooled = pool(maps)
            return ([maps, pooled], self.fc(pooled)) if is_feat else self.fc(pooled)

    model = seasoned(Untraceable())
    folded = fold_batchnorm(model)
    assert not folded.training and not any(parameter.requires_grad for parameter in folded.parameters())
    assert_same(folded(images()), model.eval()(images()))
    assert preactivation_norms(model) == []


class Reusing(nn.Module):
    """Convolutions and batch norms of which `form` uses one twice, or in a way that does not fold."""

    def __init__(self, form):
        super().__init__()
        self.form, self.conv, self.fc = form, nn.Conv2d(3, 3, 3, padding=1), nn.Linear(3, 2)
        self.bn, self.other = (nn.BatchNorm2d(3, track_running_stats=form != "statistics") for _ in range(2))

    def forward(self, x, is_feat=False, preact=False):
        maps = self.bn(input=self.conv(x)) if self.form == "keyword" else self.bn(self.conv(x))
        if self.form == "two norms":
            maps = maps + self.other(self.conv(maps))
        elif self.form == "convolution":
            maps = self.conv(maps)
        elif self.form == "norm":
            maps = self.bn(maps)
        elif self.form == "weight":
            maps = F.conv2d(maps, self.conv.weight)
        pooled = maps.mean((2, 3))
        return ([maps, pooled], self.fc(pooled)) if is_feat else self.fc(pooled)


@pytest.mark.parametrize("form", ["two norms", "convolution", "norm", "weight", "keyword", "statistics"])
def test_what_is_used_twice_is_not_folded(form):
    torch.manual_seed(0)
    model = seasoned(Reusing(form)) if form != "statistics" else Reusing(form).double()
    assert_same(fold_batchnorm(model)(images()), model.eval()(images()))


@pytest.mark.parametrize("name", slow_but(["resnet8", "ResNet50", "resnet18_imagenet"], list(model_dict)))
def test_no_map_of_a_test_batch_on_a_large_gpu_has_2_to_the_31_elements(name, monkeypatch):
    """Which kernels with 32-bit indices cannot compute."""
    size = 224 if name.endswith("_imagenet") else 32
    info = DatasetInfo("", 10, (0.5,) * 3, (0.5,) * 3, flip=True, image_size=size)
    large = SimpleNamespace(total_memory=80 << 30)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: large)
    batch, sizes = usual_test_batch(SimpleNamespace(info=info, device=torch.device("cuda"))), []
    with torch.device("meta"):
        model, x = create_model(name, 10).eval(), torch.empty(1, 3, size, size)
    for module in model.modules():
        module.register_forward_hook(lambda _, __, found: sizes.append(getattr(found, "numel", int)()))
    model(x)
    assert batch * max(sizes) < 2**31


@pytest.mark.parametrize("name", FAMILIES)
def test_the_map_that_pool_averages_is_that_of_the_pooled_vector(name):
    torch.manual_seed(0)
    model, maps = seasoned(create_model(name)), []
    with torch.no_grad(), model.pool.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0])):
        features, _ = model(images(), is_feat=True)
    assert_same(maps[0].mean((2, 3)), features[-1])
    assert map_shape(model, images().shape[-1]) == tuple(maps[0].shape[1:])


def test_a_model_without_pool_has_no_map():
    assert map_shape(nn.Linear(1, 1)) is None


@pytest.mark.parametrize(
    "name, expected",
    [
        ("resnet56", ["layer1.8.bn2", "layer2.8.bn2", "layer3.8.bn2"]),
        ("resnet8", ["layer1.0.bn2", "layer2.0.bn2", "layer3.0.bn2"]),
        ("wrn_40_2", ["block2.layer.0.bn1", "block3.layer.0.bn1", "bn1"]),
        ("vgg13", ["block1.4", "block2.4", "block3.4", "block4.4"]),
        ("MobileNetV2", ["blocks.1.1.conv.7", "blocks.2.2.conv.7", "blocks.4.2.conv.7", "blocks.6.0.conv.7"]),
        ("ResNet50", ["layer1.2.bn3", "layer2.3.bn3", "layer3.5.bn3", "layer4.2.bn3"]),
    ],
)
def test_a_stages_batch_norm_is_the_one_before_its_last_relu(name, expected):
    model = create_model(name)
    names = {module: key for key, module in model.named_modules()}
    assert [names[norm] for norm in preactivation_norms(model)] == expected


def test_stages_that_end_in_a_concatenation_have_no_batch_norm():
    assert preactivation_norms(create_model("ShuffleV2")) == [None] * 3
