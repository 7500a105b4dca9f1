"""What is known of runs: asked of the controller, or read from the database while there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from cli import context
from cli import output as out
from cli.errors import NOT_FOUND, Fail, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.config import Config
    from orchestrator.history.store import Store

Run = dict[str, Any]


def one(ref: str) -> Run:
    """A run whole, by id or name. Raises Fail(3)."""
    settings = context.config()
    try:
        return context.get_run(context.controller(settings), ref)
    except Unreachable as down:
        return _offline(settings, down, lambda store: _found(store, ref))


def many(query: dict[str, Any]) -> list[Run]:
    """Runs as `orch runs` lists them; `query` in the API's words."""
    settings = context.config()
    try:
        runs: list[Run] = context.controller(settings).call("GET", "runs", query=query)
        return runs
    except Unreachable as down:
        return _offline(settings, down, lambda store: _listed(store, query))


def _offline[T](settings: Config, down: Unreachable, read: Callable[[Store], T]) -> T:
    """Reads the database itself, and says so. Raises `down` where there is no database either."""
    from orchestrator.history.errors import StoreError
    from orchestrator.history.store import Store

    try:
        store = Store.open(settings.database, readonly=True)
        try:
            answer = read(store)
        finally:
            store.close()
    except StoreError as error:
        raise Fail(f"{down.message}; and its history: {error}", error.exit_code) from None
    out.say(f"{down.message}. This is what its database says")
    return answer
