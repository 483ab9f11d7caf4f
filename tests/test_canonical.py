"""Equivalent names have one canonical form; unknown names are kept."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from robench.attacks.build import build_attacks
from robench.canonical import dataset_name, defense_name, knowledge_name
from robench.catalog import find_suite
from robench.core.errors import UsageError
from robench.core.trust import Untrusted, Written
from robench.records.record import suite_name
from robench.threats.threat import Threat, radius_text, same_threat

SUITES = [
    ("pgd-mi", ["pgd-mi(steps=100)", " pgd-mi ", "pgd-mi()", "pgd-mi(weight=1e-5)"]),
    ("pgd(eot=5)", ["pgd(steps=20, eot=5)", "pgd(eot=5,steps=20)", "pgd( eot = 5 )"]),
    ('apgd(loss="dlr")', ["apgd(loss='dlr')", "apgd(steps=100, loss='dlr', eot=1)"]),
    ("apgd(steps=50)+square", ["apgd(steps=50) + square", "apgd( steps=50 )+square(queries=5000)"]),
    ("autoattack", [" autoattack", "autoattack "]),
    (
        'corruption(name="fog", severities=[1, 3])',
        ["corruption(severities=[3, 1], name='fog')", "corruption(name='fog',severities=(1,3,3),jpeg=False)"],
    ),
]


@pytest.mark.parametrize(("name", "written"), SUITES)
def test_a_suite_has_one_name(name, written):
    suites = [find_suite(text) for text in (name, *written)]
    assert {suite.name for suite in suites} == {name}
    assert len({tuple(suite.attacks) for suite in suites}) == 1


@pytest.mark.parametrize("text", ["pgd(stepz=3)", "pgd+nothing", "pgd(20)"])
def test_a_wrong_argument_is_refused(text):
    with pytest.raises(UsageError):
        find_suite(text)


@pytest.mark.parametrize("text", ["pgd(steps=True)", "pgd(steps=0)", 'pgd(loss="no")'])
def test_a_wrong_value_is_refused_when_the_attacks_are_built(text):
    with pytest.raises(UsageError, match=r"steps=|loss"):
        build_attacks(find_suite(text).attacks, Threat.parse("Linf:0.1"))


@pytest.mark.parametrize(("name", "written"), SUITES)
def test_the_suite_of_a_record_is_read_under_that_name(name, written):
    attacks = tuple(map(str, find_suite(name).attacks))
    own = name == "autoattack"
    for text in written:
        assert suite_name(text, attacks) == (text if own else name)


@pytest.mark.parametrize("text", ["pgd(steps=10)", "apgd", "pgd+pgd", "mine", "", "+", "pgd(", "x" * 10**6])
def test_a_name_that_differs_from_the_attacks_is_kept(text):
    assert suite_name(text, ("pgd",)) == text


def test_unknown_attacks_are_sorted_and_not_looked_up():
    assert suite_name("theirs(b=1, a='x')", ('theirs(a="x", b=1)',)) == 'theirs(a="x", b=1)'


DEFENSES = [
    ("de3-digits", "digits", ["de3-digits(sigma=70)", "de3", "de3(sigma=70.0)", " de3-digits "]),
    (
        "de3-digits(sigma=0)",
        "digits",
        ["de3-digits(sigma=0.0)", "de3( sigma = 0 )", "de3-digits(sigma=0, width=64)"],
    ),
    ("mimir-digits", "digits", ["mimir"]),
    ("mimir-cifar10", "cifar10", ["mimir"]),
    ("maep-digits+standard-digits", "digits", ["maep+standard", "maep-digits + standard"]),
    ("maep-digits+de3-digits(sigma=0)", "digits", ["maep+de3(sigma=0.)"]),
    (
        'maep-digits(size_mode="tile")+standard-cifar10',
        "cifar10",
        ['maep-digits(fit="tile")+standard', "maep-digits(fit='tile', width=64)+standard-cifar10"],
    ),
    ("diffpure-imagenet", "imagenet", ['diffpure-imagenet(fit="resize")']),
    ("timm:resnet50(mean=[0.5])", "imagenet", ["timm:resnet50( mean=[.5] )"]),
    ("maep-digits+timm:resnet50(a=1, b=2)", "digits", ["maep-digits+timm:resnet50(b=2, a=1)"]),
]


@pytest.mark.parametrize(("name", "dataset", "written"), DEFENSES)
def test_a_defense_has_one_name(name, dataset, written):
    assert {defense_name(text, dataset) for text in (name, *written)} == {name}


@pytest.mark.parametrize(
    "text", ["nothing", "own/card.toml", "python:os.system(x=1)", "a(b", "mimir-digits(", "+"]
)
def test_unknown_names_are_kept(text):
    assert defense_name(text, "digits") == text


def test_an_ambiguous_family_is_kept():
    assert defense_name("mimir", "imagenet") == "mimir"


@pytest.mark.parametrize(
    ("name", "dataset", "written"),
    [
        (
            "transfer:standard",
            "digits",
            ["transfer:standard-digits", "transfer: standard", " transfer:standard"],
        ),
        ("transfer:standard-digits", "cifar10", []),
        ("surrogate:de3-digits(sigma=0)", "digits", ["surrogate:de3( sigma=0.0 )"]),
        ("full", "digits", [" full"]),
        ("oblivious", "digits", ["oblivious "]),
    ],
)
def test_knowledge_has_one_name(name, dataset, written):
    assert {knowledge_name(text, dataset) for text in (name, *written)} == {name}


@pytest.mark.parametrize(
    ("name", "written"),
    [
        ("digits", ["digits(size=16)", " digits "]),
        ("digits(size=32)", ["digits( size = 32 )", "digits(size=32.0)"]),
        ('imagenet(preprocessing="Res256Crop224")', ["imagenet", "imagenet(preprocessing='Res256Crop224')"]),
        ('cifar10-c(corruption="fog", severity=3)', ["cifar10-c(severity=3,corruption='fog')"]),
        ("npz:my images/a.npz", [" npz:my images/a.npz"]),
        ("nothing(b=1)", ["nothing( b=1 )"]),
    ],
)
def test_a_data_set_has_one_name(name, written):
    assert {dataset_name(text) for text in (name, *written)} == {name}


@pytest.mark.parametrize(
    ("name", "written"),
    [
        (
            "Linf:8/255",
            ["linf:8/255", "Linf: 8 / 255", "Linf:8.0/255", "Linf:16/510", "Linf:0.03137254901960784"],
        ),
        ("Linf:0.1", ["Linf:0.10", "Linf:1/10", "Linf:1e-1", "Linf:.1"]),
        ("L2:160/255", ["L2:32/51"]),
        ("L1:300", ["L1:76500/255", "L1:300.0", "L1:3e2"]),
        ("L0:24", ["L0:24.0", "L0:48/2"]),
        ("snow(grid=4):2", ["snow( grid=4 ):2.0"]),
    ],
)
def test_a_threat_has_one_name(name, written):
    assert {str(Threat.parse(text)) for text in (name, *written)} == {name}
    assert all(same_threat(name, text) for text in written)


def test_different_radii_have_different_names():
    assert str(Threat.parse("Linf:0.03137")) == "Linf:0.03137"
    assert not same_threat("Linf:0.03137", "Linf:8/255") and not same_threat("L2:0.5", "Linf:0.5")


@given(
    st.floats(min_value=5e-324, max_value=1e308, allow_nan=False)
    | st.integers(1, 10**6).map(lambda n: n / 255)
)
def test_the_text_of_a_radius_is_exact(eps):
    above, _, below = radius_text(eps).partition("/")
    assert float(above) / float(below or 1) == eps
    assert str(Threat.parse(f"L2:{radius_text(eps)}")) == f"L2:{radius_text(eps)}"
    assert Threat.parse(f"L2:{radius_text(eps)}").eps == eps


@given(st.text(max_size=40))
def test_canonical_names_are_idempotent(text):
    for name in (dataset_name, defense_name, knowledge_name):
        assert name(name(text)) == name(text)


@pytest.mark.parametrize(
    "text", ["de3(sigma=70)", " mimir ", "python:os.f(a='x')", "maep+standard", "own.toml", "("]
)
def test_a_name_read_from_a_file_stays_written(text):
    assert isinstance(defense_name(Written(text, "a.toml")), Written)
    assert isinstance(knowledge_name(Written(f"transfer:{text}", "a.toml")), Written)
    assert isinstance(dataset_name(Written(text, "a.toml")), Written)


def test_a_suite_read_from_a_file_stays_written():
    suite = find_suite(Written("pgd(steps=20)+square", "a.toml"))
    assert all(isinstance(each, Written) for each in (suite.name, *map(str, suite.attacks)))
    with pytest.raises(Untrusted):
        find_suite(Written(" other.toml", "a.toml"))
    assert isinstance(suite_name(Written("pgd(steps=20)", "r"), (Written("pgd", "r"),)), Written)
