"""What a node's agent tells its controller: numbered reports, each said again until the controller has acknowledged it."""

from __future__ import annotations

from dataclasses import replace

from orchestrator.control.backend import LogChunk, Report
from orchestrator.control.node_look import NodeLook
from orchestrator.control.parts import Parts

REPORT_BYTES = 4 << 20
"""Of logs in one report; what is beyond comes with the next."""


class Reports:
    """The reports of one node to the controller of the newest epoch."""

    def __init__(self, parts: Parts, node: NodeLook) -> None:
        self._parts, self._node = parts, node
        self._sequence = 0
        self._unacked: Report | None = None

    def begin_again(self) -> None:
        """Another controller asks: whatever was told to the one before has been told to nobody."""
        self._sequence, self._unacked = 0, None
        self._parts.from_the_start()

    def unheard(self, ack: int) -> Report | None:
        """The report that is to be said again, where the controller has heard none later than number `ack`."""
        if self._unacked is not None and ack >= self._unacked.sequence:
            self._acknowledged(self._unacked)
            self._unacked = None
        return self._unacked

    def renewed(self, report: Report) -> Report:
        """The same with the parts as they are now: its logs are in no other, but what it said of the parts may be long over.

        It has a number of its own: a lease runs from when the report was given that was heard, and the first one was not.
        """
        self._sequence += 1
        self._unacked = replace(report, sequence=self._sequence, parts=self._parts.statuses())
        return self._unacked

    def _acknowledged(self, report: Report) -> None:
        for status in report.parts:
            told = self._parts.by_key.get(f"{status.run}.{status.attempt}")
            if told is not None and told.nccl is not None:
                told.nccl.acknowledged(status.nccl is not None)
        for run, attempt in {(chunk.run, chunk.attempt) for chunk in report.logs}:
            if (part := self._parts.by_key.get(f"{run}.{attempt}")) is not None:
                part.logs_shipped()

    def compose(self) -> Report:
        """The next report, of all that is new."""
        parts = self._parts.by_key.values()
        logs: list[LogChunk] = []
        room = REPORT_BYTES
        for part in parts:
            taken = list(part.take_logs(room))
            logs += taken
            room -= sum(len(chunk.data) for chunk in taken)
        info, vitals = self._node.take()
        self._sequence += 1
        looks = tuple(found for part in parts for found in part.progress_now(self._parts.ends))
        statuses, gpus = self._parts.statuses(), self._parts.gpus.take()
        self._unacked = Report(self._sequence, statuses, tuple(logs), info, gpus, looks, vitals)
        return self._unacked
