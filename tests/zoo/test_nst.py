"""NST against kernels written out channel by channel."""

import numpy as np
import pytest
import torch
from support.zoo import make_case, only_map


def mean_kernel(a, b):
    """Mean over samples and pairs of channels of (x . y)^2, x and y unit vectors over the pixels."""
    found = []
    for sample_a, sample_b in zip(a, b, strict=True):
        for x in sample_a:
            for y in sample_b:
                found.append(((x * y).sum() / np.sqrt((x**2).sum() * (y**2).sum())) ** 2)
    return sum(found) / len(found)


def test_formula():
    """The last stage has fewer pixels than channels: there, the kernel is computed another way."""
    case = make_case("nst")
    maps = list(case.stages())
    assert [s.shape[2] ** 2 < min(s.shape[1], t.shape[1]) for s, t in maps] == [False, False, True]
    expected = sum(mean_kernel(t, t) + mean_kernel(s, s) - 2 * mean_kernel(s, t) for s, t in maps)
    assert case.value().item() == pytest.approx(expected, rel=1e-10)


def test_by_hand():
    """Channels (1, 0) and (0, 1) of the student, (1, 1) / sqrt 2 of the teacher: 1 + 1/2 - 2 * 1/2."""
    student, teacher = only_map(torch.eye(2)[None, :, None]), only_map(torch.full((1, 1, 1, 2), 3.0))
    assert make_case("nst").loss(student, teacher, None).item() == pytest.approx(0.5)


@pytest.mark.parametrize(
    "change",
    [
        lambda f: -f,
        lambda f: f * torch.linspace(0.1, 10, f.shape[1]).reshape(1, -1, 1, 1),
        lambda f: torch.cat([f.flip(1), f], dim=1),
    ],
    ids=["sign", "scale of each channel", "order and number of channels"],
)
def test_what_the_distribution_of_the_channels_does_not_hold(change):
    case = make_case("nst")
    case.student.features[1:4] = [change(f) for f in case.teacher.features[1:4]]
    assert case.value().item() == pytest.approx(0, abs=1e-14)


def test_pixels_may_be_reordered_in_both_networks_alike_only():
    """In the first stage's maps, the rows of pixels in reverse."""
    case = make_case("nst")
    s, t = (output.features[1].detach() for output in (case.student, case.teacher))
    before = case.loss(only_map(s), only_map(t), None).item()
    assert case.loss(only_map(s.flip(2)), only_map(t.flip(2)), None).item() == pytest.approx(before)
    assert case.loss(only_map(t.flip(2)), only_map(t), None) > 0.1
