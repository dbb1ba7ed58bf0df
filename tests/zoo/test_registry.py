"""The registry of distiller_zoo/__init__.py: every entry is complete and as published, and every loss keeps the
contract of distiller_zoo/method.py."""

from dataclasses import replace

import pytest
import torch
from support.zoo import LONGER, PAIRS, SHAPES_S, SHAPES_T, make_case, make_pair, shapes
from torch import nn

from distiller_zoo import Batch, Method, Output, distiller_dict, resolve_method
from distiller_zoo.method import OF_PAIR
from models import model_dict

EVERY_METHOD = pytest.mark.parametrize("key, method", distiller_dict.items(), ids=list(distiller_dict))

# The baselines as the published tables name them; logit standardisation is an option of those on logits.
BASELINES = """KD FitNet AT SP CC VID RKD PKT AB FT FSP NST CRD OFD ReviewKD DKD DIST KD-SVD CAT-KD SRRL SemCKD SimKD
CRCD MGD CTKD MLKD NORM"""

# Weights of CE, KD and the method, its options, and what else is published: by RepDistiller's scripts up to CRD, then
# by mdistiller's configurations (OFD, DKD), SimKD's scripts (SRRL, SemCKD, SimKD), and the authors' own. KD-SVD's
# weight is mdistiller's, CAT-KD's and ReviewKD's are of the middle of those published for single pairs.
PUBLISHED = {
    "kd": ((0.1, 0.9, 0), {}, {}),
    "fitnet": ((1, 0, 100), {"hint": 2}, {}),
    "at": ((1, 0, 1000), {"p": 2}, {}),
    "sp": ((1, 0, 3000), {}, {}),
    "cc": ((1, 0, 0.02), {"form": "difference", "feat_dim": 128, "width": 0.4, "order": 2}, {}),
    "vid": ((1, 0, 1), {"variance": 5}, {}),
    "rkd": ((1, 0, 1), {"distance": 25, "angle": 50}, {}),
    "pkt": ((1, 0, 30000), {}, {}),
    "ab": ((1, 0, 1), {"margin": 1}, {"preact_s": True, "preact_t": True, "first_epochs": 30, "first_only": True}),
    "ft": ((1, 0, 200), {"form": "map", "rate": 0.5}, {"first_epochs": 30, "first_lr": {"resnet": 0.01, "wrn": 0.01}}),
    "fsp": ((1, 0, 1), {"pool": "avg"}, {"first_epochs": 30, "first_only": True}),
    "nst": ((1, 0, 50), {}, {}),
    "crd": ((1, 0, 0.8), {"feat_dim": 128, "nce_k": 16384, "nce_t": 0.07, "nce_m": 0.5}, {}),
    "ofd": ((1, 0, 0.001), {}, {"preact_s": True, "preact_t": True}),
    "dkd": ((1, 0, 1), {"tckd": 1, "nckd": 8}, {"warmup": 20}),
    "srrl": ((1, 1, 1), {}, {}),
    "semckd": ((1, 1, 400), {"reduction": 4}, {}),
    "simkd": ((0, 0, 1), {}, {"last_map": True}),
    "dist": ((1, 0, 1), {"inter": 2, "intra": 2}, {}),
    "reviewkd": ((1, 0, 5), {"width": 512}, {"preact_t": True, "warmup": 20}),
    "catkd": ((1, 0, 15), {"form": "normalised", "resolution": 2}, {"last_map": True}),
    "kdsvd": ((1, 0, 1), {}, {}),
}
DEFAULTS = Method("", "")
SCHEDULE = ("preact_s", "preact_t", "last_map", "warmup", "first_epochs", "first_only", "first_lr")
NO_STAGE = {"shapes_s": shapes((3,), (8,)), "shapes_t": shapes((3,), (8,)), "map_s": (3, 8, 8), "map_t": (3, 8, 8)}
ONE_STAGE = shapes((3, 4), (8, 8))
READ_STAGES = ("ab", "at", "kdsvd", "nst", "ofd", "semckd", "vid")
SAME_STAGES = ("ab", "at", "kdsvd", "nst", "ofd", "reviewkd", "vid")


def test_every_baseline_is_there_once():
    assert {method.name for method in distiller_dict.values()} >= set(BASELINES.split())
    assert len({method.name for method in distiller_dict.values()}) == len(distiller_dict)


