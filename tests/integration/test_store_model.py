"""The store against a model in plain dicts: whatever is done to it, the two agree after every step."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from orchestrator.history.errors import DoubleBooked
from orchestrator.history.store import Store
from orchestrator.scheduling.lifecycle import LIVE, TRANSITIONS, Event, IllegalTransition, Outcome, State
from orchestrator.scheduling.run import Stop
from orchestrator.testing import START, a_new_run, a_placement

NODES = {"a": 2, "b": 2}
NOT_ALONE = (Event.PLACED, Event.CHANGED, Event.STOP_ASKED)
ENDS = (Event.SUCCEEDED, Event.FAILED, Event.REQUEUED, Event.STOPPED)
some_gpus = st.fixed_dictionaries(
    {node: st.sets(st.integers(0, gpus - 1)).map(sorted).map(tuple) for node, gpus in NODES.items()}
).filter(lambda nodes: any(nodes.values()))


@dataclass
class ModelRun:
    priority: int
    queued_at: datetime
    events: list[Event] = field(default_factory=lambda: [Event.SUBMITTED])
    state: State = State.QUEUED
    outcomes: list[Outcome | None] = field(default_factory=list)


class StoreMachine(RuleBasedStateMachine):
    """Rules are what a controller does, legal or not; ids are drawn as positions among the runs so far."""

    def __init__(self, url):
        super().__init__()
        self.url = url
        self.now = START
        self.runs = {}
        self.keys = {}
        self.held = {}  # (node, gpu) -> (run, when the fence ends, or None)
        self.store = Store.open(url)
        self.epoch = self.store.claim_epoch("machine", self.now)
        self.follow()

    def follow(self):
        """As a controller does: what has not ended is read once, and then follows what is written."""
        self.book = self.store.book()
        self.store.on_change = self.book.apply

    def teardown(self):
        try:
            # Once, at the end: no event can be changed or removed, so what was wrong at any step is still there.
            for run, model in self.runs.items():
                assert [one.event for one in self.store.get(run).events] == model.events
                assert self.store.verify(run)
        finally:
            self.store.close()

    def pick(self, position):
        return sorted(self.runs)[position % len(self.runs)]

    def expect(self, run, event):
        """The model's state after `event`, or None where the table refuses it."""
        return TRANSITIONS[self.runs[run].state].get(event)

    def moved(self, run, event):
        model = self.runs[run]
        model.state = TRANSITIONS[model.state][event]
        model.events.append(event)
        if event is Event.RETRY_ASKED:
            model.queued_at = self.now

    @rule(seconds=st.integers(0, 40))
    def time_passes(self, seconds):
        self.now += timedelta(seconds=seconds)

    @rule(key=st.sampled_from([None, "k1", "k2"]), user=st.sampled_from("ab"), priority=st.integers(-1, 1))
    def submit(self, key, user, priority):
        run, created = self.store.submit(a_new_run(user=user, key=key, priority=priority), self.now)
        known = self.keys.get((user, key))
        assert created == (known is None)
        if created:
            assert run.id not in self.runs
            self.runs[run.id] = ModelRun(priority, self.now)
            if key is not None:
                self.keys[user, key] = run.id
        else:
            assert run.id == known

    @precondition(lambda self: self.runs)
    @rule(position=st.integers(0, 50), nodes=some_gpus)
    def place(self, position, nodes):
        run = self.pick(position)
        wanted = {(node, gpu) for node, gpus in nodes.items() for gpu in gpus}
        placement = a_placement(**{node: gpus for node, gpus in nodes.items() if gpus})
        if self.expect(run, Event.PLACED) is None:
            with pytest.raises(IllegalTransition):
                self.store.place(run, placement, self.now)
        elif taken := wanted & self.held.keys():
            with pytest.raises(DoubleBooked) as refused:
                self.store.place(run, placement, self.now)
            assert set(refused.value.taken) == {(node, gpu, self.held[node, gpu][0]) for node, gpu in taken}
        else:
            assert self.store.place(run, placement, self.now).attempts[-1].placement == placement
            self.moved(run, Event.PLACED)
            self.runs[run].outcomes.append(None)
            self.held |= dict.fromkeys(wanted, (run, None))

    @precondition(lambda self: self.runs)
    @rule(position=st.integers(0, 50), event=st.sampled_from(Event))
    def record(self, position, event):
        run = self.pick(position)
        ends = event in ENDS and self.runs[run].state in LIVE
        if self.expect(run, event) is None or ends or event in NOT_ALONE:
            with pytest.raises(IllegalTransition):
                self.store.record(run, event, self.now)
        else:
            self.moved(run, event)
            assert self.store.record(run, event, self.now).state is self.runs[run].state

    @precondition(lambda self: self.runs)
    @rule(
        position=st.integers(0, 50),
        event=st.sampled_from([*ENDS, Event.STARTED]),
        outcome=st.sampled_from(Outcome),
        fenced=st.sets(st.sampled_from(sorted(NODES))),
    )
    def finish(self, position, event, outcome, fenced):
        run = self.pick(position)
        until = self.now + timedelta(seconds=30)
        ends = {"outcome": outcome, "now": self.now, "fenced": dict.fromkeys(fenced, until)}
        if self.expect(run, event) is None or event not in ENDS or self.runs[run].state not in LIVE:
            with pytest.raises(IllegalTransition):
                self.store.finish(run, event, **ends)
            return
        self.moved(run, event)
        self.runs[run].outcomes[-1] = outcome
        assert self.store.finish(run, event, **ends).state is self.runs[run].state
        for (node, gpu), (holder, fence) in list(self.held.items()):
            if holder == run and fence is None:
                if node in fenced:
                    self.held[node, gpu] = (run, until)
                else:
                    del self.held[node, gpu]

    @precondition(lambda self: self.runs)
    @rule(position=st.integers(0, 50), kind=st.sampled_from(["preempted", "time_limit"]))
    def stop(self, position, kind):
        run = self.pick(position)
        if self.expect(run, Event.STOP_ASKED) is None:
            with pytest.raises(IllegalTransition):
                self.store.stop(run, Stop(kind), self.now)
        else:
            self.moved(run, Event.STOP_ASKED)
            assert self.store.stop(run, Stop(kind), self.now).attempts[-1].stop == Stop(kind)

    @precondition(lambda self: self.runs)
    @rule(position=st.integers(0, 50), priority=st.integers(-1, 1))
    def change(self, position, priority):
        run = self.pick(position)
        if self.expect(run, Event.CHANGED) is None:
            with pytest.raises(IllegalTransition):
                self.store.change([run], {"priority": priority}, self.now, "priority", "ana")
        else:
            self.moved(run, Event.CHANGED)
            self.runs[run].priority = priority
            (changed,) = self.store.change([run], {"priority": priority}, self.now, "priority", "ana")
            assert changed.spec.priority == priority

    @rule(size=st.integers(1, 3), follows=st.integers(0, 50))
    def submit_an_array(self, size, follows):
        spec = {"run": "train.py {x}", "array": {"x": list(range(size))}}
        if self.runs and self.runs[self.pick(follows)].state not in (State.FAILED, State.CANCELLED):
            spec["after"] = [self.pick(follows)]
        run, _ = self.store.submit(a_new_run(**spec), self.now)
        for number in range(run.id, run.id + size):
            self.runs[number] = ModelRun(0, self.now)
            assert self.store.get(number).spec.run == f"train.py {number - run.id}"

    @precondition(lambda self: self.runs)
    @rule(positions=st.lists(st.integers(0, 50), min_size=1, max_size=4))
    def several_cancels_at_once_and_those_that_are_refused_leave_the_others(self, positions):
        with self.store.group():
            for position in positions:
                run = self.pick(position)
                if self.expect(run, Event.CANCEL_ASKED) is None:
                    with pytest.raises(IllegalTransition):
                        self.store.record(run, Event.CANCEL_ASKED, self.now)
                else:
                    self.moved(run, Event.CANCEL_ASKED)
                    self.store.record(run, Event.CANCEL_ASKED, self.now)

    @rule()
    def release_fenced(self):
        over = [place for place, (_, until) in self.held.items() if until is not None and until <= self.now]
        assert self.store.release_fenced(self.now) == len(over)
        for place in over:
            del self.held[place]

    @rule()
    def another_controller_takes_over(self):
        self.store.close()
        self.store = Store.open(self.url)
        self.epoch += 1
        assert self.store.claim_epoch("machine", self.now) == self.epoch
        self.follow()

    @invariant()
    def runs_are_as_in_the_model(self):
        listed = {run.id: run for run in self.store.runs()}
        assert listed.keys() == self.runs.keys()
        for run, model in self.runs.items():
            assert (listed[run].state, listed[run].queued_at) == (model.state, model.queued_at)
            assert [one.outcome for one in listed[run].attempts] == model.outcomes
            assert (listed[run].finished_at is not None) == listed[run].ended

    @invariant()
    def what_is_in_memory_is_what_is_in_the_database(self):
        assert self.book == self.store.book()
        assert self.book.waiting() == self.store.waiting()

    @invariant()
    def gpus_are_held_as_in_the_model(self):
        held = {(node, gpu): run for node, gpus in self.store.busy().items() for gpu, run in gpus.items()}
        assert held == {place: run for place, (run, _) in self.held.items()}

    @invariant()
    def the_lists_are_as_in_the_model(self):
        queue = [(-m.priority, m.queued_at, run) for run, m in self.runs.items() if m.state is State.QUEUED]
        assert [run.id for run in self.store.waiting()] == [run for _, _, run in sorted(queue)]
        assert [run.id for run in self.store.live()] == sorted(r for r, m in self.runs.items() if m.state in LIVE)


def test_the_store_does_what_the_model_does(new_database):
    run_state_machine_as_test(
        lambda: StoreMachine(new_database()),
        settings=settings(
            max_examples=12,
            stateful_step_count=25,
            suppress_health_check=[HealthCheck.too_slow, HealthCheck.filter_too_much],
        ),
    )
