"""`distill inspect` and `distill search`: looking into checkpoints, stores and shards.

A shard holds row numbers; here they are joined with the texts of the run folder that it lies in.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from distill.data.arrow import RowReader
from distill.data.layout import RunFolder, run_at
from distill.data.texts import TextStore
from distill.errors import DataError, StudentError

_TEXT_WIDTH = 100


def inspect_path(path: str | Path, text: str | None = None, *, rows: int = 20, as_query: bool = False) -> None:
    """Print the strongest terms of `text` under a checkpoint, by any name that `load_checkpoint` takes, or the first
    rows of a shard or store."""
    place = Path(path)
    if place.suffix == ".arrow" and not place.is_dir():
        _print_shard(place, rows)
    elif place.is_file():
        raise DataError("not a checkpoint folder, nor an .arrow shard or store", path=place)
    elif text is None:
        raise DataError(
            ("give" if place.exists() else "no such file or folder; if it is a model of the hub, give")
            + ' a text to encode: distill inspect CHECKPOINT "text"',
            path=path,
        )
    else:
        _print_terms(path, text, rows, as_query)


def search_and_print(
    checkpoint: str | Path, data: Path, query: str, *, beside: str | Path | None = None, top: int = 5
) -> None:
    """Print the best passages of a run folder, or of any data that `distill init` recognises, and why they matched."""
    from distill.evaluation.explain import encode_collection, open_model, search_and_explain

    ids, texts, passages = _collection(data)
    for path in (checkpoint, *((beside,) if beside else ())):
        model = open_model(path)
        hits = search_and_explain(model, encode_collection(model, passages), query, top)
        print(f"\n{path}: {query!r}" + ("" if hits else "  (no passage shares a term with the query)"))
        for rank, hit in enumerate(hits, start=1):
            terms = ", ".join(f"{term.text} {term.weight:.2f}" for term in hit.matches[:8])
            print(f"{rank:>3}. {hit.score:7.3f}  {ids(hit.row)}  {_short(texts(hit.row))}")
            print(f"              {terms}")


def _collection(data: Path):
    """Ids and texts by row, and the passages in the form that `encode_collection` takes."""
    folder = run_at(data)
    if folder.passages.is_file():
        store = TextStore.open(folder.passages)
        return (lambda row: store.ids(np.array([row]))[0]), (lambda row: store.texts(np.array([row]))[0]), folder
    from distill.data.inspect import sniff
    from distill.data.readers import read_passages

    ids, texts = read_passages(sniff(data).data)
    return ids.__getitem__, texts.__getitem__, texts


def _print_terms(checkpoint: str | Path, text: str, rows: int, as_query: bool) -> None:
    from distill.evaluation.explain import explain, open_model

    folder = Path(checkpoint)
    if folder.is_dir() and not any((folder / name).is_file() for name in ("config.json", "modules.json")):
        raise StudentError(f"{checkpoint}: not a checkpoint (it has no config.json)")
    terms = explain(open_model(checkpoint), text, "query" if as_query else "passage")
    print(f"{len(terms)} active dimensions; the strongest:")
    widest = max((term.weight for term in terms), default=1.0)
    for term in terms[:rows]:
        print(f"  {term.weight:6.3f}  {term.text:<20} {'█' * round(30 * term.weight / widest)}")


def _print_shard(path: Path, rows: int) -> None:
    reader = RowReader(path)
    print(f"{path}: {len(reader):,} rows")
    for key, value in reader.metadata.items():
        print(f"  {key}: {value}")
    shown = reader.take(np.arange(min(rows, len(reader)))).to_pylist()
    names = {field.name for field in reader.schema}
    if "query" not in names:
        for row in shown:
            print("  " + "  ".join(f"{name}={_short(str(value))}" for name, value in row.items()))
        return
    run, split = _run_of(path)
    lists = _with_candidates(run, split, path, shown) if "scores" in names else shown
    queries, passages = TextStore.open(run.queries(split)), TextStore.open(run.passages)
    for row in lists:
        number = np.array([row["query"]])
        print(f"\nquery {row['query']} ({queries.ids(number)[0]}): {_short(queries.texts(number)[0])}")
        for line in _pairs(row, passages):
            print(line)


def _pairs(row: dict, passages: TextStore) -> Iterator[str]:
    """One line a passage of a candidate, score or label row; judgements come as a single passage."""
    numbers = row["passages"] if "passages" in row else [row["passage"]]
    ids, texts = passages.ids(np.array(numbers)), passages.texts(np.array(numbers))
    for i, number in enumerate(numbers):
        positive = "+" if row.get("positive", [False] * len(numbers))[i] else " "
        values = [f"{row[name][i]:9.3f}" for name in ("labels", "scores") if name in row]
        values += [f"rank {row['rank'][i]:>4}"] if "rank" in row else []
        values += [f"grade {row['grade']}"] if "grade" in row else []
        yield f"  {positive} {' '.join(values)}  {number} ({ids[i]}): {_short(texts[i])}"


def _with_candidates(run: RunFolder, split: str, path: Path, rows: list[dict]) -> list[dict]:
    """Score rows hold no passages: they are aligned with the candidate shard of the same name."""
    candidates = RowReader(run.candidates(split) / path.name).take(np.arange(len(rows))).to_pylist()
    return [{**theirs, **ours} for ours, theirs in zip(rows, candidates, strict=True)]


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
    raise DataError("lies in no run folder, so its row numbers cannot be joined with texts", path=path)


def _short(text: str) -> str:
    text = " ".join(text.split())
    return text if len(text) <= _TEXT_WIDTH else text[: _TEXT_WIDTH - 1] + "…"