@pytest.mark.parametrize("key", PUBLISHED)
def test_weights_options_and_schedule_are_the_published_ones(key):
    method, (weights, options, others) = distiller_dict[key], PUBLISHED[key]
    assert (method.gamma, method.alpha, method.beta) == weights and method.options == options
    assert {name: getattr(method, name) for name in SCHEDULE} == {
        name: others.get(name, getattr(DEFAULTS, name)) for name in SCHEDULE
    }
    assert method.source.startswith("assumed: " if key == "kdsvd" else "published: ")


def test_the_first_stage_has_its_own_rate_for_the_students_that_are_named():
    rates = {student: distiller_dict["ft"].first_rate(student, 0.05) for student in ("resnet8x4", "wrn_16_2", "vgg8")}
    assert rates == {"resnet8x4": 0.01, "wrn_16_2": 0.01, "vgg8": 0.05}
    assert distiller_dict["ab"].first_rate("resnet8x4", 0.05) == 0.05


@EVERY_METHOD
def test_an_entry_says_where_it_comes_from(key, method):
    assert method.name and method.citation
    assert method.citation[-4:].isdigit()  # the year
    assert method.by_pair or not method.elsewhere
    for entry in (method, method.on_standardized_logits()):
        assert entry.source.startswith(("published: ", "assumed: "))
        assert not entry.elsewhere or entry.elsewhere.startswith(("published: ", "assumed: "))


@EVERY_METHOD
def test_pairs_are_of_known_networks_and_their_settings_are_options(key, method):
    for pair in [*method.by_pair, *(method.pairs or ())]:
        assert len(pair) == 2 and set(pair) <= model_dict.keys(), pair
    for pair, settings in method.by_pair.items():
        assert settings and settings.keys() <= {*OF_PAIR, "source", *method.options}, pair
        assert settings.get("source", "assumed: ").startswith(("published: ", "assumed: "))
        for name, value in settings.items():
            if name == "source":
                continue
            default = getattr(method, name) if name in OF_PAIR else method.options[name]
            assert type(value) is type(default), (pair, name)


@EVERY_METHOD
def test_options_have_a_default_of_a_plain_type(key, method):
    """The type by which a text from the command line is read."""
    for name, default in method.options.items():
        assert type(default) in (bool, int, float, str), name
    assert all(isinstance(method.options[name], int) for name in method.in_epochs)


@EVERY_METHOD
def test_a_schedule_is_of_shares_that_rise_to_1(key, method):
    schedules = [method.schedule, *(values["schedule"] for values in method.by_pair.values() if "schedule" in values)]
    for schedule in schedules:
        assert schedule.keys() <= {"kd", "other"}
        for steps in schedule.values():
            shares = [until for until, _ in steps]
            assert shares == sorted(set(shares)) and shares[0] > 0 and shares[-1] == 1.0
            assert 0 < max(factor for _, factor in steps) <= 1.0


@EVERY_METHOD
def test_a_first_stage_is_announced_if_there_is_one(key, method):
    assert (method.first_epochs > 0) == hasattr(method.loss, "first_stage")
    assert method.first_epochs or not method.first_only


@EVERY_METHOD
def test_a_method_is_found_by_its_key_and_its_name(key, method):
    for name in (key, key.upper(), method.name, method.name.lower().replace("-", "_")):
        assert resolve_method(name) == key


@pytest.mark.parametrize(
    "name, key",
    [
        ("hint", "fitnet"),
        ("attention", "at"),
        ("similarity", "sp"),
        ("correlation", "cc"),
        ("abound", "ab"),
        ("factor", "ft"),
        ("Attention", "at"),
    ],
)
def test_repdistillers_names(name, key):
    assert resolve_method(name) == key


@pytest.mark.parametrize("name, nearest", [("fitnets", "fitnet"), ("reviewKD2", "reviewkd"), ("similarty", "sp")])
def test_an_unknown_name_gets_the_nearest(name, nearest):
    with pytest.raises(ValueError, match=rf"unknown method '{name}': .* \(did you mean {nearest}\?\)"):
        resolve_method(name)


def test_a_method_of_ones_own_is_found(monkeypatch):
    """Even under a name that stands for another method otherwise."""
    for key in ("my_loss", "attention"):
        monkeypatch.setitem(distiller_dict, key, Method("Mine", "", nn.Identity))
        assert resolve_method(key) == key
    assert resolve_method("My-Loss") == "my_loss"


