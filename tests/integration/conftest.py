"""A store that a test may write to, on SQLite and on PostgreSQL, and the clock of what it writes."""

import pytest

from orchestrator.testing import ManualClock


@pytest.fixture
def clock():
    return ManualClock()


@pytest.fixture
def store(url, open_store, clock):
    opened = open_store(url)
    opened.claim_epoch("test", clock())
    return opened
