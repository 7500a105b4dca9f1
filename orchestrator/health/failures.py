"""Why a gang's attempt broke: from all that was seen of its end to the first failing rank or node, and whose fault it was. Pure.

A rank that dies takes the others with it within a moment: they tell of a closed connection, or wait until a time-out,
or are stopped by orch. So each rank's end is read by itself first (failure_table.py), and what is only a symptom of
another's end never stands before one that has a reason of its own, however the ends arrived. Among those with a reason
the first by time counts; and a node that was lost counts from the moment when it was last heard of.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from orchestrator.health import last_words
from orchestrator.health.death import Death
from orchestrator.health.evidence import Evidence, Loss, Seen, Xid
from orchestrator.health.failure import KINDS, Failure
from orchestrator.health.failure_table import TIMED_OUT, Finding, Weight, read
from orchestrator.health.kernel_lines import HARDWARE_XIDS
from orchestrator.units import format_spans

AT_ONCE_S = 0.05
"""Ends that are no further apart are taken as one moment: a launcher may hear of two ends at once, and two nodes' times are as
exact as reports are quick. The table's order then says which of them counts."""

_LONGEST_LAST_LINE = 300


@dataclass(frozen=True)
class _Ends:
    """The ends of a gang, read."""

    evidence: Evidence
    findings: tuple[Finding, ...]

    def of(self, weight: Weight) -> list[Finding]:
        return [one for one in self.findings if one.rule.weight is weight]

    @property
    def peers(self) -> list[Finding]:
        """Those that ended by themselves, of another's end."""
        return [one for one in self.of(Weight.SYMPTOM) if one.rule.kind != "stopped"]


def judge(evidence: Evidence) -> Failure | None:
    """The attempt's failure; None while a node may still tell of an end before the ones that are known.

    What is asked about must have broken: once `evidence.whole`, there is always an answer.
    """
    if not evidence.whole:
        return None
    deaths = [_death(evidence, seen) for seen in evidence.ranks]
    ends = _Ends(evidence, tuple(found for death in deaths if death is not None and (found := read(death)) is not None))
    own = ends.of(Weight.OWN)
    loss = min(evidence.losses, key=lambda one: (one.heard, one.node, one.kind), default=None)
    if len(evidence.ranks) == 1 and ends.peers and not own:
        # There is nobody whose end it could be of.
        own = ends.peers
    weak = ends.of(Weight.WEAK)
    if loss is not None:
        before = [one for one in own if one.at <= loss.heard] or [one for one in weak if one.at <= loss.heard]
        return _of_rank(ends, _first(before)) if before else _of_loss(ends, loss)
    return (
        (_of_rank(ends, _first(own)) if own else None)
        or _broken_gpu(ends)
        or _left_early(ends)
        or (_of_rank(ends, _first(weak)) if weak else None)
        or _silent(ends)
        or _apart(ends)
        or Failure("unknown", _unknown(ends))
    )


def _death(evidence: Evidence, seen: Seen) -> Death | None:
    if seen.end is None:
        return None
    return Death(seen, seen.end, tuple(xid for node, xid in evidence.xids if node == seen.node))


def _first(findings: Sequence[Finding]) -> Finding:
    """The one that ended first; of those that ended at once the one that comes first in the table, then the lowest rank."""
    start = min(one.at for one in findings)
    at_once = [one for one in findings if one.at <= start + AT_ONCE_S]
    return min(at_once, key=lambda one: (one.place, one.death.seen.rank))


# -- the answers -------------------------------------------------------------------------------------------------------


def _of_rank(ends: _Ends, first: Finding) -> Failure:
    """A rank broke for a reason of its own."""
    rule, seen = first.rule, first.death.seen
    alike = sorted(one.death.seen.rank for one in ends.findings if one.rule is rule and one.key == first.key)
    text = f"rank {seen.rank} on {seen.node} {first.match.phrase}"
    if rule.kind == "exit" and (last := _last_line(seen)):
        text += f": {last}"
    text += _and_others(alike, seen.rank, _ranks(ends.peers))
    symptom = rule.weight is Weight.SYMPTOM
    return Failure(
        "python" if symptom else rule.kind,
        text,
        seen.rank,
        seen.node,
        cause="user" if symptom else rule.cause or KINDS[rule.kind][0],
        ranks=tuple(alike),
        suspects=(seen.node,) if rule.suspect else (),
        detail=first.match.detail or last_words.excerpt(seen.lines),
    )


def _of_loss(ends: _Ends, loss: Loss) -> Failure:
    """A node broke, or was cut off."""
    text = loss.message + _and_others([], None, _ranks(one for one in ends.peers if one.death.seen.node != loss.node))
    ranks = tuple(seen.rank for seen in ends.evidence.ranks if seen.node == loss.node)
    suspects = tuple(sorted({one.node for one in ends.evidence.losses}))
    # No rank of it was seen to fail: it names none.
    return Failure(loss.kind, text, node=loss.node, cause="infra", ranks=ranks, suspects=suspects)


