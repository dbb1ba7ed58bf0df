"""AT against attention maps written out pixel by pixel."""

import numpy as np
import pytest
import torch
from reference_a import EVERY_LOSS, LONGER, PAIR, STUDENT, TEACHER, check_entry, close, stages, value

from distiller_zoo.at import AT


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
def test_it_is_the_mean_squared_difference_of_attention_maps_summed_over_the_stages(p):
    expected = sum(((attention(s, p) - attention(t, p)) ** 2).mean() for s, t in stages())
    close(value(AT(PAIR, p=p), STUDENT, TEACHER), expected)


def test_by_hand():
    """Two pixels: attention (3, 4) / 5 of the student and (1, 0) of the teacher."""
    student, teacher = torch.tensor([[[[3.0, -4.0]]]]), torch.tensor([[[[5.0, 0.0]], [[-7.0, 0.0]]]])
    found = value(AT(PAIR, p=1.0), [None, student, None], [None, teacher, None])
    assert float(found) == pytest.approx((0.4**2 + 0.8**2) / 2, rel=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f,
        lambda f: -f,
        lambda f: f * torch.tensor([0.1, 1.0, 10.0, 100.0]).reshape(4, 1, 1, 1),
        lambda f: torch.cat([f.flip(1), f], dim=1),
    ],
    ids=["nothing", "sign", "scale of each sample", "order and number of channels"],
)
def test_what_an_attention_map_does_not_see(change):
    changed = [None, *(change(f) for f in TEACHER[1:-1]), None]
    close(value(AT(PAIR), changed, TEACHER), 0)


@EVERY_LOSS
@pytest.mark.parametrize("p", [1.0, 2.0])
def test_every_loss(check, p):
    check(AT(PAIR, p=p))


def test_refusals():
    with pytest.raises(ValueError, match="p: found 0.5, expected at least 1"):
        AT(PAIR, p=0.5)
    with pytest.raises(ValueError, match="found 3 for the student and 4 for the teacher"):
        AT(LONGER)


def test_the_entry():
    check_entry("at", beta=1000.0, options={"p": 2.0})
