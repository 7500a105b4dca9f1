"""Sees, from inside a rank, what its training does, and writes it into the rank's progress file.

Steps are torch.optim's own notice of them (register_optimizer_step_post_hook, torch 2.0); samples are counted where
DataLoader hands out batches; a DDP rank's own work is what DDP measures of it anyway. No module has a hook, and torch
is not imported: on_import.py waits for what it loads. Nothing here raises into the script.

Loaded by rank.py in any interpreter from Python 3.9 on: standard library only, and little of it.
"""

from __future__ import annotations

import _thread
import functools
import os
import sys
import time
import weakref
from typing import Any, Callable, TypeVar

LOOK_AT_DDP_NS, LOOK_SOON_NS = 1_000_000_000, 50_000_000
Patch = Callable[[Any], None]


F = TypeVar("F", bound=Callable[..., Any])


def untraced(function: F) -> F:
    """Has torch.compile call the function between its compiled parts: it may neither inline nor import what is here."""
    function._torchdynamo_disable = True  # type: ignore[attr-defined]
    return function


def watch_training(
    file: Any, mapped: memoryview, models: list[Any], clock: Callable[[], int] = time.monotonic_ns
) -> tuple[Any, Any, Callable[[], None]]:
    """What counts a step, what counts a batch, and what a forked child must call first, as it is no rank.

    One function around the three, and plain numbers in its cells: in a real step the caches are cold, and what costs is how
    much memory is touched.
    """
    look_at = look_at_ddp
    slots, counts = mapped.cast("q"), mapped[file.HISTOGRAM :].cast("q")
    s_steps, s_step_at, s_first_step_at, s_samples = (
        file.S_STEPS,
        file.S_STEP_AT,
        file.S_FIRST_STEP_AT,
        file.S_SAMPLES,
    )
    s_batches, s_batch_samples, s_batch_at, s_first_batch_at, s_data_wait = (
        file.S_BATCHES,
        file.S_BATCH_SAMPLES,
        file.S_BATCH_AT,
        file.S_FIRST_BATCH_AT,
        file.S_DATA_WAIT,
    )
    # Of bucket_of in file.py, written out below: a bucket's number is made of these.
    shift, buckets, first_octave = 5, file.BUCKETS, file.OCTAVES_FROM
    steps = samples = batches = batch_samples = data_wait = 0
    last_step = looked_at_ddp = 0
    # The optimizer whose steps count, and those that have stepped since it did: one of several that steps twice
    # meanwhile takes its place.
    leader, others = 0, set()
    # The loaders' iterators by id: the one that gave a batch last, whether that was where gradients are kept, how large its
    # batches are and before which number all are full (to ask a tensor costs as much as all the rest), and what each has
    # given since the last step.
    last_iterator, trains, full = 0, True, 0
    most: Any = None
    pending: dict[int, int] = {}

    def stepped(optimizer: Any, args: Any, kwargs: Any) -> None:
        nonlocal steps, last_step, leader, samples, looked_at_ddp
        try:
            key = id(optimizer)
            if key != leader:
                if leader and key not in others:
                    others.add(key)
                    return
                leader = key
            if others:
                others.clear()
            now = clock()
            steps += 1
            slots[s_steps] = steps
            slots[s_step_at] = now
            if last_step:
                took = now - last_step
                low = took.bit_length() - shift
                bucket = ((low + shift - 1 - first_octave) << 4) + (took >> low if low > 0 else 0) - 16
                counts[0 if bucket < 0 else bucket if bucket < buckets else buckets - 1] += 1
            else:
                slots[s_first_step_at] = now
                slots[file.S_EARLY_SAVE_TIME] = slots[file.S_SAVE_TIME]
            last_step = now
            if pending:
                # What other loaders gave meanwhile, for a validation say, was not trained on.
                samples += pending.get(last_iterator, 0)
                slots[s_samples] = samples
                pending.clear()
            if models and now - looked_at_ddp > LOOK_AT_DDP_NS:
                # Soon again where it has measured nothing yet.
                looked_at_ddp = now if look_at(file, slots, models, now) else now - LOOK_AT_DDP_NS + LOOK_SOON_NS
        except Exception:  # noqa: S110 - the script must not notice
            pass

    def drawn(iterator: Any, data: Any, began: int) -> None:
        nonlocal batches, batch_samples, data_wait, last_iterator, trains, most, full
        try:
            now = clock()
            key = id(iterator)
            number = iterator._num_yielded
            if number == 1 or key != last_iterator:
                # A new iterator may be where another one was that is gone.
                last_iterator, trains, most = key, sys.modules["torch"].is_grad_enabled(), most_of(iterator)
                full = full_batches(iterator) if size_of(data, most) == most else 0
                if number == 1:
                    pending.pop(key, None)
                if not batches:
                    slots[s_first_batch_at] = now
            count = most if number < full else size_of(data, most)
            batches += 1
            batch_samples += count
            data_wait += now - began
            slots[s_batches] = batches
            slots[s_batch_samples] = batch_samples
            slots[s_data_wait] = data_wait
            slots[s_batch_at] = now
            if trains:
                pending[key] = pending.get(key, 0) + count
        except Exception:  # noqa: S110 - the script must not notice
            pass

    def leave_child() -> None:
        nonlocal slots, counts
        nowhere = memoryview(bytearray(file.SIZE))
        slots, counts = nowhere.cast("q"), nowhere[file.HISTOGRAM :].cast("q")

    return untraced(stepped), drawn, leave_child


