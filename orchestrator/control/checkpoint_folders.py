"""Tells of a run whose checkpoint folder will not do: not one folder on all its nodes, not writable, or nearly full.

The gang starts meanwhile: a run without a useful folder trains all the same, and says so before it is needed.
"""

from __future__ import annotations

import asyncio
import logging
from contextlib import suppress

from orchestrator.control.backend import AgentGone, StaleController
from orchestrator.control.roster import Roster
from orchestrator.control.runtime import Runtime
from orchestrator.control.shared_folder import FolderLook, Tokens
from orchestrator.history.errors import StoreError
from orchestrator.scheduling.lifecycle import Event, IllegalTransition
from orchestrator.scheduling.run import Run

log = logging.getLogger("orch.gangs")

SEEN_WITHIN_S = 6.0
"""How long the other nodes look for the token: network file systems show new names late."""
ANSWERS_WITHIN_S = 30.0
"""After that a node's storage stalls."""
LOW = 1 << 30
"""So few bytes are worth a word, and so is less than the newest checkpoint takes."""
LISTED = 4


class CheckpointFolders:
    """One per controller."""

    def __init__(self, runtime: Runtime, roster: Roster) -> None:
        self._runtime, self._roster = runtime, roster

    async def check(self, run: Run, folder: str) -> None:
        """Looks at the folder from every node of the run's live attempt, and notes what is wrong with it, once."""
        assert run.attempt is not None
        first, *others = [part.node for part in run.attempt.placement.nodes]
        token = f".orch-{run.id}-{run.attempt.number}"
        looks = {first: await self._look(first, folder, Tokens(leave=token if others else None))}
        told = looks[first]
        if others:
            expect = Tokens(expect=token, wait_s=SEEN_WITHIN_S) if told is not None and told.error is None else Tokens()
            found = await asyncio.gather(*(self._look(node, folder, expect) for node in others))
            looks |= dict(zip(others, found, strict=True))
            if expect.expect:
                await self._look(first, folder, Tokens(remove=token))
        known = {node: look for node, look in looks.items() if look is not None}
        for text in troubles(folder, first, known):
            await self._note(run, text)

    async def _look(self, node: str, folder: str, tokens: Tokens) -> FolderLook | None:
        """None where the node's agent is gone: the gang will hear of that otherwise."""
        try:
            asked = self._roster.agent(node).checkpoint_folder(self._runtime.epoch, folder, tokens)
            return await asyncio.wait_for(asked, ANSWERS_WITHIN_S)
        except TimeoutError:
            return FolderLook(error=f"no answer within {ANSWERS_WITHIN_S:.0f} s: its storage stalls")
        except (AgentGone, StaleController):
            return None

    async def _note(self, run: Run, text: str) -> None:
        runtime = self._runtime
        with suppress(IllegalTransition, StoreError):
            known = await runtime.db(runtime.store.get, run.id)
            if known is not None and not any(event.reason == text for event in known.events):
                await runtime.write(runtime.store.record, run.id, Event.NOTED, runtime.now(), text)
                runtime.tell(run.id)


def troubles(folder: str, first: str, looks: dict[str, FolderLook]) -> list[str]:
    """What is wrong with the folder, in sentences. Pure."""
    found = []
    refused: dict[str, list[str]] = {}
    for node, look in looks.items():
        if look.error is not None:
            refused.setdefault(look.error, []).append(node)
    found += [f"checkpoint: {_some(nodes)} cannot write in {folder}: {error}" for error, nodes in refused.items()]
    if first in looks and looks[first].error is None:
        blind = [node for node, look in looks.items() if node != first and look.error is None and not look.seen]
        if blind:
            does = "does" if len(blind) == 1 else "do"
            found.append(
                f"checkpoint: {_some(blind)} {does} not see what {first} writes in {folder}: a retry on other nodes would start "
                "from zero; put it on storage that all nodes share (storage: in cluster.yaml)"
            )
    for node, look in looks.items():
        if look.free is not None and look.free < max(LOW, look.newest):
            than = f", and the newest in it takes {_size(look.newest)}" if look.newest > LOW else ""
            found.append(f"checkpoint: {_size(look.free)} are free in {folder} on {node}{than}")
            break  # where it is one folder, the others have no more
    return found


def _some(nodes: list[str]) -> str:
    more = len(nodes) - LISTED
    if more > 1:
        return f"{', '.join(nodes[:LISTED])} and {more} more"
    return " and ".join([", ".join(nodes[:-1]), nodes[-1]] if len(nodes) > 1 else nodes)


def _size(count: int) -> str:
    return f"{count / 1e9:.1f} GB"
