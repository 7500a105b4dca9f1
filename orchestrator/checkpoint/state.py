"""What of a script's objects goes into a checkpoint, and how it gets back into them. All of torch that this package knows is here.

A module, an optimizer or anything else with `state_dict` gives that; other values go as they are. Modules are taken out of
DistributedDataParallel, DataParallel and torch.compile first, so that a checkpoint does not depend on how it was trained. Where a
model is sharded over the ranks (FSDP), torch.distributed.checkpoint writes and reads it, with its optimizer.
"""

from __future__ import annotations

import random
import shutil
import sys
import warnings
from collections import Counter, OrderedDict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from orchestrator.checkpoint.folder import CheckpointError

SHARDS = "shards"


def named(given: Any) -> dict[str, Any]:
    """What is to be saved or loaded, by name; one object alone is called `state`."""
    return dict(given) if isinstance(given, Mapping) else {"state": given}


def bare(thing: Any) -> Any:
    """The module inside the wrappers that only change how it is run."""
    while True:
        if hasattr(thing, "_orig_mod"):
            thing = thing._orig_mod
        elif type(thing).__name__ in ("DistributedDataParallel", "DataParallel") and hasattr(thing, "module"):
            thing = thing.module
        else:
            return thing


def has_state(thing: Any) -> bool:
    return callable(getattr(thing, "state_dict", None)) and callable(getattr(thing, "load_state_dict", None))


def is_module(thing: Any) -> bool:
    import torch

    return isinstance(thing, torch.nn.Module)


def sharded_parts(parts: Mapping[str, Any], *, always: bool = False) -> dict[str, Any]:
    """The modules of which each rank holds a part (`always`: every module), and their optimizers."""
    import torch

    modules = {name: thing for name, thing in parts.items() if is_module(thing) and (always or _is_sharded(thing))}
    ids = {id(parameter) for module in modules.values() for parameter in module.parameters()}
    optimizers = {
        name: thing
        for name, thing in parts.items()
        if isinstance(thing, torch.optim.Optimizer)
        and any(id(parameter) in ids for group in thing.param_groups for parameter in group["params"])
    }
    return modules | optimizers


def _is_sharded(module: Any) -> bool:
    tensors = sys.modules.get("torch.distributed.tensor")
    kind = getattr(tensors, "DTensor", None)
    if kind is not None and any(isinstance(parameter, kind) for parameter in module.parameters()):
        return True
    return any(type(inner).__name__ == "FullyShardedDataParallel" for inner in module.modules())


def state_of(parts: Mapping[str, Any]) -> dict[str, Any]:
    """What is written of objects that every rank has whole. Raises CheckpointError for what could not be read again."""
    states = {name: bare(thing).state_dict() if has_state(thing) else thing for name, thing in parts.items()}
    for name, state in states.items():
        _check(state, f"{name}", set())
    return states


def _check(value: Any, where: str, seen: set[int]) -> None:
    """What torch.load(weights_only=True) takes: a checkpoint is data, and reading it runs nobody's code."""
    import torch

    plain = (
        type(None),
        bool,
        int,
        float,
        complex,
        str,
        bytes,
        bytearray,
        torch.Size,
        torch.dtype,
        torch.device,
        torch.layout,
    )
    if type(value) in (*plain, torch.Tensor, torch.nn.Parameter) or id(value) in seen:
        return
    seen.add(id(value))
    # Of exactly these types: weights_only knows no subclass of them, a defaultdict or a named tuple say.
    if type(value) in (dict, OrderedDict, Counter):
        for key, inner in value.items():
            _check(key, where, seen)
            _check(inner, f"{where}[{key!r}]", seen)
    elif type(value) in (list, tuple, set):
        for at, inner in enumerate(value):
            _check(inner, f"{where}[{at}]", seen)
    elif type(value) not in torch.serialization.get_safe_globals():
        kind = f"{type(value).__module__}.{type(value).__qualname__}"
        raise CheckpointError(
            f"{where} is a {kind}, which torch.load(weights_only=True) would refuse: save tensors and plain values, or allow "
            "the class by torch.serialization.add_safe_globals"
        )


