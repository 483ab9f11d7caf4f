import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from robench.attacks.apgd import APGD
from robench.core.errors import UsageError
from robench.core.specs import Spec, build, canonical, parse, renamed, split

names = st.from_regex(r"[A-Za-z][A-Za-z0-9_.-]{0,10}", fullmatch=True)
keys = st.from_regex(r"[a-z][a-z_]{0,8}", fullmatch=True).filter(lambda key: key.isidentifier())
values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.tuples(inner, inner),
    max_leaves=5,
)


@given(names, st.dictionaries(keys, values, max_size=4))
@example("A", {"a": "\x00\r\n\t\x1b\x7f"})
def test_a_spec_round_trips_through_its_text(name, arguments):
    import keyword

    arguments = {key: value for key, value in arguments.items() if not keyword.iskeyword(key)}
    spec = Spec(name, arguments)
    assert parse(str(spec)) == spec
    assert str(parse(str(spec))) == str(spec)


@given(st.text(max_size=40))
def test_any_text_is_parsed_or_refused_in_one_line(text):
    try:
        parse(text)
    except UsageError as error:
        assert (
            "expected" in str(error)
            or "must be" in str(error)
            or "must be named" in str(error)
            or "twice" in str(error)
        )


@pytest.mark.parametrize(
    "text",
    ["", "(", "apgd(", "apgd(100)", "apgd(steps=__import__('os'))", "apgd(steps=1)(2)", "apgd(**{})", "apgd(steps=f())",
     "apgd(steps=1, steps=2)", "1apgd", "apgd)(", "apgd(steps=1", "apgd + 1"],
)  # fmt: skip
def test_malformed_specs_are_refused(text):
    with pytest.raises(UsageError):
        parse(text)


@pytest.mark.parametrize(
    "value", ["1e999", "-1e999", "{1: [1e999]}", str(2**63), str(-(2**63) - 1), "9" * 5000, "-" * 9000 + "1"]
)
def test_unusable_numbers_are_refused(value):
    with pytest.raises(UsageError, match=r"expected at most|finite|malformed") as refused:
        parse(f"apgd(steps={value})")
    assert len(str(refused.value)) < 400


def test_long_texts_are_refused_in_a_short_line():
    for text in ("a" * 20_000, "a(" + "[" * 9_000, "a(b='" + "c" * 20_000 + "')"):
        with pytest.raises(UsageError) as refused:
            parse(text)
        assert len(str(refused.value)) < 400


def test_the_canonical_form_sorts_and_omits_defaults():
    spec = parse('apgd( targets = 9,steps=100, loss="dlr")')
    assert str(canonical(spec, APGD)) == 'apgd(loss="dlr", targets=9)'
    assert build(spec, APGD) == APGD(loss="dlr", targets=9)


@pytest.mark.parametrize(
    "text", ["apgd(step=1)", "apgd(steps=0)", 'apgd(loss="mse")', "apgd(steps='many')", "apgd(steps=True)"]
)
def test_unknown_arguments_are_refused(text):
    with pytest.raises(UsageError):
        build(parse(text), APGD)


def test_splits_outside_brackets_and_quotes_only():
    assert split('apgd(loss="a,b", x=[1,2]), square') == ['apgd(loss="a,b", x=[1,2])', "square"]
    assert split("pgd(steps=2)+fab", "+") == ["pgd(steps=2)", "fab"]
    with pytest.raises(UsageError):
        split("a,,b")


def sized(size_mode="exact"):
    return size_mode


def test_an_argument_is_taken_under_its_old_name():
    assert canonical(parse('a(fit="tile")'), sized) == parse('a(size_mode="tile")')
    assert canonical(parse('a(fit="exact")'), sized) == parse("a")
    assert build(parse('a(fit="tile")'), sized) == "tile"
    with pytest.raises(UsageError, match="size_mode is given twice"):
        build(parse('a(fit="tile", size_mode="tile")'), sized)
    # A package may have an argument that is called as the old one was.
    assert (
        renamed(parse("a(fit=1)"), {"fit", "size_mode"})
        == parse("a(fit=1)")
        == renamed(parse("a(fit=1)"), {})
    )


def annotated(
    flag: bool = False, count: int = 3, share: float = 0.5, name: str = "a", other: int | None = None
):
    return flag, count, share, name, other


@pytest.mark.parametrize(
    "text", ["flag='no'", "flag=2", "flag=1.0", "count='3'", "count=1.5", "count=True", "share='x'", "name=3"]
)
def test_a_value_of_another_kind_than_annotated_is_refused(text):
    with pytest.raises(UsageError, match=f"{text.partition('=')[0]}=.*: expected "):
        build(parse(f"annotated({text})"), annotated)


def test_values_that_mean_the_same_are_accepted():
    spec = parse("annotated(flag=1, count=4.0, share=1, other='any')")
    assert build(spec, annotated) == (True, 4, 1, "a", "any")


@pytest.mark.parametrize(
    "raised", [ZeroDivisionError("by zero"), RuntimeError("negative size"), AssertionError("no")]
)
def test_a_builder_that_fails_is_one_line(raised):
    def fails(size=1):
        raise raised

    with pytest.raises(UsageError, match=f"fails cannot be built: {raised}"):
        build(parse("fails"), fails)
