"""Run something right after a module is imported for the first time.

`import hf_vlp` has to make its classes known to the Auto classes and to `pipeline`, whose modules take seconds to
import. It leaves a callback instead: nobody pays for a module before using it.
"""

import importlib.abc
import importlib.util
import sys
from collections.abc import Callable


class AfterImport(importlib.abc.MetaPathFinder):
    """Finder that finds nothing by itself: it wraps the loader that another finder returns."""

    def __init__(self):
        self.callbacks: dict[str, list[Callable[[], None]]] = {}

    def find_spec(self, name, path, target=None):
        if name not in self.callbacks:
            return None
        for finder in sys.meta_path:
            spec = None if finder is self else finder.find_spec(name, path, target)
            if spec is not None and spec.loader is not None:
                self._wrap(name, spec.loader)
                return spec
        return None

    def _wrap(self, name, loader):
        exec_module = loader.exec_module

        def exec_module_and_call(module):
            exec_module(module)
            for callback in self.callbacks.pop(name, ()):
                callback()

        loader.exec_module = exec_module_and_call


_after_import = AfterImport()


def after_import(module_name: str, callback: Callable[[], None]) -> None:
    """Call `callback` once, when `module_name` has been imported: now if it already is."""
    if module_name in sys.modules:
        callback()
        return
    if _after_import not in sys.meta_path:
        sys.meta_path.insert(0, _after_import)
    _after_import.callbacks.setdefault(module_name, []).append(callback)


__all__ = ["after_import"]