def put_back(parts: Mapping[str, Any], states: Mapping[str, Any]) -> dict[str, Any]:
    """Gives each object its state; the states that no object took. Raises CheckpointError where one of them is missing."""
    left = dict(states)
    for name, thing in parts.items():
        if not has_state(thing):
            continue
        if name not in states:
            raise CheckpointError(f"the checkpoint holds no {name!r}, but {', '.join(map(repr, states)) or 'nothing'}")
        bare(thing).load_state_dict(left.pop(name))
    return left


# -- random state ------------------------------------------------------------------------------------------------------


def random_state() -> dict[str, Any]:
    """Of every generator that this process has: Python's, torch's, numpy's where it is loaded, and its GPU's."""
    import torch

    found: dict[str, Any] = {"python": random.getstate(), "torch": torch.get_rng_state()}
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        found["cuda"] = torch.cuda.get_rng_state()
    if (numpy := sys.modules.get("numpy")) is not None:
        name, keys, *rest = numpy.random.get_state()
        found["numpy"] = (name, keys.tolist(), *rest)
    return found


def set_random_state(state: Mapping[str, Any]) -> None:
    import torch

    random.setstate(state["python"])
    torch.set_rng_state(state["torch"].cpu())
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state(state["cuda"].cpu())
    if "numpy" in state and (numpy := sys.modules.get("numpy")) is not None:
        name, keys, *rest = state["numpy"]
        numpy.random.set_state((name, numpy.array(keys, dtype="uint32"), *rest))


# -- sharded -----------------------------------------------------------------------------------------------------------


def save_shards(parts: Mapping[str, Any], folder: Path) -> None:
    """Each rank's part of the sharded objects, synced, by torch.distributed.checkpoint; every rank calls it.

    Raises CheckpointError, on every rank where torch did on one.
    """
    import torch.distributed.checkpoint as dcp

    try:
        with _quiet_alone():
            dcp.save(_sharded_state(parts), storage_writer=dcp.FileSystemWriter(folder / SHARDS, sync_files=True))
    # A BaseException, which `except Exception` would let through.
    except dcp.CheckpointException as failed:
        rank, (error, _) = next(iter(failed.failures.items()))
        free = f"{shutil.disk_usage(folder).free / 1e6:,.0f} MB"
        raise _of_system(error) or CheckpointError(
            f"rank {rank} could not write its part in {folder}, where {free} are free: {error}"
        ) from error


def load_shards(parts: Mapping[str, Any], folder: Path) -> None:
    """Gives the sharded objects their state, over as many ranks as there are now; every rank calls it.

    Raises CheckpointError, on every rank where torch did on one.
    """
    import torch.distributed.checkpoint as dcp
    import torch.distributed.checkpoint.state_dict as dcp_state

    from orchestrator.checkpoint.safe_shards import SafePlanner, SafeReader

    state = _sharded_state(parts)
    try:
        with _quiet_alone():
            dcp.load(state, storage_reader=SafeReader(folder / SHARDS), planner=SafePlanner())
    except dcp.CheckpointException as failed:
        rank, (error, _) = next(iter(failed.failures.items()))
        raise CheckpointError(f"rank {rank} could not read {folder}: {error}") from error
    for name, thing in parts.items():
        if is_module(thing):
            dcp_state.set_model_state_dict(thing, state[name])
        else:
            dcp_state.set_optimizer_state_dict(_model_of(thing, parts), thing, state[name])


def _of_system(error: BaseException | None) -> OSError | None:
    """The error of the file system behind what torch says, which is no more than that a write has failed."""
    while error is not None and not isinstance(error, OSError):
        error = error.__cause__ or error.__context__
    return error


@contextmanager
def _quiet_alone() -> Iterator[None]:
    """torch warns that there is one rank alone, which is what was meant."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
        yield


def _sharded_state(parts: Mapping[str, Any]) -> dict[str, Any]:
    import torch.distributed.checkpoint.state_dict as dcp_state

    return {
        name: dcp_state.get_model_state_dict(thing)
        if is_module(thing)
        else dcp_state.get_optimizer_state_dict(_model_of(thing, parts), thing)
        for name, thing in parts.items()
    }


def _model_of(optimizer: Any, parts: Mapping[str, Any]) -> Any:
    ids = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
    return next(
        thing for thing in parts.values() if is_module(thing) and any(id(one) in ids for one in thing.parameters())
    )
