"""CRCD against its definition in loops; the gradient in closed form against automatic differentiation."""

import copy

import numpy as np
import pytest
import torch
from scipy.special import softmax
from torch import nn

from distiller_zoo import Batch, Output, Pair, distiller_dict

CRCD = distiller_dict["crcd"].loss
CLASSES, WIDTH_T = 3, 6
SMALL = {"feat_dim": 4, "nce_k": 5, "nce_t": 0.5}
LABELS = torch.arange(12) % CLASSES
INDICES = torch.tensor([7, 0, 5, 11])
NEGATIVES = torch.tensor([[0, 2, 3, 5, 6], [1, 1, 4, 8, 10], [0, 1, 3, 4, 6], [0, 1, 3, 4, 9]])


def case(width_s=WIDTH_T, count=4, make=torch.randn, fixed=True, **options):
    """(pair, loss, student, teacher, batch) in float64; with the same negatives in every step if fixed."""
    torch.manual_seed(0)
    heads = [nn.Linear(width, CLASSES).double() for width in (width_s, WIDTH_T)]
    pair = Pair(((width_s,),), ((WIDTH_T,),), None, None, *heads, labels=LABELS)
    loss = CRCD(pair, **SMALL | options).double()
    for parameter in loss.parameters():
        nn.init.normal_(parameter, std=0.5)
    outputs = []
    for width in (width_s, WIDTH_T):
        outputs.append(Output([make(count, width, dtype=torch.float64)], make(count, CLASSES, dtype=torch.float64)))
    for x in (outputs[0].features[0], outputs[0].logits):
        x.requires_grad_()
    for part in (loss.relations, loss.of_gradients):
        if fixed and part is not None:
            part.draw = lambda labels: NEGATIVES[: len(labels)]
    return pair, loss, *outputs, Batch(LABELS[INDICES[:count]], INDICES[:count])


def array(x):
    return x.detach().numpy()


def unit(x):
    return x / np.sqrt((x**2).sum(-1, keepdims=True))


def embedded(layer, x):
    return unit(array(x) @ array(layer.weight).T + array(layer.bias))


def powers(vectors, memory, T):
    """{(i, a): [e_0, ..., e_K]}: image i seen from anchor a, its own entry first and then the negatives."""
    found = {}
    for i, j in enumerate(INDICES.tolist()):
        for a, anchor in enumerate(INDICES.tolist()):
            if i == a:
                continue
            r = unit(vectors[i] - memory[anchor])
            candidates = [j, *NEGATIVES[i].tolist()]
            q = [unit(memory[k] - memory[anchor]) if k != anchor else np.zeros(r.shape) for k in candidates]
            found[i, a] = np.array([np.exp(r @ each / T) for each in q])
    return found


def relation_loss(v_s, v_t, memory_s, memory_t, T=0.5, Z=None):
    """(loss, both Z): of the student against the teacher's memory, and of the teacher against the student's."""
    total, n, K, normalisers = 0.0, len(LABELS), 5, []
    for side, (vectors, memory) in enumerate(((v_s, memory_t), (v_t, memory_s))):
        e = powers(vectors, memory, T)
        normalisers.append(Z[side] if Z else np.mean(list(e.values())) * n)
        for values in e.values():
            p = values / normalisers[side]
            total -= (np.log(p[0] / (p[0] + K / n)) + np.log(K / n / (p[1:] + K / n)).sum()) / len(e)
    return total, normalisers


def test_relations_over_two_steps():
    _, loss, student, teacher, batch = case(width_s=3, gradient="none", nce_m=0.75)
    part = loss.relations
    v_s, v_t = embedded(part.embed_s, student.features[-1]), embedded(part.embed_t, teacher.features[-1])
    memory_s, memory_t = array(part.memory_s).copy(), array(part.memory_t).copy()
    Z = None
    for _ in range(2):
        expected, Z = relation_loss(v_s, v_t, memory_s, memory_t, Z=Z)
        assert loss(student, teacher, batch).item() == pytest.approx(expected, rel=1e-6)
        for memory, vectors in ((memory_s, v_s), (memory_t, v_t)):
            for b, i in enumerate(INDICES):
                memory[i] = unit(0.75 * memory[i] + 0.25 * vectors[b])
        assert np.allclose(array(part.memory_s), memory_s) and np.allclose(array(part.memory_t), memory_t)
        assert [part.Z_s.item(), part.Z_t.item()] == pytest.approx(Z)


