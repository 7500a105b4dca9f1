"""Sees, from inside a rank, what its training does, and writes it into the rank's progress file.

Steps are torch.optim's own notice of them (register_optimizer_step_post_hook, torch 2.0); samples are counted where
DataLoader hands out batches; a DDP rank's own work is what DDP measures of it anyway. No module has a hook, and torch
is not imported: what it loads is watched for. Nothing here raises into the script.

Loaded by rank.py in any interpreter from Python 3.9 on: standard library only, and little of it.
"""

from __future__ import annotations

import _thread
import functools
import os
import sys
import time
import weakref
from importlib.util import spec_from_file_location
from typing import Any, Callable

LOOK_AT_DDP_NS, LOOK_SOON_NS = 1_000_000_000, 50_000_000
Patch = Callable[[Any], None]


class Observer:
    """One per process. `file` is the module of that name."""

    def __init__(self, file: Any, path: str) -> None:
        self.file = file
        self.slots = file.open_file(path).cast("q")
        self.counts = self.slots[file.HISTOGRAM // 8 :]
        self.clock = time.monotonic_ns
        self.slots[file.S_PID] = os.getpid()
        self.slots[file.S_BEGAN] = self.clock()
        self.compiling: Callable[[], bool] = bool
        self.grad_enabled: Callable[[], bool] = lambda: True
        # The optimizer whose steps count, and those that have stepped since it did: one of several that steps twice
        # meanwhile takes its place.
        self.leader = 0
        self.others: set[int] = set()
        self.last_step = 0
        self.pending: dict[int, int] = {}
        self.last_iterator = 0
        self.models: list[Any] = []
        self.looked_at_ddp = 0
        self.depth = 0
        self.thread = _thread.get_ident()

    def leave_child(self) -> None:
        """After a fork: a child is no rank, and what it does is its own."""
        self.slots = memoryview(bytearray(self.file.SIZE)).cast("q")
        self.counts = self.slots[self.file.HISTOGRAM // 8 :]

    # -- steps ---------------------------------------------------------------------------------------------------------

    def stepped(self, optimizer: Any, args: Any, kwargs: Any) -> None:
        # Traced by torch.compile this is a constant, and the rest is not there.
        if self.compiling():
            return
        try:
            self.count_step(id(optimizer))
        except Exception:  # noqa: S110 - the script must not notice
            pass

    def count_step(self, optimizer: int) -> None:
        if optimizer != self.leader:
            if self.leader and optimizer not in self.others:
                self.others.add(optimizer)
                return
            self.leader = optimizer
        if self.others:
            self.others.clear()
        file, slots, now = self.file, self.slots, self.clock()
        slots[file.S_STEPS] += 1
        if self.last_step:
            self.counts[file.bucket_of(now - self.last_step)] += 1
        else:
            slots[file.S_FIRST_STEP_AT] = now
            slots[file.S_EARLY_SAVE_TIME] = slots[file.S_SAVE_TIME]
        self.last_step = slots[file.S_STEP_AT] = now
        if self.pending:
            # What other loaders gave meanwhile, for a validation say, was not trained on.
            slots[file.S_SAMPLES] += self.pending.get(self.last_iterator, 0)
            self.pending.clear()
        if self.models and now - self.looked_at_ddp > LOOK_AT_DDP_NS:
            # Soon again where it has measured nothing yet.
            self.looked_at_ddp = now if self.look_at_ddp(now) else now - LOOK_AT_DDP_NS + LOOK_SOON_NS

    def look_at_ddp(self, now: int) -> bool:
        """DDP times every hundredth step: forward, backward until the last gradient is there, and the all-reduces."""
        for reference in self.models:
            model = reference()
            if model is None or model.logger is None:
                continue
            found = model._get_ddp_logging_data()
            own = int(found.get("forward_compute_time", 0)) + int(found.get("backward_compute_time", 0))
            if own > 0:
                self.slots[self.file.S_OWN_TIME] = own
                self.slots[self.file.S_COMM_TIME] = int(found.get("backward_comm_time", 0))
                self.slots[self.file.S_OWN_TIME_AT] = now
                return True
        return False

    # -- batches -------------------------------------------------------------------------------------------------------

    def count_batch(self, iterator: Any, data: Any, began: int) -> None:
        file, slots, now = self.file, self.slots, self.clock()
        count = size_of(data, most_of(iterator))
        slots[file.S_BATCHES] += 1
        slots[file.S_BATCH_SAMPLES] += count
        slots[file.S_DATA_WAIT] += now - began
        slots[file.S_BATCH_AT] = now
        if not slots[file.S_FIRST_BATCH_AT]:
            slots[file.S_FIRST_BATCH_AT] = now
        # A batch that is drawn where no gradient is kept is not trained on.
        if self.grad_enabled():
            key = self.last_iterator = id(iterator)
            self.pending[key] = self.pending.get(key, 0) + count

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

        return save

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

        return async_save

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

        return load

    # -- where it takes hold -------------------------------------------------------------------------------------------

    def patch_optimizer(self, module: Any) -> None:
        def compiling() -> bool:
            compiler = sys.modules.get("torch.compiler")
            if compiler is not None and hasattr(compiler, "is_compiling"):
                self.compiling = compiler.is_compiling
            return self.compiling is not compiling and self.compiling()

        # torch.compiler is loaded after torch.optim.
        self.compiling = compiling
        module.register_optimizer_step_post_hook(self.stepped)

    def patch_loader(self, module: Any) -> None:
        iterators = module._BaseDataLoaderIter
        plain, clock = iterators.__next__, self.clock
        grad_enabled = getattr(sys.modules.get("torch"), "is_grad_enabled", None)
        if grad_enabled is not None:
            self.grad_enabled = grad_enabled

        @functools.wraps(plain)
        def __next__(iterator: Any) -> Any:  # noqa: N807 - it takes that one's place
            began = clock()
            data = plain(iterator)
            try:
                self.count_batch(iterator, data, began)
            except Exception:  # noqa: S110 - the script must not notice
                pass
            return data

        iterators.__next__ = __next__

    def patch_ddp(self, module: Any) -> None:
        ddp = module.DistributedDataParallel
        plain = ddp.__init__

        @functools.wraps(plain)
        def __init__(model: Any, *args: Any, **kwargs: Any) -> None:  # noqa: N807 - it takes that one's place
            plain(model, *args, **kwargs)
            self.models.append(weakref.ref(model))

        ddp.__init__ = __init__

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
            "safetensors.torch": lambda m: self.patch_functions(
                m, "safetensors", save_file=save, save_model=save, load_file=load, load_model=load
            ),
        }


def most_of(iterator: Any) -> int | None:
    """How many samples a batch of this iterator has at most, where its loader was told."""
    sampler = getattr(iterator, "_index_sampler", None)
    size = getattr(sampler, "batch_size", None)
    return size if isinstance(size, int) and size > 0 else None


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


class Finder:
    """Stands first on sys.meta_path, and has each module of `patches` patched once it is loaded.

    What it finds itself is `orchestrator`, for its `report`, where the interpreter has none.
    """

    def __init__(self, patches: dict[str, Patch], package: str) -> None:
        self.patches, self.package = patches, package

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name not in self.patches and name != "orchestrator":
            return None
        patch = self.patches.pop(name, None)
        spec = self.found_by_others(name, path, target)
        if name == "orchestrator" and spec is None:
            spec = spec_from_file_location(
                name, os.path.join(self.package, "__init__.py"), submodule_search_locations=[self.package]
            )
        if spec is not None and patch is not None:
            self.after_loading(spec, patch)
        return spec

    def found_by_others(self, name: str, path: Any, target: Any) -> Any:
        for finder in list(sys.meta_path):
            if finder is not self and hasattr(finder, "find_spec"):
                spec = finder.find_spec(name, path, target)
                if spec is not None:
                    return spec
        return None

    def after_loading(self, spec: Any, patch: Patch) -> None:
        loader = spec.loader
        plain = getattr(loader, "exec_module", None)
        if plain is None:
            return

        def exec_module(module: Any) -> None:
            try:
                del loader.exec_module
            except AttributeError:
                pass
            plain(module)
            apply(patch, module)

        try:
            loader.exec_module = exec_module
        except AttributeError:  # a loader that takes no attributes is none of Python's own
            pass


def apply(patch: Patch, module: Any) -> None:
    try:
        patch(module)
    except Exception:  # noqa: S110 - another torch than was known when this was written
        pass


def observe(file: Any, path: str) -> None:
    """Begins. What is loaded already is patched now, the rest when it is loaded; on failure all stays as it is."""
    try:
        observer = Observer(file, path)
    except (OSError, ValueError):
        return
    waiting = {}
    for name, patch in observer.patches().items():
        module = sys.modules.get(name)
        if module is None:
            waiting[name] = patch
        else:
            apply(patch, module)
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.meta_path.insert(0, Finder(waiting, package))
    os.register_at_fork(after_in_child=observer.leave_child)
