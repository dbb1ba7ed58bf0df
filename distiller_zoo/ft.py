"""FT: Kim, Park, Kwak, "Paraphrasing Complex Network: Network Compression via Factor Transfer", NeurIPS 2018."""

import itertools

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import BatchNorm, check_positive, to_smaller
from .method import Batch, Output, Pair


def layers(*widths: int, norm: bool = False, transposed: bool = False) -> nn.Sequential:
    """3 x 3 convolutions through these widths, each followed by leaky ReLU (0.1); with bias, or with batch norm."""
    kind = nn.ConvTranspose2d if transposed else nn.Conv2d
    made: list[nn.Module] = []
    for width_in, width_out in itertools.pairwise(widths):
        made.append(kind(width_in, width_out, 3, padding=1, bias=not norm))
        if norm:
            made.append(BatchNorm(width_out))
        made.append(nn.LeakyReLU(0.1))
    return nn.Sequential(*made)


class FT(nn.Module):
    """L1 distance between the normalised factors of teacher and student, from the last stage's maps (section 3).

    The teacher's factor is the code of a paraphraser, an autoencoder with `rate` times as many channels, which a first
    stage trains to reconstruct the teacher's map (mean squared error) and which is frozen afterwards. The student's is
    made by a translator, trained with the student. The published weight belongs to a paraphraser without batch norm,
    whose convolutions have biases, and to a translator with batch norm; and the published learning rate of the first
    stage is 0.01 for ResNet and wide ResNet students, for others the student's own.
    form "map": the one that the published weight belongs to. A factor becomes the mean over channels of its squares,
    L2-normalised over the pixels; the mean over batch and pixels of the absolute difference.
    form "factor": the paper's. The whole factor, flattened, is L2-normalised; the mean of the absolute difference.
    Maps of different sizes are compared at the smaller one. ValueError for another form, and for a rate of 0.
    """

    def __init__(self, pair: Pair, *, form: str = "map", rate: float = 0.5):
        super().__init__()
        check_positive(rate=rate)
        if form not in ("map", "factor"):
            raise ValueError(f"form: found {form!r}, expected map or factor")
        self.form = form
        (width_s, *_), (width_t, *_) = pair.shapes_s[-2], pair.shapes_t[-2]
        width = max(1, round(rate * width_t))
        self.encoder = layers(width_t, width_t, width, width)  # with the decoder, the paraphraser
        self.decoder = layers(width, width, width_t, width_t, transposed=True)
        self.translator = layers(width_s, width_s, width, width, norm=True)

    def first_stage(self, student: None, teacher: Output, batch: Batch) -> Tensor:
        return F.mse_loss(self.decoder(self.encoder(teacher.features[-2])), teacher.features[-2])

    def normalised(self, factor: Tensor) -> Tensor:
        return F.normalize((factor.square().mean(dim=1) if self.form == "map" else factor).flatten(1))

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        with torch.no_grad():
            factor_t = self.encoder(teacher.features[-2])
        factors = to_smaller(self.translator(student.features[-2]), factor_t)
        factor_s, factor_t = (self.normalised(factor) for factor in factors)
        return (factor_s - factor_t).abs().mean()
