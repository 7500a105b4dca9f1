"""torch.distributed.checkpoint's reader, kept from running code: torch's own unpickles whatever the files say."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any

import torch
from torch.distributed.checkpoint import FileSystemReader
from torch.distributed.checkpoint.default_planner import DefaultLoadPlanner

_TORCH_OWN = "torch.distributed.checkpoint"
_NAMES = {
    ("collections", "OrderedDict"),
    ("pathlib", "PosixPath"),
    ("pathlib._local", "PosixPath"),  # Python 3.13
    ("torch", "Size"),
    ("torch.serialization", "_get_layout"),
    (f"{_TORCH_OWN}.filesystem", "_StorageInfo"),
    (f"{_TORCH_OWN}.metadata", "BytesStorageMetadata"),
    (f"{_TORCH_OWN}.metadata", "ChunkStorageMetadata"),
    (f"{_TORCH_OWN}.metadata", "Metadata"),
    (f"{_TORCH_OWN}.metadata", "MetadataIndex"),
    (f"{_TORCH_OWN}.metadata", "StorageMeta"),
    (f"{_TORCH_OWN}.metadata", "TensorProperties"),
    (f"{_TORCH_OWN}.metadata", "TensorStorageMetadata"),
    (f"{_TORCH_OWN}.metadata", "_MEM_FORMAT_ENCODING"),
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        if (module, name) in _NAMES or (module == "torch" and isinstance(getattr(torch, name, None), torch.dtype)):
            return super().find_class(module, name)
        raise pickle.UnpicklingError(f"a checkpoint's metadata has no use for {module}.{name}")


class SafeReader(FileSystemReader):  # type: ignore[misc]
    """Takes metadata that consists of torch's own descriptions alone."""

    def read_metadata(self, *args: Any, **kwargs: Any) -> Any:
        with open(Path(self.path) / ".metadata", "rb") as stream:
            return _Unpickler(stream).load()


class SafePlanner(DefaultLoadPlanner):  # type: ignore[misc]
    """Takes plain values alone where a value is no tensor."""

    def load_bytes(self, read_item: Any, value: io.BytesIO) -> None:
        torch.load(value, weights_only=True)
        value.seek(0)
        super().load_bytes(read_item, value)
