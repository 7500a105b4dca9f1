"""What NCCL's log showed of an attempt, and events that move nothing (`noted`).

The words that an event may be are taken from the table as it is, so that this fits whatever other revisions have added.
"""

import re

import sqlalchemy as sa
from alembic import op

revision = "0003"
down_revision = "0002"


def upgrade() -> None:
    op.add_column("attempts", sa.Column("transport", sa.JSON(), nullable=True))
    if op.get_bind().dialect.name == "sqlite":
        _sqlite()
    else:
        _postgresql()


def _with_noted(check: str) -> str:
    words = [*re.findall(r"'(\w+)'", check), "noted"]
    return f"event IN ({', '.join(repr(word) for word in words)})"


def _postgresql() -> None:
    found = sa.text(
        "SELECT pg_get_constraintdef(oid) FROM pg_constraint WHERE conname = 'events_event'"
        " AND conrelid = 'events'::regclass"
    )
    check = op.get_bind().execute(found).scalar_one()
    op.drop_constraint("events_event", "events", type_="check")
    op.create_check_constraint("events_event", "events", _with_noted(check))


def _sqlite() -> None:
    """SQLite cannot change a CHECK: the table is made anew from its own text, with its rows, indexes and triggers."""
    connection = op.get_bind()
    things = connection.execute(
        sa.text("SELECT type, sql FROM sqlite_master WHERE tbl_name = 'events' AND sql IS NOT NULL")
    ).all()
    table = next(one.sql for one in things if one.type == "table")
    check = re.search(r"event IN \([^)]*\)", table)
    assert check is not None
    made = table.replace(check[0], _with_noted(check[0]))
    made = re.sub(r'^CREATE TABLE "?events"?', "CREATE TABLE events_new", made)
    op.execute(made)
    op.execute("INSERT INTO events_new SELECT * FROM events")
    op.execute("DROP TABLE events")
    op.execute("ALTER TABLE events_new RENAME TO events")
    for one in things:
        if one.type != "table":
            op.execute(one.sql)
