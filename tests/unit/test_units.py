"""Durations, sizes and bandwidths are written with their unit and read back as they were shown."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.units import format_bandwidth, format_duration, format_size, parse_duration, parse_size


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("30m", 1800), ("12h", 43200), ("2d", 172800), ("0.5h", 1800)]
)
def test_durations_have_a_unit(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["30", "1h30m", "30 s", "30S", "-1s", "1e3s", "s", "", "٣s", "30s\n"])
def test_what_is_no_duration_is_refused_with_the_units(text: str) -> None:
    with pytest.raises(ValueError, match=r"unit.*'30m'|\(s, m, h or d\)"):
        parse_duration(text)


@pytest.mark.parametrize("text", ["64", "64M", "64 MiB", "1.5MiB", "mib", "", "64mib"])
def test_what_is_no_size_is_refused_with_the_units(text: str) -> None:
    with pytest.raises(ValueError, match="MiB"):
        parse_size(text)


@given(st.integers(0, 10**7))
def test_a_duration_and_a_size_read_back_as_they_are_shown(number: int) -> None:
    assert parse_duration(format_duration(number)) == number
    assert parse_size(format_size(number)) == number


@pytest.mark.parametrize(("gbps", "text"), [(231.04, "231 GB/s"), (9.96, "10 GB/s"), (0.487, "0.49 GB/s")])
def test_a_small_bandwidth_is_not_rounded_to_nothing(gbps: float, text: str) -> None:
    assert format_bandwidth(gbps) == text
