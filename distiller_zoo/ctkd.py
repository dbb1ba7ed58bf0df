"""CTKD: Li et al., "Curriculum Temperature for Knowledge Distillation", AAAI 2023 (arXiv 2211.16231)."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .blocks import check_positive
from .method import Batch, Output, Pair


class Reverse(torch.autograd.Function):
    """The identity, whose gradient is multiplied by `scale`, a scalar tensor."""

    @staticmethod
    def forward(context, x: Tensor, scale: Tensor) -> Tensor:
        context.save_for_backward(scale)
        return x.view_as(x)

    @staticmethod
    def backward(context, gradient: Tensor) -> tuple[Tensor, None]:
        (scale,) = context.saved_tensors
        return gradient * scale, None


class CTKD(nn.Module):
    """KD with a temperature that learns to make it harder: T^2 * KL(teacher || student), averaged over the batch.

    T = t_start + t_range * sigmoid(g), from 1 to 21 with the published values. The temperature's parameters train in
    the student's optimiser, weight decay included, and see the gradient reversed: multiplied by
    -(1 - cos(pi * min(epoch, ramp) / ramp)) / 2, which goes from 0 to -1 over `ramp` epochs (the curriculum), so that
    they come to maximise what the student minimises. The gradient goes through the factor T^2 as well.
    form "global": g is one number, 1 at first (T = 15.6); this is what the published results are of.
    form "instance": g is made for each image by two linear layers with a ReLU between, as wide inside as there are
    classes, from the logits of both networks, which get no gradient through it. The authors' module is not public:
    this form is assumed, and starts near T = 15.6 too.

    Weights 0.1 (CE) and 0.9 (this loss) are those of the only public script for CIFAR-100, ResNet56 > ResNet20. For
    ImageNet, ResNet34 > ResNet18: 1 and 1, ramp 5, 120 epochs, batches of 256. That is the same share of a run as 10
    of 240, and what shorter tables of experiments keep, too.
    """

    def __init__(
        self, pair: Pair, *, form: str = "global", t_start: float = 1.0, t_range: float = 20.0, ramp: int = 10
    ):
        super().__init__()
        check_positive(t_start=t_start, t_range=t_range, ramp=ramp)
        if form not in ("global", "instance"):
            raise ValueError(f"form: found {form!r}, expected global or instance")
        self.t_start, self.t_range, self.ramp = t_start, t_range, ramp
        self.predict = None
        if form == "global":
            self.g = nn.Parameter(torch.ones(()))
        else:
            classes = pair.classifier_t.out_features
            hidden, last = nn.Linear(2 * classes, classes), nn.Linear(classes, 1)
            self.predict = nn.Sequential(hidden, nn.ReLU(), last)
            nn.init.ones_(last.bias)
            nn.init.normal_(last.weight, std=1e-3)

    def temperature(self, student: Output, teacher: Output, epoch: Tensor) -> Tensor:
        """T for each image (B, 1), or one for all, a scalar."""
        if self.predict is None:
            g = self.g
        else:
            g = self.predict(torch.cat([student.logits, teacher.logits], dim=1).detach())
        share = (epoch / self.ramp).clamp(max=1)
        return self.t_start + self.t_range * Reverse.apply(g, (torch.cos(math.pi * share) - 1) / 2).sigmoid()

    def forward(self, student: Output, teacher: Output, batch: Batch) -> Tensor:
        T = self.temperature(student, teacher, batch.epoch)
        log_p_s, log_p_t = (F.log_softmax(each.logits / T, dim=1) for each in (student, teacher))
        return (F.kl_div(log_p_s, log_p_t, reduction="none", log_target=True) * T**2).sum(dim=1).mean()
