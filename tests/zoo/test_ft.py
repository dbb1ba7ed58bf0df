"""FT against its formula, the layers in NumPy."""

import numpy as np
import pytest
import torch
from support.layers import array, at_smaller_size, kinds, through
from support.zoo import SHAPES_S, make_case, make_pair, shapes
from torch import nn

EVERY_FORM = pytest.mark.parametrize("form", ["map", "factor"])


def normalised(factor, form):
    """Each image's factor, flattened, of length 1."""
    for code in factor:
        flat = (code**2).mean(axis=0).ravel() if form == "map" else code.ravel()
        yield flat / np.sqrt((flat**2).sum())


@pytest.mark.parametrize("size_t", [2, 4, 8])
@EVERY_FORM
def test_formula(form, size_t):
    case = make_case("ft", make_pair(SHAPES_S, shapes((3, 4, 7, 5), (8, 8, 8, size_t))), form=form)
    code_s = through(array(case.student.features[3]), case.loss.translator)
    code_t = through(array(case.teacher.features[3]), case.loss.encoder)
    codes = at_smaller_size(code_s, code_t)
    pairs = zip(*(normalised(code, form) for code in codes), strict=True)
    expected = np.mean([np.abs(s - t).mean() for s, t in pairs])
    assert case.value().item() == pytest.approx(expected, rel=1e-11)


def test_the_first_stage_is_the_error_of_reconstruction():
    case = make_case("ft")
    feature = array(case.teacher.features[3])
    expected = np.mean((through(through(feature, case.loss.encoder), case.loss.decoder) - feature) ** 2)
    assert case.loss.first_stage(None, case.teacher, case.batch).item() == pytest.approx(expected, rel=1e-12)


def test_the_paraphraser_has_biases_and_no_batch_norm():
    """RepDistiller's scripts; its translator has batch norm."""
    loss = make_case("ft").loss
    assert kinds(loss.encoder) == ["conv3", "LeakyReLU"] * 3 and kinds(loss.decoder) == [
        *("ConvTranspose2d", "LeakyReLU") * 3
    ]
    assert all(layer.bias is not None for layer in [*loss.encoder, *loss.decoder][::2])
    assert kinds(loss.translator) == ["conv3", "BatchNorm", "LeakyReLU"] * 3


@EVERY_FORM
def test_vanishes_where_the_translator_is_the_paraphraser_and_ignores_the_size_of_a_factor(form):
    case = make_case("ft", make_pair(SHAPES_S, SHAPES_S), form=form)
    loss = case.loss.eval()
    for i in (0, 1, 2):  # a translator whose batch norms add the paraphraser's biases
        convolution, norm, encoder = loss.translator[3 * i], loss.translator[3 * i + 1], loss.encoder[2 * i]
        convolution.weight.data, norm.bias.data = encoder.weight.data.clone(), encoder.bias.data.clone()
        nn.init.constant_(norm.weight, (1 + norm.eps) ** 0.5)
    assert loss(case.student, case.student, case.batch).item() < 1e-12
    before = case.value().item()
    loss.translator[-2].weight.data *= 3  # the leaky ReLU that follows keeps the factor 3
    loss.translator[-2].bias.data *= 3
    assert case.value().item() == pytest.approx(before) and before > 0.01


def test_the_paraphraser_trains_in_the_first_stage_and_is_frozen_afterwards():
    case = make_case("ft")
    loss = case.loss
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    case.value()  # the first stage trains even if the factors were looked at before

    def changed_by(call, student):
        before = {name: value.clone() for name, value in loss.state_dict().items()}
        optimizer.zero_grad()
        call(student, case.teacher, case.batch).backward()
        optimizer.step()
        changed = {name for name, value in loss.state_dict().items() if not torch.equal(value, before[name])}
        return {name.split(".")[0] for name in changed}, len(changed)

    parts = {name: len(getattr(loss, name).state_dict()) for name in ("encoder", "decoder", "translator")}
    assert changed_by(loss.first_stage, None) == ({"encoder", "decoder"}, parts["encoder"] + parts["decoder"])
    assert changed_by(loss, case.student) == ({"translator"}, parts["translator"])


@pytest.mark.parametrize(("rate", "width"), [(0.5, 4), (0.75, 6), (0.01, 1)])
def test_the_rate_is_the_factors_share_of_the_teachers_channels(rate, width):
    case = make_case("ft", make_pair(SHAPES_S, shapes((3, 4, 7, 8), (8, 8, 8, 4))), rate=rate)
    factors = case.loss.encoder(case.teacher.features[3]), case.loss.translator(case.student.features[3])
    assert [factor.shape for factor in factors] == [(4, width, 4, 4)] * 2
