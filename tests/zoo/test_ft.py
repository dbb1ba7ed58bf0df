"""FT against its formula, the layers in NumPy and SciPy."""

import numpy as np
import pytest
import torch
from reference_b import (
    DEGENERATE,
    array,
    at_smaller_size,
    check_entry,
    check_finite,
    check_fits,
    check_gradients,
    setup,
    through,
)
from torch import nn

from distiller_zoo import distiller_dict


def normalised(factor, form):
    """Each image's factor, flattened, of length 1."""
    for code in factor:
        flat = (code**2).mean(axis=0).ravel() if form == "map" else code.ravel()
        yield flat / np.sqrt((flat**2).sum())


@pytest.mark.parametrize("sizes_t", [(4, 4, 4, 2), (4, 4, 4, 4), (4, 4, 4, 1)])
@pytest.mark.parametrize("form", ["map", "factor"])
def test_formula(form, sizes_t):
    loss, student, teacher, batch = setup("ft", sizes_t=sizes_t, form=form)
    code_s = through(loss.translator, array(student.features[3]))
    code_t = through(loss.encoder, array(teacher.features[3]))
    codes = at_smaller_size(*map(torch.from_numpy, (code_s, code_t)))
    pairs = zip(*(normalised(code, form) for code in codes), strict=True)
    expected = np.mean([np.abs(s - t).mean() for s, t in pairs])
    assert loss(student, teacher, batch).item() == pytest.approx(expected, rel=1e-11, abs=1e-15)


def test_the_first_stage_is_the_error_of_reconstruction():
    loss, _, teacher, batch = setup("ft")
    feature = array(teacher.features[3])
    expected = np.mean((through(loss.decoder, through(loss.encoder, feature)) - feature) ** 2)
    assert loss.first_stage(None, teacher, batch).item() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("form", ["map", "factor"])
def test_vanishes_where_the_translator_is_the_paraphraser_and_ignores_the_size_of_a_factor(form):
    loss, student, teacher, batch = setup("ft", widths_t=(2, 2, 3, 4), form=form)
    loss.eval()
    for i in (0, 1, 2):  # a translator whose batch norms are the paraphraser's biases
        convolution, norm, encoder = loss.translator[3 * i], loss.translator[3 * i + 1], loss.encoder[2 * i]
        convolution.weight.data, norm.bias.data = encoder.weight.data.clone(), encoder.bias.data.clone()
        nn.init.constant_(norm.weight, (1 + norm.eps) ** 0.5)
    assert loss(student, student, batch).item() < 1e-12
    before = loss(student, teacher, batch)
    loss.translator[-2].weight.data *= 3  # the leaky ReLU that follows keeps the factor 3
    loss.translator[-2].bias.data *= 3
    assert loss(student, teacher, batch).item() == pytest.approx(before.item()) and before > 0.01


def test_the_paraphraser_has_biases_and_no_batch_norm():
    """RepDistiller's scripts; its translator has batch norm."""
    loss = setup("ft")[0]
    paraphraser = [*loss.encoder, *loss.decoder]
    assert [type(layer).__name__ for layer in paraphraser] == [
        *("Conv2d", "LeakyReLU") * 3,
        *("ConvTranspose2d", "LeakyReLU") * 3,
    ]
    assert all(layer.bias is not None for layer in paraphraser[::2])
    assert [type(layer).__name__ for layer in loss.translator] == ["Conv2d", "BatchNorm", "LeakyReLU"] * 3


def test_the_paraphraser_trains_in_the_first_stage_and_is_frozen_afterwards():
    loss, student, teacher, batch = setup("ft")
    optimizer = torch.optim.SGD(loss.parameters(), lr=0.1, momentum=0.9, weight_decay=0.1)
    loss(student, teacher, batch)  # the first stage trains even if the factors were looked at before

    def changed_by(call, student):
        before = {name: value.clone() for name, value in loss.state_dict().items()}
        optimizer.zero_grad()
        call(student, teacher, batch).backward()
        optimizer.step()
        changed = {name for name, value in loss.state_dict().items() if not torch.equal(value, before[name])}
        return {name.split(".")[0] for name in changed}, len(changed)

    parts = {name: len(getattr(loss, name).state_dict()) for name in ("encoder", "decoder", "translator")}
    assert changed_by(loss.first_stage, None) == ({"encoder", "decoder"}, parts["encoder"] + parts["decoder"])
    assert changed_by(loss, student) == ({"translator"}, parts["translator"])


@pytest.mark.parametrize(("rate", "width"), [(0.5, 4), (0.75, 6), (0.01, 1)])
def test_the_rate_is_the_factors_share_of_the_teachers_channels(rate, width):
    loss, student, teacher, _ = setup("ft", widths_t=(3, 3, 4, 8), rate=rate)
    assert loss.encoder(teacher.features[3]).shape == loss.translator(student.features[3]).shape == (3, width, 2, 2)


def test_another_form_is_refused():
    with pytest.raises(ValueError, match="form: found 'square', expected map or factor"):
        setup("ft", form="square")


@DEGENERATE
@pytest.mark.parametrize("sizes", [(4, 4, 2, 2), (4, 4, 2, 1)])
def test_short_and_constant_batches(count, fill, sizes):
    for form in ("map", "factor"):
        check_finite("ft", count, fill, sizes_s=sizes, sizes_t=sizes, form=form)


@pytest.mark.parametrize("form", ["map", "factor"])
def test_gradients(form):
    check_gradients("ft", form=form)


@pytest.mark.parametrize("form", ["map", "factor"])
def test_fits_a_batch(form):
    check_fits("ft", rate={"map": 0.2, "factor": 1.0}[form], form=form)


def test_entry():
    """RepDistiller's scripts: weight 200 beside cross entropy, the paraphraser trained before, for 30 epochs."""
    method = distiller_dict["ft"]
    assert (method.gamma, method.alpha, method.beta) == (1, 0, 200)
    assert method.options == {"form": "map", "rate": 0.5}
    rates = {student: method.first_rate(student, 0.05) for student in ("resnet8x4", "wrn_16_2", "vgg8", "ResNet50")}
    assert rates == {"resnet8x4": 0.01, "wrn_16_2": 0.01, "vgg8": 0.05, "ResNet50": 0.05}
    assert method.first_epochs == 30 and not method.first_only
    check_entry("ft")
