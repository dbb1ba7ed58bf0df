"""AT against attention maps written out pixel by pixel."""

import numpy as np
import pytest
import torch
from support.zoo import make_case, only_map


def attention(maps, p):
    """Unit vectors (B, H W): the mean over the channels of |F|^p at every pixel."""
    found = []
    for sample in maps:
        channels, height, width = sample.shape
        pixels = [(y, x) for y in range(height) for x in range(width)]
        means = [sum(abs(sample[c, y, x]) ** p for c in range(channels)) / channels for y, x in pixels]
        found.append(np.array(means) / np.sqrt(sum(mean**2 for mean in means)))
    return np.array(found)


@pytest.mark.parametrize("p", [1.0, 2.0, 4.0])
def test_formula(p):
    """The mean squared difference of the attention maps, summed over the stages."""
    case = make_case("at", p=p)
    expected = sum(((attention(s, p) - attention(t, p)) ** 2).mean() for s, t in case.stages())
    assert case.value().item() == pytest.approx(expected, rel=1e-10)


def test_by_hand():
    """Two pixels: attention (3, 4) / 5 of the student and (1, 0) of the teacher."""
    student, teacher = only_map([[[[3.0, -4.0]]]]), only_map([[[[5.0, 0.0]], [[-7.0, 0.0]]]])
    found = make_case("at", p=1.0).loss(student, teacher, None)
    assert found.item() == pytest.approx((0.4**2 + 0.8**2) / 2)


@pytest.mark.parametrize(
    "change",
    [
        lambda f: -f,
        lambda f: f * torch.tensor([0.1, 1.0, 10.0, 100.0]).reshape(4, 1, 1, 1),
        lambda f: torch.cat([f.flip(1), f], dim=1),
    ],
    ids=["sign", "scale of each sample", "order and number of channels"],
)
def test_what_an_attention_map_does_not_see(change):
    case = make_case("at")
    case.student.features[1:4] = [change(f) for f in case.teacher.features[1:4]]
    assert case.value().item() == pytest.approx(0, abs=1e-14)
