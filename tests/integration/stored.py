"""Runs in a store, in a few words: what its tests share."""

from orchestrator.scheduling.lifecycle import Event
from orchestrator.testing import a_new_run, a_placement


def queued(store, clock, **spec):
    return store.submit(a_new_run(**spec), clock())[0].id


def running(store, clock, **nodes):
    run = queued(store, clock)
    store.place(run, a_placement(**(nodes or {"a": (0, 1)})), clock())
    store.record(run, Event.STARTED, clock())
    return run


def everything(store):
    """All that can be seen of the database."""
    return [store.get(run.id) for run in store.runs()], store.busy(), store.nodes()