def look_at_ddp(file: Any, slots: Any, models: list[Any], now: int) -> bool:
    """DDP times every hundredth step: the all-reduces, and forward and backward, of which counts what is not under those."""
    for reference in models:
        model = reference()
        if model is None or model.logger is None:
            continue
        found = model._get_ddp_logging_data()
        own = int(found.get("forward_compute_time", 0)) + int(found.get("backward_compute_time", 0))
        own -= int(found.get("backward_compute_comm_overlap_time", 0))
        if own > 0:
            slots[file.S_OWN_TIME] = own
            slots[file.S_COMM_TIME] = int(found.get("backward_comm_time", 0))
            slots[file.S_OWN_TIME_AT] = now
            return True
    return False


class Observer:
    """One per process. `file` is the module of that name."""

    def __init__(self, file: Any, path: str) -> None:
        self.file = file
        mapped = file.open_file(path)
        self.slots = mapped.cast("q")
        self.clock = time.monotonic_ns
        self.slots[file.S_PID] = os.getpid()
        self.slots[file.S_BEGAN] = self.clock()
        self.models: list[Any] = []
        self.stepped, self.drawn, self.forget_training = watch_training(file, mapped, self.models)
        self.hook: Any = None
        self.hook_steps: Callable[[], Any] = lambda: None
        self.depth = 0
        self.thread = _thread.get_ident()

    def leave_child(self) -> None:
        """After a fork: a child is no rank, and what it does is its own."""
        self.forget_training()
        self.slots = memoryview(bytearray(self.file.SIZE)).cast("q")

    # -- checkpoints ---------------------------------------------------------------------------------------------------

    def begin_save(self) -> tuple[int, int, int, int]:
        file, slots, now = self.file, self.slots, self.clock()
        # torch.distributed.checkpoint saves each piece by torch.save: the outermost one counts.
        self.depth += 1
        if self.depth == 1:
            slots[file.S_SAVE_BEGAN_AT] = now
            slots[file.S_SAVES_BEGUN] += 1
        return now, slots[file.S_STEPS], slots[file.S_BATCHES], slots[file.S_REPORTS]

    def end_save(self, begun: tuple[int, int, int, int], *, complete: bool, blocked: bool = True) -> None:
        file, slots, now = self.file, self.slots, self.clock()
        self.depth -= 1
        if self.depth:
            return
        if blocked:
            slots[file.S_SAVE_TIME] += now - begun[0]
        if complete:
            self.saved(begun, now)
        slots[file.S_SAVES_ENDED] += 1

    def saved(self, begun: tuple[int, int, int, int], now: int) -> None:
        file, slots = self.file, self.slots
        slots[file.S_SAVED_STEPS], slots[file.S_SAVED_BATCHES], slots[file.S_SAVED_REPORTS] = begun[1:]
        slots[file.S_SAVED_AT] = now
        slots[file.S_SAVED] += 1

    def is_checkpoint(self, args: Any, kwargs: Any) -> bool:
        """Whether a save goes where checkpoints go, as far as that can be told: into ORCH_CHECKPOINT_DIR if it has a path."""
        folder = os.environ.get("ORCH_CHECKPOINT_DIR")
        target = args[1] if len(args) > 1 else kwargs.get("f", kwargs.get("filename"))
        if not folder or not isinstance(target, (str, os.PathLike)):
            return True
        return (os.path.realpath(target) + "/").startswith(os.path.realpath(folder) + "/")

    def around_save(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(plain)
        def save(*args: Any, **kwargs: Any) -> Any:
            if not self.is_checkpoint(args, kwargs):
                return plain(*args, **kwargs)
            begun = self.begin_save()
            complete = False
            try:
                result = plain(*args, **kwargs)
                complete = True
                return result
            finally:
                self.end_save(begun, complete=complete, blocked=_thread.get_ident() == self.thread)

        return untraced(save)

    def around_async_save(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """torch.distributed.checkpoint.async_save: blocks while it copies, and is complete when its future is."""

        @functools.wraps(plain)
        def async_save(*args: Any, **kwargs: Any) -> Any:
            begun = self.begin_save()
            try:
                result = plain(*args, **kwargs)
            finally:
                self.end_save(begun, complete=False)
            future = getattr(result, "upload_completion", result)
            if hasattr(future, "add_done_callback"):
                future.add_done_callback(lambda done: self.async_saved(begun, done))
            return result

        return untraced(async_save)

    def async_saved(self, begun: tuple[int, int, int, int], done: Any) -> None:
        if not done.cancelled() and done.exception() is None:
            self.saved(begun, self.clock())

    def around_load(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(plain)
        def load(*args: Any, **kwargs: Any) -> Any:
            result = plain(*args, **kwargs)
            self.slots[self.file.S_LOADS] += 1
            self.slots[self.file.S_LOAD_AT] = self.clock()
            return result

        return untraced(load)

    # -- where it takes hold -------------------------------------------------------------------------------------------

    def patch_optimizer(self, module: Any) -> None:
        self.hook_steps = lambda: module.register_optimizer_step_post_hook(self.stepped)
        self.hook = self.hook_steps()

    def around_first_state(self, plain: Callable[..., Any]) -> Callable[..., Any]:
        """torch.distributed.checkpoint has an optimizer that is new make a step of nothing, so that it has a state to fill."""

        @functools.wraps(plain)
        def init_state(*args: Any, **kwargs: Any) -> Any:
            if self.hook is None:
                return plain(*args, **kwargs)
            self.hook.remove()
            try:
                return plain(*args, **kwargs)
            finally:
                self.hook = self.hook_steps()

        return untraced(init_state)

    def patch_loader(self, module: Any) -> None:
        iterators = module._BaseDataLoaderIter
        plain, clock, drawn = iterators.__next__, self.clock, self.drawn

        @functools.wraps(plain)
        def __next__(iterator: Any) -> Any:  # noqa: N807 - it takes that one's place
            began = clock()
            data = plain(iterator)
            drawn(iterator, data, began)
            return data

        iterators.__next__ = untraced(__next__)

    def patch_ddp(self, module: Any) -> None:
        ddp = module.DistributedDataParallel
        plain = ddp.__init__

        @functools.wraps(plain)
        def __init__(model: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it takes that one's place
            plain(model, *args, **kwargs)
            self.models.append(weakref.ref(model))

        ddp.__init__ = untraced(__init__)

    def patch_functions(self, module: Any, also: str, **around: Callable[[Any], Any]) -> None:
        """Wraps functions in the module and in the package that has taken them over by name."""
        package = sys.modules.get(also)
        for name, wrap in around.items():
            plain = getattr(module, name, None)
            if plain is None:
                continue
            wrapped = wrap(plain)
            setattr(module, name, wrapped)
            if getattr(package, name, None) is plain:
                setattr(package, name, wrapped)

    def patches(self) -> dict[str, Patch]:
        save, load = self.around_save, self.around_load
        return {
            "torch.optim.optimizer": self.patch_optimizer,
            "torch.utils.data.dataloader": self.patch_loader,
            "torch.nn.parallel.distributed": self.patch_ddp,
            "torch.serialization": lambda m: self.patch_functions(m, "torch", save=save, load=load),
            "torch.distributed.checkpoint.state_dict_saver": lambda m: self.patch_functions(
                m, "torch.distributed.checkpoint", save=save, save_state_dict=save, async_save=self.around_async_save
            ),
            "torch.distributed.checkpoint.state_dict_loader": lambda m: self.patch_functions(
                m, "torch.distributed.checkpoint", load=load, load_state_dict=load
            ),
            "torch.distributed.checkpoint.state_dict": lambda m: self.patch_functions(
                m, "", _init_optim_state=self.around_first_state
            ),
            # Its own COMMIT makes a checkpoint of what torch has written.
            "orchestrator.checkpoint.writing": lambda m: self.patch_functions(
                m, "", save_whole=save, save_sharded=save
            ),
            "safetensors.torch": lambda m: self.patch_functions(
                m, "safetensors", save_file=save, save_model=save, load_file=load, load_model=load
            ),
        }


def most_of(iterator: Any) -> int | None:
    """How many samples a batch of this iterator has at most, where its loader was told."""
    sampler = getattr(iterator, "_index_sampler", None)
    size = getattr(sampler, "batch_size", None)
    return size if isinstance(size, int) and size > 0 else None


def full_batches(iterator: Any) -> int:
    """The number of the iterator's batch before which all are full, where torch's own sampler sees to that; else 0."""
    sampler: Any = getattr(iterator, "_index_sampler", None)
    kind_of_maps = 0
    ours = type(sampler) is sys.modules["torch"].utils.data.BatchSampler
    return len(sampler) if ours and getattr(iterator, "_dataset_kind", None) == kind_of_maps else 0


def size_of(data: Any, most: int | None) -> int:
    """How many samples are in a batch: the first dimension of its first tensor, or the length of a list around that.

    A batch of detection data is a tuple of lists of images, whose first dimension is colour: where lists are nested,
    what equals the loader's batch size is believed first, and else the first that is not larger.
    """
    found: list[int] = []
    lists = 0
    for _ in range(8):
        shape = getattr(data, "shape", None)
        if shape is not None:
            if len(shape):
                found.insert(0, int(shape[0]))
            break
        if hasattr(data, "values") and hasattr(data, "keys"):
            data = next(iter(data.values()), None)
        elif isinstance(data, (list, tuple)) and data:
            lists += 1
            found.append(len(data))
            data = data[0]
        else:
            break
    if most is None:
        return found[0] if found else 1
    if lists > 1 and most in found:
        return most
    return next((count for count in found if count <= most), most)


def observe(file: Any, path: str) -> dict[str, Patch]:
    """Begins: what is to be done to which modules (on_import.py does it); nothing where the file cannot be mapped."""
    try:
        observer = Observer(file, path)
    except (OSError, ValueError):
        return {}
    os.register_at_fork(after_in_child=observer.leave_child)
    return observer.patches()
