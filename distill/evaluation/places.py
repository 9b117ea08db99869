"""Where the collections of a suite are: in folders of one's own, below `--data`, in ir_datasets or on the hub.

Folders may be in BEIR's layout, in MS MARCO's, or copies of a hub dataset (corpus/, queries/ and qrels/).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from distill.config import Beir, HuggingFace, IrDatasets, MsMarco, Source, Split
from distill.config.suite import Part, SuiteCollection
from distill.importing.readers.base import find_file
from distill.importing.readers.qrels import find_qrels
from distill.run.modules import locate


@dataclass(frozen=True)
class Place:
    """A collection as the import reads it, and the split of the import whose queries count."""

    source: Source
    split: Split = "test"


def place_of(part: Part, data: Path | None, download: bool) -> Place | None:
    """Find a collection: its own source, then a folder, then, with `download`, ir_datasets and the hub; None: missing.

    The disk is looked at, but no file is opened, and nothing is downloaded yet.
    """
    if part.source is not None:
        return Place(part.source)
    for folder in folders(part, data):
        if (place := _in_folder(part, folder)) is not None:
            return place
    if download and part.ir_datasets is not None and locate("ir_datasets") is not None:
        return Place(IrDatasets(kind="ir-datasets", splits={"test": part.ir_datasets}))
    if download and part.hub is not None:
        return Place(HuggingFace(kind="huggingface", dataset=part.hub, layout="beir"), part.hub_split)
    return None


def folders(part: Part, data: Path | None) -> Iterator[Path]:
    """Yield the folders in which a collection is looked for."""
    if part.path is not None:
        yield part.path
    elif data is not None:
        yield data / (part.folder or part.name)
        if part.folder and "/" in part.folder:
            yield data / part.folder.replace("/", "-")
        if part.hub is not None:
            yield data / part.hub.rpartition("/")[2]


def remedy(collection: SuiteCollection, data: Path | None, download: bool) -> str:
    """Say where a missing collection was looked for, and how to get it."""
    parts = collection.parts or (collection,)
    places = [str(folder) for part in parts for folder in list(folders(part, data))[:1]]
    if places:
        text = f"no corpus.jsonl in {', '.join(places[:3])}{' ...' if len(places) > 3 else ''}"
    else:
        text = f"name the folder that has {parts[0].folder or parts[0].name}/ in BEIR's layout (--data)"
    fetched = " or ".join(
        name
        for name, known in (
            ("ir_datasets", all(part.ir_datasets for part in parts)),
            ("the hub", all(part.hub for part in parts)),
        )
        if known
    )
    if fetched and not download:
        text += f"; --download fetches it through {fetched}"
    elif fetched:
        text += '; --download needs the package ir_datasets for it: pip install "splade-distill[ir-datasets]"'
    return text + (f"; its archive: {collection.archive}" if collection.archive else "")


def _in_folder(part: Part, folder: Path) -> Place | None:
    if not folder.is_dir():
        return None
    if find_file(folder, "corpus.jsonl"):
        return Place(Beir(kind="beir", path=folder, splits={"test": part.split}))
    if find_file(folder, "collection.tsv"):
        names = (f"{part.split}.small", part.split)  # MS MARCO's dev.small is the development set of all papers
        split = next((name for name in names if find_qrels(folder, f"qrels.{name}")), part.split)
        return Place(MsMarco(kind="msmarco", path=folder, splits={"test": split}))
    if all((folder / name).is_dir() for name in ("corpus", "queries", "qrels")):
        return Place(HuggingFace(kind="huggingface", dataset=str(folder), layout="beir"), part.hub_split)
    return None