# What every loss has to do, for every method of the registry and for the forms of a loss that are not its default.

WITH_LOSS = [key for key, method in distiller_dict.items() if method.loss]
FORMS = [
    ("at", {"p": 1.0}),
    ("catkd", {"form": "raw"}),
    ("cc", {"form": "kernel"}),
    ("crcd", {"gradient": "cosine"}),
    ("crcd", {"gradient": "none"}),
    ("ctkd", {"form": "instance"}),
    ("fitnet", {"hint": 1}),
    ("fitnet", {"hint": 3}),
    ("fsp", {"pool": "max"}),
    ("ft", {"form": "factor"}),
    ("mgd", {"mask": "pixel"}),
    ("mlkd", {"form": "masked"}),
]
EVERY_LOSS = pytest.mark.parametrize("key", WITH_LOSS)


def forms(wanted=lambda key, options: True):
    """Every loss in its default form and in others, as far as they are wanted."""
    found = [(key, options) for key, options in [*((key, {}) for key in WITH_LOSS), *FORMS] if wanted(key, options)]
    names = ["-".join([key, *map(str, options.values())]) for key, options in found]
    return pytest.mark.parametrize("key, options", found, ids=names)


EVERY_FORM = forms()
# Neighbours, drawn negatives and masks, and the columns of similarities depend on the order of the images.
ORDERED = ("cc", "crd", "crcd", "mgd", "semckd")
IN_ANY_ORDER = forms(lambda key, options: key not in ORDERED or options == {"form": "kernel"})
# Not what goes through layers of its own, and not AB, which asks for a margin, nor MLKD, which has cross entropy in it,
# nor NORM, whose student has a part of its own.
VANISHING = forms(
    lambda key, options: (
        options == {"form": "kernel"} or not (distiller_dict[key].trainable or key in ("ab", "mlkd", "norm"))
    )
)
STILL = {"crd": {"nce_m": 1.0}, "crcd": {"nce_m": 1.0}}  # a memory that does not move between two calls
# A gradient that is reversed is none of the loss, and leads up.
NOT_REVERSED = forms(lambda key, options: key != "ctkd")


@EVERY_FORM
@pytest.mark.parametrize(
    "count, fill",
    [
        *((count, (None, None)) for count in (4, 2, 1)),
        *((1, (0, 0)), (3, (0, 0)), (3, (1.5, 1.5)), (3, (0, None)), (3, (1.5, None))),
    ],
)
def test_any_batch_has_a_finite_loss_and_finite_gradients(key, options, count, fill):
    """Whole and short batches, zeros, and duplicates, in the float32 and the mode of training; also after a step, which
    fills memories."""
    case = make_case(key, count=count, fill=fill, dtype=torch.float32, **options)
    for _ in range(2):
        value = case.value()
        assert value.shape == () and value.dtype == torch.float32 and value.isfinite()
        gradients = torch.autograd.grad(value, [*case.leaves, case.student.logits.requires_grad_()], allow_unused=True)
        assert all(gradient is None or gradient.isfinite().all() for gradient in gradients)


@NOT_REVERSED
def test_gradients_are_those_of_finite_differences(key, options):
    case = make_case(key, **options, **STILL.get(key, {}))

    def value(*_):
        torch.manual_seed(2)
        return case.value()

    leaves = case.leaves
    if key == "ft":  # whose paraphraser learns in the first stage alone
        leaves = [*case.inputs, *case.loss.translator.parameters()]
    assert torch.autograd.gradcheck(value, leaves, fast_mode=True)


@EVERY_LOSS
def test_gradients_reach_the_declared_features_and_all_that_trains(key):
    """Whatever is not declared is None, so that nothing else can be read."""
    read = set()
    for options in [{"hint": hint} for hint in range(4)] if key == "fitnet" else [{}]:
        case = make_case(key, **options)
        gradients = torch.autograd.grad(case.value(), case.inputs, allow_unused=True, retain_graph=True)
        read |= {i for i, gradient in enumerate(gradients) if gradient is not None and gradient.any()}
    assert read == set(range(len(case.inputs)))

    case.value().backward()
    if case.method.first_epochs and not case.method.first_only:
        case.loss.first_stage(None, case.teacher, case.batch).backward()
    missed = [name for name, parameter in case.loss.named_parameters() if parameter.grad is None]
    assert not missed
    assert case.method.trainable == any(True for _ in case.loss.parameters())


