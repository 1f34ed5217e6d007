"""A component's command becomes words as a shell would cut it, and no value cuts it anew."""

import shlex

import pytest
from hypothesis import given
from hypothesis import strategies as st

from luthier.doors.component_command import Use, fill, words
from luthier.errors import SpecError

A = Use("inputs", "a")


def made(template, **values):
    found = {Use("inputs", name): value for name, value in values.items()}
    return fill(words(template, values), found)


@pytest.mark.parametrize(
    "template",
    ["run --x 'a b' \"c d\" e\\ f", "run '' \"\" x''y", "run \"a\\\"b\" '\\n' \"\\n\"", "a  b\tc ",
     "run --glob '*.py' 'a;b' \"a|b\" 'x $HOME' --y=a#b 'don'\\''t'"],
)  # fmt: skip
def test_quotes_are_those_of_a_shell(template):
    assert made(template) == shlex.split(template)


@pytest.mark.parametrize(
    "value",
    ["two words", "it's", '"quoted"', "$(touch made)", "`touch made`", "; rm -rf x", "a\nb",
     "$[[x]]", "${{inputs.b}}", "*", "", " ", "--flag", "\\", "ü"],
)  # fmt: skip
@pytest.mark.parametrize("quote", ["", "'", '"'])
def test_a_value_is_one_word_whatever_is_in_it(value, quote):
    template = f"run --a {quote}${{{{inputs.a}}}}{quote} end"
    assert made(template, a=value) == ["run", "--a", value, "end"]


@given(st.text(), st.text())
def test_any_values_are_two_words(one, other):
    assert made("x '${{inputs.a}}' ${{ inputs.b }}", a=one, b=other) == ["x", one, other]


def test_an_optional_part_stands_where_its_inputs_do():
    template = "run $[[--a '${{inputs.a}}']] $[[--b ${{inputs.b}} ${{inputs.a}}]] --end"
    assert made(template) == ["run", "--end"]
    assert made(template, a="1") == ["run", "--a", "1", "--end"]
    assert made(template, b="2") == ["run", "--end"]
    assert made(template, a="1", b="2") == ["run", "--a", "1", "--b", "2", "1", "--end"]


def test_values_stand_within_words():
    assert made("run --a=${{inputs.a}}/x'${{inputs.a}} y'", a="p q") == ["run", "--a=p q/xp q y"]


def test_a_command_of_several_lines_is_one_where_the_ends_are_escaped():
    assert made("run \\\n  --a 1 \\\n  --b") == ["run", "--a", "1", "--b"]


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("a && b", "'&' is for a shell"), ("a | b", "'|'"), ("a > b", "'>'"), ("a; b", "';'"),
        ("a $HOME", "'$'"), ('a "$HOME"', "'$'"), ('a "`b`"', "'`'"), ("a `b`", "'`'"),
        ("a *.py", "'*'"), ("a ~/b", "'~'"), ("a # b", "'#'"), ("a {b,c}", "'{'"),
        ("a\nb", "a second line"), ("a 'b", "a quote ' is left open"),
        ('a "b', 'a quote " is left open'), ("a ${{input.b}}", "'$'"),
    ],
)  # fmt: skip
def test_what_only_a_shell_does_is_refused(template, says):
    with pytest.raises(SpecError) as caught:
        words(template, ())
    assert says in str(caught.value)


def test_a_value_that_nobody_gives_is_said():
    with pytest.raises(SpecError, match=r"there is no value of inputs\.a"):
        fill(words("run ${{inputs.a}}", ()), {})