@pytest.mark.parametrize("spread", [1.0, 1e-1, 1e-3])
def test_relations_of_memories_that_lie_close_together(spread):
    """As those of the gradients of CE, in which the bias of the embedding is most of a vector."""
    _, loss, student, teacher, batch = case(gradient="none")
    part = loss.relations
    with torch.no_grad():
        for memory in (part.memory_s, part.memory_t):
            memory.copy_(nn.functional.normalize(torch.ones(1, 4).double() + spread * memory))
        for embed in (part.embed_s, part.embed_t):
            embed.weight *= spread
            embed.bias.fill_(1.0)
    v_s, v_t = embedded(part.embed_s, student.features[-1]), embedded(part.embed_t, teacher.features[-1])
    expected, _ = relation_loss(v_s, v_t, array(part.memory_s), array(part.memory_t))
    single = [output._replace(features=[output.features[-1].float()]) for output in (student, teacher)]
    assert copy.deepcopy(loss).float()(*single, batch).item() == pytest.approx(expected, rel=1e-3)
    assert loss(student, teacher, batch).item() == pytest.approx(expected, rel=1e-6)


def test_equal_memories_have_no_direction():
    _, loss, student, teacher, batch = case(gradient="none")
    for memory in (loss.relations.memory_s, loss.relations.memory_t):
        memory.fill_(0.5)
    assert loss(student, teacher, batch).isfinite()


def test_the_gradient_of_cross_entropy_is_the_derivative_by_the_pooled_vector():
    pair, loss, student, teacher, batch = case(width_s=3, gradient="contrast")
    outputs = []
    for output, head in ((student, pair.classifier_s), (teacher, pair.classifier_t)):
        outputs.append(output._replace(logits=head(output.features[0].requires_grad_())))
    found = loss.gradients(*outputs, batch)
    for gradient, output in zip(found, outputs, strict=True):
        value = nn.functional.cross_entropy(output.logits, batch.labels)
        (expected,) = torch.autograd.grad(value, output.features[0])
        torch.testing.assert_close(gradient, expected)
    assert found[0].requires_grad and not found[1].requires_grad


def by_hand(output, head, labels):
    """The rows of (p - onehot) W / B."""
    p = softmax(array(output.logits), axis=1)
    return np.stack([(p[b] - np.eye(CLASSES)[label]) @ array(head.weight) for b, label in enumerate(labels)]) / len(p)


def test_the_cosine_form_adds_ten_times_one_minus_the_mean_cosine():
    pair, loss, student, teacher, batch = case()
    _, alone, *_ = case(gradient="none")
    alone.load_state_dict(loss.state_dict())
    g_s, g_t = by_hand(student, pair.classifier_s, batch.labels), by_hand(teacher, pair.classifier_t, batch.labels)
    cosine = (unit(g_s) * unit(g_t)).sum(axis=1).mean()
    value = loss(student, teacher, batch)
    assert value.item() == pytest.approx(alone(student, teacher, batch).item() + 10 * (1 - cosine), rel=1e-10)


def test_the_contrast_form_adds_relations_between_the_gradients():
    pair, loss, student, teacher, batch = case(width_s=3, gradient="contrast")
    _, alone, *_ = case(width_s=3, gradient="none")
    own = {name: x for name, x in loss.state_dict().items() if name.startswith("relations.")}
    alone.load_state_dict(own)
    part = loss.of_gradients
    g_s, g_t = by_hand(student, pair.classifier_s, batch.labels), by_hand(teacher, pair.classifier_t, batch.labels)
    v_s, v_t = embedded(part.embed_s, torch.from_numpy(g_s)), embedded(part.embed_t, torch.from_numpy(g_t))
    expected, _ = relation_loss(v_s, v_t, array(part.memory_s).copy(), array(part.memory_t).copy())
    found = loss(student, teacher, batch).item() - alone(student, teacher, batch).item()
    assert found == pytest.approx(expected, rel=1e-6)


def test_the_same_in_float32_for_published_sizes():
    """Inner products in place of differences cost no accuracy that matters."""
    torch.manual_seed(0)
    labels = torch.randint(10, (3000,))
    pair = Pair(((64,),), ((64,),), labels=labels)
    loss = CRCD(pair, gradient="none").relations
    indices = torch.randperm(3000)[:32]
    contrasted = torch.cat([indices[:, None], loss.draw(labels[indices])], dim=1)
    vectors = nn.functional.normalize(torch.randn(32, 128))
    values = [
        loss.contrast(vectors.to(kind), loss.memory_t.to(kind), torch.zeros((), dtype=kind), contrasted)
        for kind in (torch.float32, torch.float64)
    ]
    assert contrasted.shape == (32, 501) and values[0].item() == pytest.approx(values[1].item(), rel=1e-5)


