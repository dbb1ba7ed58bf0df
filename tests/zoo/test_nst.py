"""NST against kernels written out channel by channel."""

import numpy as np
import pytest
import torch
from reference_a import EVERY_LOSS, LONGER, PAIR, STUDENT, TEACHER, check_entry, close, stages, value

from distiller_zoo.nst import NST


def mean_kernel(a, b):
    """Mean over samples and pairs of channels of (x . y)^2, x and y unit vectors over the pixels."""
    found = []
    for sample_a, sample_b in zip(a, b, strict=True):
        for x in sample_a:
            for y in sample_b:
                found.append(((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum())) ** 2)
    return sum(found) / len(found)


def test_it_is_the_squared_discrepancy_of_the_channels_summed_over_the_stages():
    """The last stage has fewer pixels than channels: there, the kernel is computed another way."""
    maps = list(stages())
    assert [s.shape[2] ** 2 < min(s.shape[1], t.shape[1]) for s, t in maps] == [False, False, True]
    expected = sum(mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t) for s, t in maps)
    close(value(NST(PAIR), STUDENT, TEACHER), expected)


def test_by_hand():
    """Channels (1, 0) and (0, 1) of the student, (1, 1) / sqrt 2 of the teacher: 1 + 1/2 - 2 * 1/2."""
    student, teacher = torch.eye(2)[None, :, None], torch.full((1, 1, 1, 2), 3.0)
    found = value(NST(PAIR), [None, student, None], [None, teacher, None])
    assert float(found) == pytest.approx(0.5, abs=1e-6)


@pytest.mark.parametrize(
    "change",
    [
        lambda f: f,
        lambda f: -f,
        lambda f: f * torch.linspace(0.1, 10, f.shape[1]).reshape(1, -1, 1, 1),
        lambda f: torch.cat([f.flip(1), f], dim=1),
    ],
    ids=["nothing", "sign", "scale of each channel", "order and number of channels"],
)
def test_what_the_distribution_of_the_channels_does_not_hold(change):
    changed = [None, *(change(f) for f in TEACHER[1:-1]), None]
    close(value(NST(PAIR), changed, TEACHER), 0)


def test_pixels_may_be_reordered_in_both_networks_alike_only():
    """In the first stage's maps, the rows of pixels in reverse."""
    student, teacher, flipped_s, flipped_t = (
        [None, maps, None] for maps in (STUDENT[1], TEACHER[1], STUDENT[1].flip(2), TEACHER[1].flip(2))
    )
    close(value(NST(PAIR), flipped_s, flipped_t), float(value(NST(PAIR), student, teacher)))
    assert value(NST(PAIR), flipped_t, teacher) > 0.1


@EVERY_LOSS
def test_every_loss(check):
    check(NST(PAIR))


def test_networks_of_different_numbers_of_stages_are_refused():
    with pytest.raises(ValueError, match="found 3 for the student and 4 for the teacher"):
        NST(LONGER)


def test_the_entry():
    check_entry("nst", beta=50.0, options={})
