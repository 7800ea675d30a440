"""The ``rados`` and ``rbd`` modules, which no package registry has: they come with Ceph's own packages.

Debian installs them for the system's interpreter. An environment made from another one of the same version can load
them as well, because the name of a compiled module carries the ABI that it fits. Only the two modules are taken, not
the directory they lie in, so that nothing else of the system's packages leaks into the environment.
"""

from __future__ import annotations

import importlib
import importlib.machinery
import importlib.util
import sys
import threading
from types import ModuleType
from typing import Any, NamedTuple

from whimbrel.errors import Unsupported

SYSTEM_DIRECTORIES = (
    "/usr/lib/python3/dist-packages",
    f"/usr/lib/python3.{sys.version_info.minor}/site-packages",
    f"/usr/lib64/python3.{sys.version_info.minor}/site-packages",
)
_lock = threading.Lock()


class Binding(NamedTuple):
    """The two modules; both are compiled and have no types."""

    rados: Any
    rbd: Any


def load() -> Binding:
    """The modules, loaded when first asked for. Raises Unsupported where they are missing."""
    with _lock:
        # rbd is linked against the types of rados, so that one comes first
        return Binding(_module("rados"), _module("rbd"))


def _module(name: str) -> ModuleType:
    if name in sys.modules:
        return sys.modules[name]
    try:
        return importlib.import_module(name)
    except ImportError:
        pass
    spec = importlib.machinery.PathFinder.find_spec(name, list(SYSTEM_DIRECTORIES))
    if spec is None or spec.loader is None:
        raise Unsupported(
            f"this interpreter ({sys.version_info.major}.{sys.version_info.minor}) has no module {name!r} for Ceph",
            action="install python3-rbd, and run the worker with the Python version that it was built for",
        )
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except ImportError as error:
        del sys.modules[name]
        raise Unsupported(
            f"module {name!r} cannot be loaded: {error}", action="install librbd1 and librados2 of the same version"
        ) from error
    return module
