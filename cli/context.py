"""What every command starts from: the configuration, the controller, and a run by id or name."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from cli.errors import NOT_FOUND, USAGE, Fail, Unreachable

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from cli.api import Controller
    from orchestrator.config import Config

RESTART = 5.0
"""Seconds that a command which needs the controller waits for one that is being started again."""


def config() -> Config:
    """The configuration: flags of `orch`, the environment, the files. A mistake in it ends the command with code 2."""
    from orchestrator.config import ConfigError, load_config

    try:
        flags = click.get_current_context().find_root().params
        return load_config(os.environ, Path.cwd(), flags)
    except ConfigError as error:
        raise Fail(str(error), USAGE) from None


def controller(settings: Config | None = None) -> Controller:
    """The running controller. Raises Unreachable."""
    from cli.api import Controller

    return Controller((settings or config()).home)


def answering_controller() -> Controller:
    """The controller once it answers: Ray starts one that was killed again, which takes a moment. Raises Unreachable."""
    import time

    settings = config()
    deadline = time.monotonic() + RESTART
    while True:
        try:
            api = controller(settings)
            api.call("GET", "status")
            return api
        except Unreachable:
            # Without this file nothing is on its way: `orch down` takes it away.
            if time.monotonic() >= deadline or not (settings.home / "controller.json").exists():
                raise
        time.sleep(0.1)


@contextmanager
def naming(api: Controller, ref: str) -> Iterator[None]:
    """Adds the names that come near to the refusal of a run that does not exist."""
    try:
        yield
    except Fail as error:
        if error.exit_code != NOT_FOUND or ref.isdigit():
            raise
        import difflib

        try:
            names = {run["name"] for run in api.call("GET", "runs", query={"limit": 200})}
        except Fail:
            raise error from None
        near = difflib.get_close_matches(ref, names, 3)
        raise Fail(error.message + (f". Did you mean {' or '.join(near)}?" if near else ""), NOT_FOUND) from None


def get_run(api: Controller, ref: str, query: dict[str, Any] | None = None) -> dict[str, Any]:
    """A run whole. Raises Fail(3) with the names that come near."""
    with naming(api, ref):
        run: dict[str, Any] = api.call("GET", "runs", ref, query=query)
        return run


def one_run(found: dict[str, Any]) -> dict[str, Any]:
    """What was found, which must be a run. Raises Fail(2) for an array."""
    array = found.get("array") or {}
    if "size" in array:
        name = found["name"]
        raise Fail(f"{name} is an array of {array['size']:,} runs: name one of them, such as '{name}[0]'", USAGE)
    return found


def secrets_of(names: list[str] | tuple[str, ...], what: str) -> dict[str, str]:
    """The secrets' values from the environment. Raises Fail(2) that names all that are missing."""
    missing = [name for name in names if name not in os.environ]
    if missing:
        them = "it" if len(missing) == 1 else "them"
        raise Fail(
            f"{what} names secrets that your environment does not have: {', '.join(missing)}. "
            f"Set {them} (`export {missing[0]}=...`) and try again",
            USAGE,
        )
    return {name: os.environ[name] for name in names}


def user_name() -> str:
    """Who asks, as the system knows the process and not as a variable says."""
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())  # a container's user without an entry


def complete_run(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The ids and names of the latest runs."""
    from click.shell_completion import CompletionItem

    runs = _while_completing(ctx, "runs", limit=50)
    items = {str(run["id"]): f"{run['name']}, {run['state']}" for run in runs}
    items |= {run["name"]: f"{run['state']}, the latest of its name" for run in reversed(runs)}
    return [CompletionItem(value, help=text) for value, text in items.items() if value.startswith(incomplete)]


def complete_node(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The names of the nodes."""
    from click.shell_completion import CompletionItem

    items = {node["node"]: node.get("note") or node["state"] for node in _while_completing(ctx, "nodes")}
    return [CompletionItem(value, help=text) for value, text in items.items() if value.startswith(incomplete)]


def _while_completing(ctx: click.Context, what: str, **query: Any) -> list[dict[str, Any]]:
    """What the controller answers within half a second; nothing where it does not."""
    from cli.api import Controller

    try:
        with ctx.scope(cleanup=False):
            home = config().home
        found: list[dict[str, Any]] = Controller(home, timeout=0.5).call("GET", what, query=query)
    except Exception:
        return []  # a shell that completes must show no error
    return found


def run_argument(name: str = "run", **options: Any) -> Callable[[Any], Any]:
    """The argument RUN: an id or a name (its latest run), completed by the shell."""
    return click.argument(name, metavar=options.pop("metavar", "RUN"), shell_complete=complete_run, **options)
