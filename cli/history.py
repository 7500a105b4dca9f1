"""What is known of runs: asked of the controller, or read from the database while there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli import context
from cli import output as out
from cli.errors import NOT_FOUND, UNREACHABLE, Fail, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.config import Config
    from orchestrator.history.store import Store

Run = dict[str, Any]
T = TypeVar("T")


def one(ref: str) -> Run:
    """A run whole, by id or name. Raises Fail(3)."""
    settings = context.config()
    try:
        return context.get_run(context.controller(settings), ref)
    except Unreachable as down:
        return read(settings, down, lambda store: found(store, ref))


def many(query: dict[str, Any]) -> list[Run]:
    """Runs as `orch runs` lists them; `query` in the API's words."""
    settings = context.config()
    try:
        runs: list[Run] = context.controller(settings).call("GET", "runs", query=query)
        return runs
    except Unreachable as down:
        return read(settings, down, lambda store: _listed(store, query))


def read(settings: Config, down: Unreachable, question: Callable[[Store], T]) -> T:
    """Reads the database itself, and says so. Raises `down` where there is no database either."""
    from orchestrator.history.errors import StoreError
    from orchestrator.history.store import Store

    try:
        store = Store.open(settings.database, readonly=True)
        try:
            answer = question(store)
        finally:
            store.close()
    except StoreError as error:
        if error.exit_code == UNREACHABLE:
            raise down from None
        raise Fail(f"{down.message}; and its history: {error}", error.exit_code) from None
    meta = click.get_current_context().meta
    if not meta.get("cli.offline"):
        meta["cli.offline"] = True  # said once, however much is read
        out.say(f"{down.message}. This is what its database says")
    return answer


def found(store: Store, ref: str) -> Run:
    """One run from the database. Raises Fail(3)."""
    from orchestrator.history.render import scaling_json, show_json

    run = store.get(ref)
    if run is None:
        raise Fail(f"no such run: {ref!r}", NOT_FOUND)
    return show_json(run) | {"scaling": scaling_json(store.scaling(run.name))}


def _listed(store: Store, query: dict[str, Any]) -> list[Run]:
    from datetime import datetime

    from orchestrator.array import parse_ref
    from orchestrator.history.queries import RunFilter
    from orchestrator.history.render import list_json
    from orchestrator.scheduling.lifecycle import State

    given = {key: value for key, value in query.items() if value is not None}
    ids = None
    if given.get("best") is not None:
        raise Fail(
            "the best runs are known to the controller alone, which does not answer: `orch up` starts it", UNREACHABLE
        )
    if (array := given.get("array")) is not None:
        ref = parse_ref(array)
        if ref is None or (ids := store.ids_of(ref)) is None:
            raise Fail(f"no such array: {array!r}", NOT_FOUND)
    wanted = RunFilter(
        ids=ids,
        name=given.get("name"),
        user=given.get("user"),
        team=given.get("team"),
        state=State(given["state"]) if "state" in given else None,
        since=datetime.fromisoformat(given["since"]) if "since" in given else None,
        tags=dict(tag.partition("=")[::2] for tag in given.get("tag", ())),
        sort=given.get("sort", "-submitted"),
        limit=given.get("limit"),
        live_only=bool(given.get("live")),
    )
    return [list_json(run) for run in store.runs(wanted)]
