"""Finding Python modules without running their code, or that of their packages."""

from __future__ import annotations

import importlib.util
import os
from importlib.machinery import (
    BYTECODE_SUFFIXES,
    EXTENSION_SUFFIXES,
    SOURCE_SUFFIXES,
    ExtensionFileLoader,
    FileFinder,
    ModuleSpec,
    PathFinder,
    SourceFileLoader,
    SourcelessFileLoader,
)

_LOADERS = (
    (ExtensionFileLoader, EXTENSION_SUFFIXES),
    (SourceFileLoader, SOURCE_SUFFIXES),
    (SourcelessFileLoader, BYTECODE_SUFFIXES),
)


def locate(module: str) -> ModuleSpec | None:
    """Find an installed module, or one in the working folder; None if there is none."""
    top, *inner = module.split(".")
    try:
        spec = importlib.util.find_spec(top) or PathFinder.find_spec(top, [os.getcwd()])
    except ValueError:  # such as __main__
        return None
    name = top
    for part in inner:
        name = f"{name}.{part}"
        folders = (spec.submodule_search_locations or ()) if spec is not None else ()
        found = (FileFinder(folder, *_LOADERS).find_spec(name) for folder in folders)
        spec = next((inside for inside in found if inside is not None), None)
    return spec
