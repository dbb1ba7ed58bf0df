"""The networks for ImageNet against torchvision's with the same weights, and a MobileNet written out here."""

import pytest
import torch
import torchvision
from support.marks import slow_but
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor

from models import create_model, feature_shapes, fold_batchnorm, map_shape, preactivation_norms

# keys, of which num_batches_tracked, and the nodes of torchvision's graph that are our features
TORCHVISION = {
    "resnet18_imagenet": (122, 20, "resnet18", ["maxpool", "layer1", "layer2", "layer3", "layer4", "flatten"]),
    "resnet34_imagenet": (218, 36, "resnet34", ["maxpool", "layer1", "layer2", "layer3", "layer4", "flatten"]),
    "resnet50_imagenet": (320, 53, "resnet50", ["maxpool", "layer1", "layer2", "layer3", "layer4", "flatten"]),
    "mobilenetv2_imagenet": (314, 52, "mobilenet_v2", [f"features.{i}" for i in (0, 3, 6, 13, 17)] + ["flatten"]),
}
NAMES = [*TORCHVISION, "mobilenetv1_imagenet"]
# The forward passes of a ResNet-34 are those of a ResNet-18; those of a ResNet-50 take as long as all others together.
RUN = slow_but([name for name in NAMES if name not in ("resnet34_imagenet", "resnet50_imagenet")], NAMES)
SHAPES = {
    **dict.fromkeys(
        ["resnet18_imagenet", "resnet34_imagenet"],
        [(64, 56, 56), (64, 56, 56), (128, 28, 28), (256, 14, 14), (512, 7, 7), (512,)],
    ),
    "resnet50_imagenet": [(64, 56, 56), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7), (2048,)],
    "mobilenetv1_imagenet": [(32, 112, 112), (128, 56, 56), (256, 28, 28), (512, 14, 14), (1024, 7, 7), (1024,)],
    "mobilenetv2_imagenet": [(32, 112, 112), (24, 56, 56), (32, 28, 28), (96, 14, 14), (320, 7, 7), (1280,)],
}


class MobileNet(nn.Module):
    """MobileNetV1 under the names in which its published weights are kept."""

    def __init__(self):
        super().__init__()
        rows = [nn.Sequential(nn.Conv2d(3, 32, 3, 2, 1, bias=False), nn.BatchNorm2d(32), nn.ReLU())]
        widths = [32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024]
        strides = [1, 2, 1, 2, 1, 2, 1, 1, 1, 1, 1, 2, 1]
        for i in range(13):
            a, b = widths[i], widths[i + 1]
            depthwise = nn.Conv2d(a, a, 3, strides[i], 1, groups=a, bias=False)
            pointwise = nn.Conv2d(a, b, 1, 1, 0, bias=False)
            rows.append(nn.Sequential(depthwise, nn.BatchNorm2d(a), nn.ReLU(), pointwise, nn.BatchNorm2d(b), nn.ReLU()))
        self.model = nn.Sequential(*rows, nn.AdaptiveAvgPool2d(1))
        self.fc = nn.Linear(1024, 1000)

    def forward(self, x):
        return self.fc(self.model(x).flatten(1))


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def reference_of(name):
    """The independent network, and the names of the nodes in it that are our features."""
    if name in TORCHVISION:
        return getattr(torchvision.models, TORCHVISION[name][2])(), TORCHVISION[name][3]
    nodes = ["model.0.2", "model.3.5", "model.5.5", "model.11.5", "model.13.5", "flatten"]
    return MobileNet(), nodes


@pytest.fixture(scope="module", params=RUN)
def networks(request):
    """Name, our network, and the reference with the same weights and trained-looking batch norms; float64, eval."""
    torch.manual_seed(0)
    model, (reference, nodes) = create_model(request.param, 1000), reference_of(request.param)
    for module in reference.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.uniform_(0.5, 1.5)
            for tensor in (module.bias.data, module.running_mean):
                tensor.normal_(0, 0.2)
    model.load_state_dict(reference.state_dict())
    extractor = create_feature_extractor(reference.double().eval(), return_nodes=nodes)
    return request.param, model.double().eval(), reference, extractor


