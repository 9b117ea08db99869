"""What a file is, by its first bytes: said before it is called damaged."""

from __future__ import annotations

from pathlib import Path

from distill.errors import DataError

HEAD_BYTES = 32
_TYPES: tuple[tuple[bytes, str, str], ...] = (  # first bytes, name, what to do
    (b"\x1f\x8b", "gzip", "give it a name that ends in .gz, or unpack it with gunzip"),
    (b"\x28\xb5\x2f\xfd", "Zstandard", "unpack it with `zstd -d`"),
    (b"BZh", "bzip2", "unpack it with bunzip2"),
    (b"\xfd7zXZ\x00", "xz", "unpack it with unxz"),
    (b"PK\x03\x04", "ZIP archive (or a spreadsheet)", "unpack it, or save the sheet as CSV in UTF-8"),
    (b"\xd0\xcf\x11\xe0", "old Office file", "save the sheet as CSV in UTF-8"),
    (b"PAR1", "Parquet", "give it a name that ends in .parquet"),
    (b"ARROW1", "Arrow", "load it with `datasets` or pyarrow and write Parquet or JSONL"),
    (b"\x93NUMPY", "NumPy array", "write its content as JSONL"),
    (b"\x89HDF", "HDF5", "write its content as JSONL"),
    (b"SQLite format 3\x00", "SQLite database", "export the table as CSV in UTF-8"),
    (b"\xff\xfe", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
    (b"\xfe\xff", "UTF-16 text", "convert it: iconv -f UTF-16 -t UTF-8"),
    (b"version https://git-lfs", "Git LFS pointer", "fetch the file itself with `git lfs pull`"),
    (b"%PDF", "PDF", "extract its text first"),
)
_PICKLE_PROTOCOLS = b"\x02\x03\x04\x05"


def refuse_other_types(path: Path, head: bytes, *, packed: bool = False) -> None:
    """Raise `DataError`, with what to do, if these first bytes of a file are not those of UTF-8 text.

    `packed`: the bytes are of what a gzip file contains.
    """
    inside = "a gzip file with " if packed else ""
    for magic, name, remedy in _TYPES:
        if head.startswith(magic):
            raise DataError(f"is {inside}{_article(name)} {name}, not a text file; {remedy}", path=path)
    if len(head) > 1 and head[:1] == b"\x80" and head[1] in _PICKLE_PROTOCOLS:
        raise DataError(
            f"is {inside}a pickle, which can run any code when it is loaded; load it where you trust it, and write its "
            "content as JSON. Only lists and scores of ids (mine.miners of kind run, data.source of kind naver) are "
            "read from pickles of plain values, under a name that ends in .pkl or .pkl.gz",
            path=path,
        )
    if b"\x00" in head[:4]:
        raise DataError(f"is {inside}a binary file or UTF-16/UTF-32 text, not UTF-8 text", path=path)


def _article(name: str) -> str:
    return "an" if name[0] in "AO" or name.startswith("xz") else "a"
