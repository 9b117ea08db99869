"""Pickles of plain values, as sentence-transformers and naver publish `{qid: {did: score}}`.

Loading a pickle can run any code, but only through the classes and functions that it names. Here every such name is
refused, so that numbers, strings, lists, tuples and dicts are all that a file can hold. It is read whole, into memory.
"""

from __future__ import annotations

import gzip
import pickle
import zlib
from pathlib import Path
from typing import Any

from distill.errors import DataError
from distill.importing.readers.base import reading

_SUFFIXES = {".pkl", ".pickle"}
# what the unpickler raises for bytes that are no pickle, or half of one
_MALFORMED = (
    pickle.UnpicklingError,
    EOFError,
    ValueError,
    TypeError,
    KeyError,
    IndexError,
    AttributeError,
    ImportError,
    OverflowError,
    MemoryError,
)


def is_pickle(path: Path) -> bool:
    """Whether a file's name is that of a pickle, plain or gzipped."""
    return bool(_SUFFIXES & set(path.suffixes))


def read_pickle(path: Path) -> Any:
    """Return the numbers, strings, lists, tuples and dicts of a pickle.

    Raises `DataError`, naming it, for a class or function in the file, and for a file that is no whole pickle.
    """
    path = Path(path)
    with reading(path):
        try:
            with gzip.open(path, "rb") if path.suffix == ".gz" else open(path, "rb") as file:
                return _PlainUnpickler(file).load()
        except _Refused as error:
            raise DataError(
                f"this pickle holds {error}, and only numbers, strings, lists, tuples and dicts are read from one; "
                "load it where you trust it, and write its content as JSON",
                path=path,
            ) from None
        except gzip.BadGzipFile as error:
            raise DataError(f"damaged gzip file: {error}", path=path) from None
        except (*_MALFORMED, zlib.error) as error:
            raise DataError(f"not a whole pickle: {error}", path=path) from None


class _Refused(Exception):
    pass


class _PlainUnpickler(pickle.Unpickler):
    def find_class(self, module: str, name: str) -> Any:
        raise _Refused(f"{module}.{name}")

    def persistent_load(self, identifier: Any) -> Any:
        raise _Refused("a reference to an object outside it")
