"""The registry of distiller_zoo/__init__.py: every entry is complete, and every usual name finds its method."""

import pytest
from torch import nn

from distiller_zoo import Method, distiller_dict, resolve_method
from models import model_dict

EVERY_METHOD = pytest.mark.parametrize("key, method", distiller_dict.items(), ids=list(distiller_dict))

# The baselines as the published tables name them; logit standardisation is an option of those on logits.
BASELINES = """KD FitNet AT SP CC VID RKD PKT AB FT FSP NST CRD OFD ReviewKD DKD DIST KD-SVD CAT-KD SRRL SemCKD SimKD
CRCD MGD CTKD MLKD NORM"""


def test_every_baseline_is_there_once():
    assert sorted(method.name for method in distiller_dict.values()) == sorted(BASELINES.split())


@EVERY_METHOD
def test_an_entry_says_where_it_comes_from(key, method):
    assert method.name and method.citation
    assert method.citation[-4:].isdigit()  # the year
    assert method.source.startswith(("published: ", "assumed: "))
    assert bool(method.elsewhere) == bool(method.by_pair)
    assert not method.by_pair or method.elsewhere.startswith(("published: ", "assumed: "))


@EVERY_METHOD
def test_pairs_are_of_known_networks_and_their_settings_are_options(key, method):
    for pair in [*method.by_pair, *(method.pairs or ())]:
        assert len(pair) == 2 and set(pair) <= model_dict.keys(), pair
    for pair, settings in method.by_pair.items():
        assert settings and settings.keys() <= {"beta", "source", *method.options}, pair
        assert settings.get("source", "assumed: ").startswith(("published: ", "assumed: "))
        for name, value in settings.items():
            if name == "source":
                continue
            default = method.beta if name == "beta" else method.options[name]
            assert type(value) is type(default), (pair, name)


@EVERY_METHOD
def test_options_have_a_default_of_a_plain_type(key, method):
    """The type by which a text from the command line is read."""
    for name, default in method.options.items():
        assert type(default) in (bool, int, float, str), name


@EVERY_METHOD
def test_a_schedule_is_of_shares_that_rise_to_1(key, method):
    assert method.schedule.keys() <= {"kd", "other"}
    for steps in method.schedule.values():
        shares = [until for until, _ in steps]
        assert shares == sorted(set(shares)) and shares[0] > 0 and shares[-1] == 1.0
        assert max(factor for _, factor in steps) == 1.0


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