@EVERY_LOSS
def test_the_teacher_gets_no_gradient_and_no_output_is_changed(key):
    case = make_case(key)
    outputs = [*(case.student, case.teacher), *(x.strong for x in (case.student, case.teacher) if x.strong)]
    tensors = [x for output in outputs for x in (*output.features, *output[1:3]) if x is not None]
    before = [tensor.detach().clone() for tensor in tensors]
    case.value().backward()
    teachers = [*case.pair.classifier_t.parameters(), *(p for norm in case.pair.norms_t for p in norm.parameters())]
    assert all(parameter.grad is None for parameter in teachers)
    assert not {id(parameter) for parameter in teachers} & {id(parameter) for parameter in case.loss.parameters()}
    assert all(torch.equal(*each) for each in zip(before, tensors, strict=True))


@NOT_REVERSED
def test_descent_makes_the_loss_smaller(key, options):
    """Ten steps down the gradient, each of which would take 2 % off the loss if the loss were linear."""
    case = make_case(key, **options, **STILL.get(key, {}))
    values = []
    for _ in range(11):
        torch.manual_seed(2)
        values.append(case.value())
        gradients = torch.autograd.grad(values[-1], case.leaves, allow_unused=True, materialize_grads=True)
        rate = 0.02 * values[-1].abs().item() / sum(gradient.square().sum() for gradient in gradients)
        with torch.no_grad():
            for leaf, gradient in zip(case.leaves, gradients, strict=True):
                leaf -= rate * gradient
    assert values == sorted(values, reverse=True) and values[-1] < values[0] - 0.1 * values[0].abs()


@EVERY_LOSS
def test_equal_seeds_give_equal_losses_and_a_saved_state_continues_bit_by_bit(key):
    one, other, resumed = make_case(key), make_case(key), make_case(key)
    values = []
    for case in (one, other):
        torch.manual_seed(2)
        values.append(case.value())
    assert values[0] == values[1]
    saved, random = {name: x.clone() for name, x in one.loss.state_dict().items()}, torch.get_rng_state()
    values = [one.value() for _ in range(2)]
    for parameter in resumed.loss.parameters():
        nn.init.normal_(parameter)
    resumed.loss.load_state_dict(saved)
    torch.set_rng_state(random)
    assert values == [resumed.value() for _ in range(2)]
    assert all(torch.equal(x, resumed.loss.state_dict()[name]) for name, x in one.loss.state_dict().items())


@EVERY_LOSS
def test_parameters_and_buffers_follow_the_module(key):
    loss = make_case(key).loss.to("meta")
    assert all(x.is_meta for x in (*loss.parameters(), *loss.buffers()))


@EVERY_LOSS
def test_features_in_bfloat16_give_a_loss_in_float32(key):
    case = make_case(key, dtype=torch.float32)

    def half(output):
        features = [None if x is None else x.bfloat16() for x in output.features]
        kept = [i for i, x in enumerate(features) if x is not None]
        selected = replace(case.method, features=tuple(kept)).select(features)
        return output._replace(features=selected)

    case.student, case.teacher = half(case.student), half(case.teacher)
    assert case.value().dtype == torch.float32


@IN_ANY_ORDER
def test_the_order_of_the_images_does_not_matter(key, options):
    case = make_case(key, **options)
    before, order = case.value().item(), torch.tensor([2, 0, 3, 1])

    def turned(output):
        features, logits, last_map, strong = output
        rest = (x if x is None else x[order] for x in (logits, last_map))
        second = None if strong is None else turned(strong)
        return Output([x if x is None else x[order] for x in features], *rest, second)

    case.student, case.teacher = turned(case.student), turned(case.teacher)
    case.batch = Batch(case.batch.labels[order], case.batch.indices[order], case.batch.epoch)
    assert case.value().item() == pytest.approx(before, rel=1e-9)


@VANISHING
def test_a_loss_without_layers_of_its_own_vanishes_for_equal_networks(key, options):
    pair = make_pair(SHAPES_S, SHAPES_S)
    case = make_case(key, replace(pair, classifier_s=pair.classifier_t), **options)
    case.student = case.teacher
    assert abs(case.value().item()) < 1e-12


