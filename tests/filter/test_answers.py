r"""Reading final answers: `\boxed{}`, regular expressions, and when two answers are the same."""

import time
from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vllm_optimal_sampling.data.filter import answers
from vllm_optimal_sampling.data.filter.answers import AnswerPattern, PatternError, as_number, boxed, contains, same

BALANCED = st.recursive(
    st.text(alphabet="ab1 +-,", max_size=6),
    lambda inner: st.tuples(inner, inner).map(lambda pair: f"{pair[0]}{{{pair[1]}}}"),
    max_leaves=8,
)


@given(BALANCED, st.text(alphabet="xyz {}", max_size=10))
def test_a_box_gives_what_is_in_it(content: str, before: str) -> None:
    assert boxed(f"{before}\\boxed{{{content}}} and so") == content.strip()


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"first \boxed{1}, then \boxed{2}", "2"),
        (r"\boxed{1} and \boxed{unfinished", "1"),
        (r"\boxed{a \} b}", r"a \} b"),
        (r"\boxed{\boxed{5}}", "5"),
        (r"\fbox{7}", "7"),
        (r"\boxedin{7}", None),
        (r"\boxed {8}", "8"),
        (r"\\boxed{8}", None),
        (r"\boxed{}", ""),
        ("no box", None),
        (r"} \boxed{3} }", "3"),
    ],
)
def test_boxes(text: str, answer: str | None) -> None:
    assert boxed(text) == answer


def test_many_open_boxes_take_one_pass() -> None:
    start = time.perf_counter()
    assert boxed("\\boxed{" * 100_000) is None
    assert time.perf_counter() - start < 5  # a search from each of them would take minutes


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1,000", "1000.0"),
        ("1,234,567", "1234567"),
        ("0.5", "1/2"),
        (r"\frac{1}{2}", "0.50"),
        ("\u22125", "-5"),
        ("$12", "12"),
        (r"\$12", "12.00"),
        ("7%", "7"),
        (r"7\%", "7"),
        ("1e3", "1000"),
        ("+3", "3"),
        ("$ 42 $.", "42"),
        ("1{,}000", "1000"),
        (".5", "0.5"),
    ],
)
def test_equal_numbers(one: str, other: str) -> None:
    assert same(one, other, numeric=True)
    assert same(other, one, numeric=True)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("1,00", "100"),
        ("1,2", "12"),
        ("0.1", "0.10000000000000001"),  # equal as floats, not as numbers
        ("1/0", "2/0"),
        ("nan", "NaN"),
        ("inf", "1e999"),
        ("1_000", "1000"),
        ("5 apples", "5"),
        ("", "0"),
        ("1e999999999", "1"),
    ],
)
def test_different_answers(one: str, other: str) -> None:
    assert not same(one, other, numeric=True)


@given(st.fractions(max_denominator=10**6))
def test_fractions_are_exact(value: Fraction) -> None:
    assert as_number(f"{value.numerator}/{value.denominator}") == value


@given(st.integers(-(10**12), 10**12))
def test_thousands_may_be_grouped(value: int) -> None:
    assert as_number(f"{value:,}") == value == as_number(f"{value}.00")


@given(st.text(max_size=30), st.text(max_size=30))
def test_any_text_can_be_compared(one: str, other: str) -> None:
    assert same(one, other, True) == same(other, one, True)
    assert same(one, one, False)


def test_text_is_compared_without_spaces_and_the_last_stop() -> None:
    assert same("34,  66, 98.", " 34, 66, 98", numeric=False)
    assert not same("1,000", "1000", numeric=False)
    assert not same("Paris", "paris", numeric=False)


def test_a_pattern_gives_its_last_match() -> None:
    text = "The answer is 4. No: the answer is 42."
    assert AnswerPattern("--answer-regex", r"answer is (\d+)").find(text) == "42"
    assert AnswerPattern("--answer-regex", r"answer is \d+").find(text) == "answer is 42"
    assert AnswerPattern("--answer-regex", r"(The|the) answer is (?P<answer>\d+)").find(text) == "42"
    assert AnswerPattern("--answer-regex", r"#### (\d+)").find(text) is None
    assert AnswerPattern("--answer-regex", r"4(x)?2").find(text) is None  # the group took no part


def test_no_regular_expression_is_said() -> None:
    with pytest.raises(PatternError, match=r"--answer-regex '\(' is not a regular expression"):
        AnswerPattern("--answer-regex", "(")


def test_backtracking_is_stopped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(answers, "PATTERN_SECONDS", 0.05)
    monkeypatch.setattr(answers, "MOST_TIMEOUTS", 3)
    pattern = AnswerPattern("--answer-regex", "(a|aa)+$")
    assert pattern.find("caa") == "a" or pattern.find("caa") == "aa"
    start = time.perf_counter()
    assert pattern.find("a" * 80 + "b") is None  # some 10^16 ways
    assert pattern.find("a" * 80 + "b") is None
    with pytest.raises(PatternError, match="on each of 3 completions"):
        pattern.find("a" * 80 + "b")
    assert time.perf_counter() - start < 30


@pytest.mark.parametrize(
    ("text", "answer", "found"),
    [
        ("The answer is 72.", "72", True),
        ("72", "72", True),
        ("so 72, not 71", "72", True),
        ("$72$ apples", "72", True),
        (r"\\boxed{72}", "72", True),
        ("x=72", "72", True),
        ("is 172", "72", False),
        ("is 72.5", "72", False),
        ("is 1,072", "72", False),
        ("is 72,000", "72", False),
        ("is 3.72", "72", False),
        ("is -72", "72", False),
        ("(-72)", "72", False),
        ("100-72", "72", True),
        ("is -72", "-72", True),
        ("72nd", "72", False),
        ("the  New\nYork way", "New York", True),
        ("the new york way", "New York", False),
        ("state of the art", "art", True),
        ("start", "art", False),
        ("anything", "", False),
        ("a (b) c", "(b)", True),
        ("x+1", "x+1", True),
        ("xx1", "x+1", False),
    ],
)
def test_an_answer_in_a_text(text: str, answer: str, found: bool) -> None:
    assert contains(text, answer) is found


def test_answers_without_regard_to_case() -> None:
    assert contains("the new york way", "New York", ignore_case=True)
    assert same("YES.", "yes", numeric=False, ignore_case=True)
    assert not same("YES.", "yes", numeric=False)
    assert not same("no", "yes", numeric=False, ignore_case=True)