def images(size=64):
    return torch.randn(2, 3, size, size, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


def assert_same(actual, expected):
    torch.testing.assert_close(actual, expected, rtol=1e-10, atol=1e-10 * expected.abs().max().item())


def on_meta(name):
    with torch.device("meta"):
        return create_model(name, 1000)


@pytest.mark.parametrize("name", NAMES)
def test_keys_and_shapes_are_those_of_the_published_weights_in_order(name):
    with torch.device("meta"):
        reference, _ = reference_of(name)
    ours, theirs = ([(key, value.shape) for key, value in m.state_dict().items()] for m in (on_meta(name), reference))
    assert ours == theirs and ours[-1][0] in ("fc.bias", "classifier.1.bias")
    keys, counters = TORCHVISION[name][:2] if name in TORCHVISION else (164, 27)
    assert len(ours) == keys and sum(key.endswith("num_batches_tracked") for key, _ in ours) == counters


@pytest.mark.parametrize("name", NAMES)
def test_parameter_counts_are_the_published_ones(name):
    if name == "mobilenetv1_imagenet":
        expected = 4_231_976
    else:
        weights = torchvision.models.get_model_weights(TORCHVISION[name][2])
        expected = weights.IMAGENET1K_V1.meta["num_params"]
    assert sum(parameter.numel() for parameter in on_meta(name).parameters()) == expected


@pytest.mark.parametrize("name", RUN)
def test_feature_shapes_at_224_pixels(name):
    model = on_meta(name)
    assert feature_shapes(model, 224) == feature_shapes(model, 224, preact=True) == SHAPES[name]
    width = SHAPES[name][-1][0]
    assert map_shape(model, 224) == (width, 7, 7)
    assert map_shape(model, 256) == (width, 8, 8)


@torch.no_grad()
def test_features_and_logits_equal_those_of_the_reference(networks):
    name, model, reference, extractor = networks
    features, logits = model(images(), is_feat=True)
    assert_same(logits, reference(images()))
    assert torch.equal(logits, model(images()))
    expected = list(extractor(images()).values())
    assert len(features) == len(expected) == 6
    for found, wanted in zip(features, expected, strict=True):
        assert_same(found, wanted)


@torch.no_grad()
def test_pre_activations(networks):
    name, model, *_ = networks
    features, _ = model(images(), is_feat=True)
    before, logits = model(images(), is_feat=True, preact=True)
    assert torch.equal(logits, model(images()))
    assert torch.equal(features[0], before[0]) and torch.equal(features[-1], before[-1])
    for feature, pre_activation in zip(features[1:-1], before[1:-1], strict=True):
        assert pre_activation.min() < 0
        linear = name == "mobilenetv2_imagenet"
        assert torch.equal(feature, pre_activation if linear else pre_activation.relu())


@torch.no_grad()
def test_folding_takes_every_batch_norm_and_changes_nothing(networks):
    _, model, *_ = networks
    folded = fold_batchnorm(model)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    for preact in (False, True):
        (expected, expected_logits), (found, logits) = (
            m(images(), is_feat=True, preact=preact) for m in (model, folded)
        )
        assert_same(logits, expected_logits)
        for a, b in zip(found, expected, strict=True):
            assert_same(a, b)


@pytest.mark.parametrize(
    "name, expected",
    [
        ("resnet34_imagenet", ["layer1.2.bn2", "layer2.3.bn2", "layer3.5.bn2", "layer4.2.bn2"]),
        ("resnet50_imagenet", ["layer1.2.bn3", "layer2.3.bn3", "layer3.5.bn3", "layer4.2.bn3"]),
        ("mobilenetv1_imagenet", ["model.3.4", "model.5.4", "model.11.4", "model.13.4"]),
        (
            "mobilenetv2_imagenet",
            ["features.3.conv.3", "features.6.conv.3", "features.13.conv.3", "features.17.conv.3"],
        ),
    ],
)
def test_a_stages_batch_norm_is_the_last_of_its_branch(name, expected):
    model = on_meta(name)
    names = {module: key for key, module in model.named_modules()}
    assert [names[norm] for norm in preactivation_norms(model)] == expected


@pytest.mark.parametrize("name", RUN)
@pytest.mark.parametrize("preact", [False, True])
def test_training_step_reaches_every_weight_and_counts_the_batch_once(name, preact):
    torch.manual_seed(0)
    model = create_model(name, 10)
    features, logits = model(images().float(), is_feat=True, preact=preact)
    (logits.square().sum() + sum(feature.square().mean() for feature in features)).backward()
    assert all(parameter.grad.isfinite().all() and parameter.grad.any() for parameter in model.parameters())
    assert all(count == 1 for key, count in model.state_dict().items() if key.endswith("num_batches_tracked"))


def test_mobilenetv2_drops_a_fifth_of_the_pooled_values_in_training_only():
    torch.manual_seed(0)
    model = create_model("mobilenetv2_imagenet", 10)
    read = []
    model.classifier[1].register_forward_pre_hook(lambda _, inputs: read.append(inputs[0]))
    features, _ = model(images().float(), is_feat=True)
    kept = read[0] != 0
    assert kept.double().mean().item() == pytest.approx(0.8, abs=0.05)
    torch.testing.assert_close(read[0][kept], features[-1][kept] / 0.8)
    features, _ = model.eval()(images().float(), is_feat=True)
    assert torch.equal(read[1], features[-1])


@pytest.mark.parametrize("name", RUN)
def test_weights_start_as_the_references(name):
    """Spread of every convolution and of the classifier as the reference draws it: torchvision's, or PyTorch's."""
    torch.manual_seed(0)
    model, (reference, _) = create_model(name, 1000), reference_of(name)
    theirs = dict(reference.named_parameters())
    for key, ours in model.named_parameters():
        if ours.dim() > 1 and ours.numel() > 4000:
            spread = theirs[key].std().item()
            assert ours.std().item() == pytest.approx(spread, rel=0.1), key
            assert ours.abs().max().item() / spread == pytest.approx(theirs[key].abs().max().item() / spread, rel=0.35)
