"""A network's batch norms, found in its graph: folded into convolutions, or named by the stage that they end."""

import copy
import operator
from collections import Counter

from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class Tracer(fx.Tracer):
    """Records the calls of layers, to which kinds of batch norm defined elsewhere belong."""

    def is_leaf_module(self, module, name):
        return isinstance(module, nn.BatchNorm2d) or super().is_leaf_module(module, name)


def fold_batchnorm(model: nn.Module) -> nn.Module:
    """Return an eval-mode, gradient-free copy of `model` with batch norms folded into the convolutions before them.

    In eval mode a batch norm is an affine map of each channel, which a convolution absorbs exactly, up to rounding,
    where nothing else reads the convolution's output and neither is used twice. All other batch norms stay as they are
    (in a wide ResNet, those that open a block). The copy is of the model's own class and is called as the model is,
    `is_feat` and `preact` included; a folded batch norm has become an identity, so state dicts do not pass from one to
    the other. `model` is left as it was. A model that torch.fx cannot trace keeps all its batch norms.
    """
    folded = copy.deepcopy(model).eval().requires_grad_(False)
    for conv_name, bn_name in _foldable_pairs(folded):
        conv, bn = folded.get_submodule(conv_name), folded.get_submodule(bn_name)
        assert isinstance(conv, nn.Conv2d) and isinstance(bn, nn.BatchNorm2d)
        folded.set_submodule(conv_name, fuse_conv_bn_eval(conv, bn))
        folded.set_submodule(bn_name, nn.Identity())
    return folded.eval()


def _foldable_pairs(model):
    """Names (convolution, batch norm) where only the latter reads the former, and nothing else uses either, whichever
    features are asked for."""
    return _sole_readers(model, preact=False) & _sole_readers(model, preact=True)


def _traced(model, preact):
    """The nodes of the model's graph; none where torch.fx cannot trace it, as a branch on the shape of an image."""
    try:
        return list(Tracer().trace(model, concrete_args={"is_feat": True, "preact": preact}).nodes)
    except Exception:  # it raises many kinds, by what the model does
        return []


def _sole_readers(model, preact):
    modules, nodes = dict(model.named_modules()), _traced(model, preact)
    uses = Counter(node.target for node in nodes if node.op == "call_module")
    uses += Counter(node.target.rpartition(".")[0] for node in nodes if node.op == "get_attr")  # such as a weight

    def calls(node, kind):
        return node.op == "call_module" and isinstance(modules[node.target], kind) and uses[node.target] == 1

    pairs = set()
    for node in nodes:
        if calls(node, nn.BatchNorm2d) and node.args and modules[node.target].running_mean is not None:
            source = node.args[0]
            if calls(source, nn.Conv2d) and len(source.users) == 1:
                pairs.add((source.target, node.target))
    return pairs


def preactivation_norms(model: nn.Module) -> list[nn.BatchNorm2d | None]:
    """The batch norm that the pre-activation of each stage, between stem and pooled vector, comes out of.

    Where a shortcut is added, that of the branch; None where there is no batch norm just before. Empty for a model
    that torch.fx cannot trace.
    """
    nodes = _traced(model, preact=True)
    if not nodes:
        return []
    features, _ = nodes[-1].args[0]
    modules, norms = dict(model.named_modules()), []
    for node in features[1:-1]:
        if node.target is operator.add:
            node = node.args[0]
        module = modules.get(node.target)
        norms.append(module if isinstance(module, nn.BatchNorm2d) else None)
    return norms
