"""What is known of runs: asked of the controller, or read from the database while there is none."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, TypeVar

import click

from cli import context
from cli import output as out
from cli.errors import NOT_FOUND, UNREACHABLE, USAGE, Fail, Unreachable

if TYPE_CHECKING:
    from collections.abc import Callable

    from orchestrator.config import Config
    from orchestrator.history.store import Store

Run = dict[str, Any]
T = TypeVar("T")


def one(ref: str, like: bool = False) -> Run:
    """A run whole, by id or name; with `like` also beside its like, under `compared`. Raises Fail(3)."""
    settings = context.config()
    try:
        return context.get_run(context.controller(settings), ref, {"like": 1} if like else None)
    except Unreachable as down:
        return read(settings, down, lambda store: found(store, ref, like))


def side_by_side(refs: tuple[str, ...]) -> dict[str, Any]:
    """What `orch compare` prints. Raises Fail(3)."""
    settings = context.config()
    try:
        answer: dict[str, Any] = context.controller(settings).call("GET", "compare", query={"run": list(refs)})
        return answer
    except Unreachable as down:
        answer_or_ref = read(settings, down, lambda store: store.compare(refs))
    if not isinstance(answer_or_ref, dict):
        raise Fail(f"no such run: {answer_or_ref!r}", NOT_FOUND)
    return answer_or_ref


def why(ref: str) -> dict[str, Any]:
    """Why a run waits, or ended as it did; of one that waits only the controller knows. Raises Fail(3)."""
    settings = context.config()
    try:
        api = context.controller(settings)
        with context.naming(api, ref):
            answer: dict[str, Any] = api.call("GET", "runs", ref, "why")
            return answer
    except Unreachable as down:
        return read(settings, down, lambda store: _why(store, ref))


def _why(store: Store, ref: str) -> dict[str, Any]:
    from orchestrator.history.render import why_json

    run = store.get(ref)
    if run is None:
        raise Fail(f"no such run: {ref!r}", NOT_FOUND)
    return why_json(run)


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


def found(store: Store, ref: str, like: bool = False) -> Run:
    """One run from the database. Raises Fail(3)."""
    from orchestrator.array import run_id
    from orchestrator.history.render import scaling_json, show_json

    run = store.get(ref)
    if run is None:
        gone = store.expired(word) if isinstance(word := run_id(ref), int) else None
        raise Fail(gone or f"no such run: {ref!r}", NOT_FOUND)
    scaling = {"scaling": scaling_json(store.scaling(run.name))}
    return show_json(run) | scaling | ({"compared": store.against_its_like(run)} if like else {})


def _listed(store: Store, query: dict[str, Any]) -> list[Run]:
    from orchestrator.array import parse_ref
    from orchestrator.history.asking import asked
    from orchestrator.history.render import list_json

    if query.get("best") is not None:
        raise Fail(
            "the best runs are known to the controller alone, which does not answer: `orch up` starts it", UNREACHABLE
        )
    given = {
        name: [str(one) for one in value] if isinstance(value, list) else [str(value)]
        for name, value in query.items()
        if value is not None
    }
    try:
        question = asked(given)
        if question.array is not None:
            ref = parse_ref(question.array)
            ids = None if ref is None else store.ids_of(ref)
            if ids is None:
                raise Fail(f"no such array: {question.array!r}", NOT_FOUND)
            question = question.of_array(ids)
        if question.by:
            return store.groups(question.wanted, question.by, question.sort)
        if question.columns:
            return store.rows(question.wanted, question.columns)
    except ValueError as error:
        raise Fail(str(error), USAGE) from None
    return [list_json(run) for run in store.runs(question.wanted)]
