"""Has modules patched as soon as the script imports them, and imports none of them itself.

Loaded by rank.py in any interpreter from Python 3.9 on, as observer.py is: standard library only.
"""

from __future__ import annotations

import os
import sys
from importlib.util import spec_from_file_location
from typing import Any, Callable

Patch = Callable[[Any], None]


def patch(patches: dict[str, Patch]) -> None:
    """By module: what is loaded already is patched now, the rest when it is loaded. What fails leaves all as it is."""
    waiting = {}
    for name, patch_one in patches.items():
        module = sys.modules.get(name)
        if module is None:
            waiting[name] = patch_one
        else:
            apply(patch_one, module)
    package = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    sys.meta_path.insert(0, Finder(waiting, package))


def apply(patch: Patch, module: Any) -> None:
    try:
        patch(module)
    except Exception:  # noqa: S110 - another torch than was known when this was written
        pass


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
