"""Text of others, as it may be shown."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.terminal import clean

SEQUENCES = [
    "\x1b[2J",
    "\x1b[31m",
    "\x1b]0;title\x07",
    "\x1b]8;;http://x\x1b\\",
    "\x1bP1$r\x1b\\",
    "\x1bc",
    "\x1b(0",
    "\x9b2J",
]
SEQUENCES += ["\x9d0;title\x9c", "\x90q\x9c", "\x1b[?1049h", "\x1b]52;c;aGk=\x07", "\x1b_x\x1b\\", "\x1b[6n"]


@pytest.mark.parametrize("sequence", SEQUENCES, ids=ascii)
def test_a_sequence_goes_whole_and_what_is_around_it_stays(sequence: str) -> None:
    assert clean(f"step 1{sequence} of 2") == "step 1 of 2"


@pytest.mark.parametrize(
    "mark", ["\r", "\n", "\x08", "\x00", "\x7f", "\x85", "\u202e", "\u2066", "\u200f", "\u2028", "\u061c"], ids=ascii
)
def test_what_moves_the_cursor_or_turns_the_text_becomes_a_space(mark: str) -> None:
    assert clean(f"a{mark}b") == "a b"


@given(
    st.lists(st.sampled_from(SEQUENCES) | st.text(max_size=5) | st.characters(categories=["Cc", "Cf", "Cs"])).map(
        "".join
    )
)
def test_nothing_that_a_terminal_obeys_is_left_of_anything(text: str) -> None:
    left = [c for c in clean(text) if unicodedata.category(c) in ("Cc", "Cs") or unicodedata.bidirectional(c) in _TURNS]
    assert set(left) <= {"\t"}


_TURNS = {"LRE", "RLE", "LRO", "RLO", "PDF", "LRI", "RLI", "FSI", "PDI"}


@given(st.text(st.characters(categories=["L", "N", "P", "S", "Zs"])))
def test_what_only_shows_stays_as_it_is(text: str) -> None:
    assert clean(text) == text