def test_the_order_of_the_batch_does_not_matter():
    _, loss, student, teacher, batch = case(gradient="none")
    order = torch.tensor([2, 0, 3, 1])
    _, other, *_ = case(gradient="none")
    other.relations.draw = lambda labels: NEGATIVES[order]
    shuffled = [x._replace(features=[x.features[0][order]], logits=x.logits[order]) for x in (student, teacher)]
    for _ in range(2):
        value = loss(student, teacher, batch)
        moved = other(*shuffled, Batch(batch.labels[order], batch.indices[order]))
        torch.testing.assert_close(moved, value)
    torch.testing.assert_close(other.state_dict(), loss.state_dict())


@pytest.mark.parametrize("gradient", ["cosine", "contrast"])
def test_a_saved_state_continues_bit_by_bit(gradient):
    pair, loss, student, teacher, batch = case(gradient=gradient, fixed=False)
    loss(student, teacher, batch)
    saved, random = copy.deepcopy(loss.state_dict()), torch.get_rng_state()
    values = [loss(student, teacher, batch) for _ in range(2)]
    torch.manual_seed(99)
    resumed = CRCD(pair, **SMALL, gradient=gradient).double()
    resumed.load_state_dict(saved)
    torch.set_rng_state(random)
    assert values == [resumed(student, teacher, batch) for _ in range(2)] and values[0] != values[1]
    assert all(torch.equal(x, resumed.state_dict()[name]) for name, x in loss.state_dict().items())


def test_the_classifiers_are_not_the_losss_own_and_the_students_learns():
    pair, loss, student, teacher, batch = case()
    loss(student, teacher, batch).backward()
    assert {name.split(".")[1] for name, _ in loss.named_parameters()} == {"embed_s", "embed_t"}
    assert pair.classifier_s.weight.grad.abs().sum() > 0 and pair.classifier_t.weight.grad is None


@pytest.mark.parametrize("gradient", ["cosine", "contrast"])
def test_gradient(gradient):
    pair, loss, student, teacher, batch = case(gradient=gradient, nce_m=1.0)
    loss(student, teacher, batch)  # sets Z
    leaves = [student.features[0], student.logits, *loss.parameters(), pair.classifier_s.weight]
    assert torch.autograd.gradcheck(lambda *_: loss(student, teacher, batch), leaves, fast_mode=True)


def test_one_image_has_no_relations_and_the_next_batch_sets_Z():
    _, loss, student, teacher, batch = case(count=1, gradient="none")
    assert loss(student, teacher, batch).item() == 0 and loss.relations.Z_s == 0
    _, _, student, teacher, batch = case()
    assert loss.relations.draw(LABELS[:1]).shape == (1, 5)
    loss.relations.draw = lambda labels: NEGATIVES[: len(labels)]
    assert loss(student, teacher, batch) > 0 and loss.relations.Z_s > 0


@pytest.mark.parametrize(
    "options, message",
    [
        ({"width_s": 3}, "needs equal widths of the pooled vectors, found 3 for the student and 6 for the teacher"),
        ({"gradient": "mse"}, "gradient: found 'mse', expected cosine, contrast or none"),
        ({"nce_t": 0.0}, "nce_t: found 0.0, expected more than 0"),
    ],
)
def test_what_it_is_not_defined_for_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        case(**options)


def test_entry():
    method = distiller_dict["crcd"]
    assert (method.gamma, method.alpha, method.beta) == (1, 0.9, 1)
    defaults = {"feat_dim": 128, "nce_k": 500, "nce_t": 0.05, "nce_m": 0.5, "gradient": "cosine"}
    assert method.options == defaults and method.trainable
    assert method.settings("resnet56", "resnet20") == (1, defaults, method.source)
    assert method.settings("vgg13", "MobileNetV2")[1]["gradient"] == "contrast"
    assert method.source.startswith("assumed") and method.elsewhere.startswith("assumed")
    for term in ("kd", "other"):  # 250 epochs, the last ten with CE alone; of 240 as large a share
        assert [method.factor(term, epoch, 250) for epoch in (1, 240, 241, 250)] == [1, 1, 0, 0]
        assert [method.factor(term, epoch, 240) for epoch in (1, 230, 231, 240)] == [1, 1, 0, 0]
        assert method.factor(term, 1, 1) == 1
    assert method.factor("ce", 250, 250) == 1