@pytest.mark.parametrize(
    "key, changes, options, message",
    [
        *((key, {"shapes_t": LONGER}, {}, "found 3 for the student and 4 for the teacher") for key in SAME_STAGES),
        *((key, NO_STAGE, {}, "reads features 1:-1, but the student has 2") for key in READ_STAGES),
        ("at", {"shapes_t": NO_STAGE["shapes_t"]}, {}, "reads features 1:-1, but the teacher has 2 from"),
        ("fsp", NO_STAGE, {}, "relates features between the stem and the pooled vector, of which the student has none"),
        ("kdsvd", {"shapes_s": ONE_STAGE, "shapes_t": ONE_STAGE}, {}, "relates consecutive stages, found 1"),
        ("ab", {"shapes_t": shapes((3, 4, 5, 6), (8, 8, 4, 3))}, {}, "no regressor from 4 x 4 to 3 x 3 pixels"),
        ("at", {}, {"p": 0.5}, "p: found 0.5, expected at least 1"),
        ("catkd", {}, {"form": "whole"}, "form: found 'whole', expected normalised or raw"),
        ("catkd", {}, {"resolution": 0}, "resolution: found 0, expected more than 0"),
        ("cc", {}, {"form": "bilinear"}, "form: found 'bilinear', expected difference or kernel"),
        ("cc", {}, {"order": 0}, "order: found 7, 0, expected at least 1"),
        ("cc", {}, {"feat_dim": 0}, "feat_dim, order: found 0, 2, expected at least 1"),
        ("crd", {}, {"feat_dim": 0}, "feat_dim: found 0, expected more than 0"),
        ("crd", {}, {"nce_t": 0.0}, "nce_t: found 0.0, expected more than 0"),
        ("fitnet", {}, {"hint": -1}, "hint: found -1, expected 0 to 3"),
        ("fitnet", {}, {"hint": 4}, "hint: found 4, expected 0 to 3"),
        ("fitnet", {"shapes_t": SHAPES_T[2:]}, {"hint": 2}, "hint: found 2, expected 0 to 1"),
        ("fitnet", {"shapes_t": shapes((3,), (6,))}, {"hint": 0}, "from 8 x 8 to 6 x 6 pixels"),
        ("fsp", {}, {"pool": "min"}, "pool: found 'min', expected avg or max"),
        ("fsp", {"shapes_t": SHAPES_T}, {}, r"equal widths, found \[3, 4, 5, 6\] for the student and \[3, 4, 7, 5\]"),
        ("ft", {}, {"form": "square"}, "form: found 'square', expected map or factor"),
        ("ft", {}, {"rate": 0.0}, "rate: found 0.0, expected more than 0"),
        ("ofd", {"norms_t": ()}, {}, "needs a teacher whose pre-activations come from a batch norm"),
        ("ofd", {"norms_t": [nn.BatchNorm2d(4), None, nn.BatchNorm2d(5)]}, {}, "come from a batch norm"),
        ("semckd", {}, {"reduction": 0}, "reduction: found 0, expected more than 0"),
        ("vid", {}, {"variance": 0.0}, "variance: found 0.0, expected more than 1e-05"),
    ],
)
def test_refusals(key, changes, options, message):
    pair = make_pair(**PAIRS.get(key, {}) | changes)
    with pytest.raises(ValueError, match=message):
        make_case(key, pair, **options)


def cut(output, span):
    """The Output of some of a batch's images."""
    features = [None if feature is None else feature[span] for feature in output.features]
    last_map = None if output.last_map is None else output.last_map[span]
    strong = None if output.strong is None else cut(output.strong, span)
    return Output(features, output.logits[span], last_map, strong)


@EVERY_LOSS
def test_a_loss_that_relates_no_images_is_the_mean_over_the_halves_of_a_batch(key):
    """So it does not matter to it how many processes share a batch; MGD draws masks, and NORM needs its student."""
    if key in ("mgd", "norm"):
        pytest.skip("its value is not a function of student and teacher alone")
    case = make_case(key, **STILL.get(key, {}))
    case.loss.eval()
    term = case.loss.first_stage if case.method.first_only else case.loss
    halves = []
    for span in (slice(0, 2), slice(2, 4)):
        batch = case.batch._replace(labels=case.batch.labels[span], indices=case.batch.indices[span])
        halves.append(term(cut(case.student, span), cut(case.teacher, span), batch).item())
    is_the_mean = sum(halves) / 2 == pytest.approx(case.value().item(), rel=1e-9)
    assert is_the_mean is not case.method.relates
