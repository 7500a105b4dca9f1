"""Times go to SQLite in one step and come back: as the very text that SQLAlchemy's own steps make, which databases hold already."""

from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st
from sqlalchemy.dialects import sqlite

from orchestrator.history.columns import UtcDateTime

DIALECT = sqlite.dialect()
ZONES = st.builds(timezone, st.timedeltas(timedelta(hours=-23), timedelta(hours=23)))
TIMES = st.datetimes(datetime(2, 1, 1), datetime(9998, 12, 31), timezones=ZONES | st.just(UTC))


@given(TIMES)
def test_a_time_is_the_text_that_sqlalchemy_makes_of_it_and_reads_back_as_the_same_time(at: datetime) -> None:
    column = UtcDateTime()
    write, read = column.bind_processor(DIALECT), column.result_processor(DIALECT, None)
    of_sqlalchemy = sqlite.DATETIME().bind_processor(DIALECT)
    assert write is not None
    assert read is not None
    assert of_sqlalchemy is not None
    text = write(at)
    assert text == of_sqlalchemy(at.astimezone(UTC).replace(tzinfo=None))
    assert read(text) == at
    assert read(text).tzinfo is UTC


def test_no_time_stays_none_and_one_without_a_zone_is_refused() -> None:
    write, read = UtcDateTime().bind_processor(DIALECT), UtcDateTime().result_processor(DIALECT, None)
    assert write is not None
    assert read is not None
    assert write(None) is None
    assert read(None) is None
    with pytest.raises(ValueError, match="without a zone"):
        write(datetime(2026, 1, 1))
