"""`distill inspect` and `distill search`: look into checkpoints, stores and shards.

A shard holds row numbers, which are joined here with the texts of its run folder.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np

from distill.cli.text import printable
from distill.errors import DataError, StudentError
from distill.importing.readers import read_passages
from distill.importing.sniff import sniff
from distill.run.layout import RunFolder, run_at
from distill.run.model_ref import ModelRef
from distill.store.arrow import RowReader
from distill.store.texts import TextStore

_TEXT_WIDTH = 100


def inspect_path(
    path: str | Path,
    text: str | None = None,
    *,
    rows: int = 20,
    as_query: bool = False,
    trust_remote_code: bool = False,
) -> None:
    """Print the strongest terms of `text` under a checkpoint, or the first rows of a shard or store.

    A checkpoint is any name that `load_student` takes.
    """
    file = Path(path)
    if file.suffix == ".arrow" and not file.is_dir():
        _print_shard(file, rows)
    elif file.is_file():
        raise DataError("neither a checkpoint folder nor an .arrow shard or store", path=file)
    elif text is None:
        raise DataError(
            ("give" if file.exists() else "no such file or folder; for a model on the hub, give")
            + ' a text to encode: distill inspect CHECKPOINT "text"',
            path=path,
        )
    else:
        _ask_the_hub(path)
        _print_terms(path, text, rows, as_query, trust_remote_code)


def search_and_print(
    checkpoint: str | Path,
    data: Path,
    query: str,
    *,
    beside: str | Path | None = None,
    top: int = 5,
    trust_remote_code: bool = False,
) -> None:
    """Print the best passages of a run folder, or of any data that `distill init` recognises, and why they matched."""
    if not query.strip():
        raise DataError("the query is empty; say what to search for")
    checkpoints = (checkpoint, *((beside,) if beside else ()))
    for path in checkpoints:
        _ask_the_hub(path)
    from distill.evaluation.explain import encode_collection, open_model, search_and_explain

    ids, texts, passages = _collection(data)
    for path in checkpoints:
        model = open_model(path, trust_remote_code=trust_remote_code)
        hits = search_and_explain(model, encode_collection(model, passages), query, top)
        _print(f"\n{path}: {query!r}" + ("" if hits else "  (no passage shares a term with the query)"))
        for rank, hit in enumerate(hits, start=1):
            terms = ", ".join(f"{term.text} {term.weight:.2f}" for term in hit.matches[:8])
            _print(f"{rank:>3}. {hit.score:7.3f}  {ids(hit.row)}  {_short(texts(hit.row))}")
            _print(f"              {terms}")


def _collection(data: Path) -> tuple[Callable[[int], str], Callable[[int], str], RunFolder | Sequence[str]]:
    """Functions that return a row's id and text, and the passages as `encode_collection` takes them."""
    folder = run_at(data)
    if folder.passages.is_file():
        store = TextStore.open(folder.passages)
        return (lambda row: store.ids(np.array([row]))[0]), (lambda row: store.texts(np.array([row]))[0]), folder

    ids, texts = read_passages(sniff(data).data)
    return ids.__getitem__, texts.__getitem__, texts


def _ask_the_hub(path: str | Path) -> None:
    """Raise `ModelError` for a name that is no folder and cannot be had; importing torch first would take seconds."""
    ref = ModelRef.parse(str(path))
    if ref.folder is None:
        ref.file("modules.json")


def _print_terms(checkpoint: str | Path, text: str, rows: int, as_query: bool, trust_remote_code: bool) -> None:
    from distill.evaluation.explain import explain, open_model

    folder = Path(checkpoint)
    if folder.is_dir() and not any((folder / name).is_file() for name in ("config.json", "modules.json")):
        raise StudentError(f"{checkpoint}: not a checkpoint (it has no config.json)")
    terms = explain(
        open_model(checkpoint, trust_remote_code=trust_remote_code), text, "query" if as_query else "passage"
    )
    _print(f"{len(terms)} active dimensions; the strongest:")
    widest = max((term.weight for term in terms), default=1.0)
    for term in terms[:rows]:
        _print(f"  {term.weight:6.3f}  {term.text:<20} {'█' * round(30 * term.weight / widest)}")


def _print_shard(path: Path, rows: int) -> None:
    reader = RowReader(path)
    _print(f"{path}: {len(reader):,} rows")
    for key, value in reader.metadata.items():
        _print(f"  {key}: {value}")
    shown = reader.take(np.arange(min(rows, len(reader)))).to_pylist()
    names = {field.name for field in reader.schema}
    if "query" not in names:
        for row in shown:
            _print("  " + "  ".join(f"{name}={_short(str(value))}" for name, value in row.items()))
        return
    run, split = _run_of(path)
    lists = _with_candidates(run, split, path, shown) if "scores" in names else shown
    queries, passages = TextStore.open(run.queries(split)), TextStore.open(run.passages)
    for row in lists:
        number = np.array([row["query"]])
        _print(f"\nquery {row['query']} ({queries.ids(number)[0]}): {_short(queries.texts(number)[0])}")
        for line in _pairs(row, passages):
            _print(line)


def _pairs(row: dict, passages: TextStore) -> Iterator[str]:
    """One line per passage of a candidate, score or label row; a judgement row has a single passage."""
    numbers = row["passages"] if "passages" in row else [row["passage"]]
    ids, texts = passages.ids(np.array(numbers)), passages.texts(np.array(numbers))
    for i, number in enumerate(numbers):
        positive = "+" if row.get("positive", [False] * len(numbers))[i] else " "
        values = [f"{row[name][i]:9.3f}" for name in ("labels", "scores") if name in row]
        values += [f"rank {row['rank'][i]:>4}"] if "rank" in row else []
        values += [f"grade {row['grade']}"] if "grade" in row else []
        yield f"  {positive} {' '.join(values)}  {number} ({ids[i]}): {_short(texts[i])}"


def _with_candidates(run: RunFolder, split: str, path: Path, rows: list[dict]) -> list[dict]:
    """Join score rows, which hold no passages, with the candidate shard of the same name."""
    candidates = RowReader(run.candidates(split) / path.name).take(np.arange(len(rows))).to_pylist()
    return [{**candidate, **row} for row, candidate in zip(rows, candidates, strict=True)]


def _run_of(path: Path) -> tuple[RunFolder, str]:
    """The run folder that a shard lies in, and its split."""
    for parent in path.resolve().parents:
        folder = run_at(parent)
        if folder.passages.is_file():
            split = next(
                (part for part in (path.parent.name, *path.stem.split(".")) if part in ("train", "dev", "test")), None
            )
            if split is None:
                break
            return folder, split
    raise DataError("is not inside a run folder, so its row numbers cannot be joined with texts", path=path)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _TEXT_WIDTH else text[: _TEXT_WIDTH - 1] + "…"


def _print(line: str) -> None:
    print(printable(line))
