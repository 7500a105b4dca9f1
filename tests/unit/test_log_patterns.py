"""A job's `throughput:` patterns: what is refused, and what they find."""

import time

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.control.log_patterns import LONGEST_LINE, LogPatterns
from orchestrator.spec import JobSpec
from orchestrator.spec_problems import problems


def refusal(**throughput):
    from pydantic import ValidationError

    with pytest.raises(ValidationError) as refused:
        JobSpec(run="t.py", throughput=throughput)
    (problem,) = problems(refused.value)
    return str(problem)


@pytest.mark.parametrize(
    ("pattern", "reason"),
    [
        ("loss: [0-9]+", "must have one group"),
        ("(a)(b)", "must have one group"),
        ("loss: ([0-9]+", "missing )"),
        (r"(?=loss) ([0-9]+)", "no regular expression of RE2"),
        (r"(.)\1", "no regular expression of RE2"),
        ("(" + "x" * 600 + ")", "a pattern may have 512"),
    ],
)
def test_a_pattern_that_could_find_nothing_or_take_for_ever_is_refused(pattern, reason):
    assert reason in refusal(loss=pattern)


def test_names_fit_the_place_where_they_are_kept():
    assert "must be 1 to 24 of letters" in refusal(**{"tokens/s": "([0-9]+)"})
    assert "at most 16" in refusal(**{f"x{i}": "([0-9]+)" for i in range(17)})


def test_the_newest_number_of_each_name_counts():
    found = LogPatterns({"samples": r"samples/s: ([0-9.,]+)", "loss": r"loss=(\S+)"})
    found.feed(b"step 1 loss=2.5 samples/s: 1,200.5\nstep 2 loss=nan samples/s: n/a\nstep 3 loss=0.5")
    assert found.values == {"samples": 1200.5, "loss": 2.5}
    assert found.at > 0
    found.feed(b"\rloss=1e-3\r")
    assert found.values["loss"] == 1e-3


@given(st.lists(st.integers(1, 30)), st.sampled_from(["\n", "\r", "\r\n"]))
def test_it_does_not_matter_where_a_chunk_ends(cuts, end):
    text = "".join(f"it {i}: loss={i}.5{end}" for i in range(20)).encode()
    found, at = LogPatterns({"loss": "loss=([0-9.]+)"}), 0
    for cut in cuts:
        found.feed(text[at : at + cut])
        at += cut
    found.feed(text[at:])
    assert found.values == {"loss": 19.5}


def test_a_pattern_that_would_backtrack_for_ever_takes_no_time():
    found = LogPatterns({"x": "((?:a|a)*b)", "y": r"(?:(?:\d+)+)+x([0-9]+)"})
    began = time.process_time()
    found.feed(b"a" * 10 * LONGEST_LINE + b"\n" + b"1" * LONGEST_LINE + b"\n")
    assert time.process_time() - began < 1
    assert found.values == {}


def test_a_line_without_an_end_is_not_held_whole():
    found = LogPatterns({"x": "x=([0-9]+)"})
    for _ in range(100):
        found.feed(b"y" * LONGEST_LINE)
    assert len(found._rest) <= LONGEST_LINE