def _broken_gpu(ends: _Ends) -> Failure | None:
    """A GPU of the gang told of a fault of its own, while its rank only hung."""
    nodes = {seen.node for seen in ends.evidence.ranks}
    start = min((one.at for one in ends.peers), default=float("inf"))
    faults = [
        (xid, node)
        for node, xid in ends.evidence.xids
        if node in nodes and xid.number in HARDWARE_XIDS and not xid.switch and xid.at <= start
    ]
    if not faults or not ends.peers:
        return None
    xid, node = min(faults, key=lambda fault: (fault[0].at, fault[1], fault[0].number))
    rank = _rank_of(ends.evidence, node, xid)
    who = f"a GPU of {node}" if rank is None else f"the GPU of rank {rank} on {node}"
    text = f"{who} broke: Xid {xid.number}" + _and_others([], rank, _ranks(ends.peers))
    ranks = () if rank is None else (rank,)
    return Failure("gpu", text, rank, node, ranks=ranks, suspects=(node,), detail=xid.line)


def _rank_of(evidence: Evidence, node: str, xid: Xid) -> int | None:
    return next((one.rank for one in evidence.ranks if one.node == node and one.gpu == xid.gpu is not None), None)


def _left_early(ends: _Ends) -> Failure | None:
    """A rank was through while others still needed it."""
    if not ends.peers:
        return None
    start = min(one.at for one in ends.peers)
    left = [
        seen
        for seen in ends.evidence.ranks
        if (end := seen.end) is not None and end.code == 0 and end.told_at is None and end.at <= start + AT_ONCE_S
    ]
    if not left:
        return None
    ranks = tuple(seen.rank for seen in left)
    first = left[0]
    if len(left) == 1:
        text = f"rank {first.rank} on {first.node} ended with 0 while others still needed it"
    else:
        text = f"ranks {format_spans(ranks)} ended with 0 while others still needed them"
    text += _and_others([], None, _ranks(ends.peers))
    return Failure(
        "left_early",
        text,
        first.rank,
        first.node,
        ranks=ranks,
        detail=last_words.excerpt(ends.peers[0].death.seen.lines),
    )


def _silent(ends: _Ends) -> Failure | None:
    """Some waited for another until their time-out; the rest said nothing, or were ended before they could."""
    waited = [one for one in ends.peers if TIMED_OUT.search(one.death.said)]
    spoke = {one.death.seen.rank for one in ends.peers}
    silent = [seen for seen in ends.evidence.ranks if seen.rank not in spoke]
    if not waited or not silent:
        return None
    first = _first(waited)
    nodes = sorted({seen.node for seen in silent})
    ranks = tuple(seen.rank for seen in silent)
    text = f"{_who(ranks, nodes)} said nothing while {_who(_ranks(waited))} waited for another until the time-out"
    # Where most are silent, it is not they who are odd: nobody is to be avoided.
    suspects = tuple(nodes) if len(silent) < len(spoke) else ()
    detail = last_words.excerpt(first.death.seen.lines)
    return Failure("hang", text, ranks[0], silent[0].node, ranks=ranks, suspects=suspects, detail=detail)


def _apart(ends: _Ends) -> Failure | None:
    """All that ended by themselves had lost each other."""
    if not ends.peers:
        return None
    first = _first(ends.peers)
    seen = first.death.seen
    ranks = _ranks(ends.peers)
    kind = "hang" if all(TIMED_OUT.search(one.death.said) for one in ends.peers) else "network"
    text = f"rank {seen.rank} on {seen.node} {first.match.phrase}; no rank had ended before"
    text += _and_others(list(ranks), seen.rank, ())
    return Failure(kind, text, seen.rank, seen.node, ranks=ranks, detail=last_words.excerpt(seen.lines))


def _unknown(ends: _Ends) -> str:
    told = _ranks(ends.findings)
    return f"{_who(told)} ended, and nothing says why" if told else "nothing was seen of why it ended"


# -- words -------------------------------------------------------------------------------------------------------------


def _ranks(findings: Iterable[Finding]) -> tuple[int, ...]:
    return tuple(sorted(one.death.seen.rank for one in findings))


def _who(ranks: Sequence[int], nodes: Sequence[str] = ()) -> str:
    """`rank 3 on gpu-02`, `ranks 0-2`."""
    on = f" on {', '.join(nodes[:4])}{', ...' if len(nodes) > 4 else ''}" if nodes else ""
    return f"rank{'' if len(ranks) == 1 else 's'} {format_spans(ranks)}{on}"


def _and_others(alike: Sequence[int], rank: int | None, peers: Sequence[int]) -> str:
    """`; the same on ranks 1-7; ranks 8-15 ended because of it`."""
    same = [one for one in alike if one != rank]
    others = [one for one in peers if one != rank and one not in same]
    text = f"; the same on {_who(same)}" if same else ""
    return text + (f"; {_who(others)} ended because of it" if others else "")


def _last_line(seen: Seen) -> str:
    said = (line.strip() for line in reversed(last_words.plain(seen.lines)))
    return next((line[:_LONGEST_LAST_LINE] for line in said if line and not line.startswith("[orch] ")), "")
