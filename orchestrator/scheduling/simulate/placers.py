"""Where the policies that orch is compared with put a gang: from the free GPUs of each node to parts, or None.

They look at counts alone and take the lowest free indices of a node, as everything that only counts GPUs does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence

from orchestrator.scheduling.simulate.jobs import Job
from orchestrator.scheduling.simulate.world import Parts

Placer = Callable[[Job, Sequence[int], int], Parts | None]
"""Takes the bits of each node's free GPUs, and how many the largest node has when it is empty."""


def lowest(mask: int, count: int) -> int:
    """The `count` lowest bits of `mask`."""
    left = mask
    for _ in range(count):
        left &= left - 1
    return mask ^ left


def _take(job: Job, masks: Sequence[int], order: Iterable[int]) -> Parts | None:
    """The gang on the nodes of `order`: all that is there of each, or its part where it is split evenly."""
    each = job.gpus // job.nodes if job.nodes else None
    left, parts = job.gpus, []
    for index in order:
        have = masks[index].bit_count()
        count = min(left, have) if each is None else each if have >= each else 0
        if count:
            parts.append((index, lowest(masks[index], count)))
            left -= count
            if not left:
                return tuple(sorted(parts))
    return None


def first_fit(job: Job, masks: Sequence[int], largest: int) -> Parts | None:
    """The first node with room for all of it, else the first nodes that have any: Ray's PACK without its luck."""
    if not job.nodes or job.nodes == 1:
        for index, mask in enumerate(masks):
            if mask.bit_count() >= job.gpus:
                return ((index, lowest(mask, job.gpus)),)
    return in_order(job, masks, largest)


def in_order(job: Job, masks: Sequence[int], largest: int) -> Parts | None:
    """What is free of the first node, of the second, and so on: the first fit of Pollux's simulator."""
    return _take(job, masks, (index for index, mask in enumerate(masks) if mask))


def pack(job: Job, masks: Sequence[int], largest: int) -> Parts | None:
    """Best fit: the fullest node with room for all of it, else the fewest nodes, and as the last one the fullest that
    suffices."""
    counts = [(mask.bit_count(), index) for index, mask in enumerate(masks) if mask]
    if job.nodes and job.nodes > 1:
        return _take(job, masks, (index for _, index in sorted(counts)))
    order: list[int] = []
    left = job.gpus
    by_size = sorted(counts, key=lambda pair: (-pair[0], pair[1]))
    for position, (count, index) in enumerate(by_size):
        if count < left:
            order.append(index)
            left -= count
            continue
        order.append(min(pair for pair in by_size[position:] if pair[0] >= left)[1])
        return _take(job, masks, order)
    return None


def spread(job: Job, masks: Sequence[int], largest: int) -> Parts | None:
    """The emptiest nodes first, whole: what the Tiresias of Pollux's simulator does."""
    order = sorted((index for index, mask in enumerate(masks) if mask), key=lambda i: (-masks[i].bit_count(), i))
    return _take(job, masks, order)


def one_node(job: Job, masks: Sequence[int], largest: int) -> Parts | None:
    """As few nodes as can hold it if they are empty, whole ones but the last; else it waits.

    A gang that fits into one node is never split.
    """
    found = pack(job, masks, largest)
    return found if found is not None and len(found) <= max(-(-job.gpus // largest), job.nodes or 1) else None


PLACERS: dict[str, Placer] = {
    "first-fit": first_fit,
    "in-order": in_order,
    "pack": pack,
    "spread": spread,
    "one-node": one_node,
}
