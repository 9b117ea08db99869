"""Is one run better than another? Both on the same judged queries, with paired tests over the queries' values.

A run is a run folder (its student) or a TREC run file; judgements are the folder's, or those of a qrels file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.data.files import read_json
from distill.data.layout import run_at
from distill.data.readers.naver import run_lines
from distill.data.readers.qrels import read_qrels
from distill.errors import DataError
from distill.evaluation import metrics
from distill.evaluation.collection import Collection, open_collection

Judgements = dict[str, dict[str, int]]  # query id -> passage id -> grade; queries with a positive only


@dataclass(frozen=True)
class _Run:
    path: Path
    ranking: dict[str, list[str]]  # query id -> passage ids, best first
    judgements: Judgements | None
    texts: dict[str, str]  # of the judged queries, where the run lies in a run folder


def compare(
    a: Path, b: Path, names: Sequence[str] = ("nDCG@10",), *, qrels: Path | None = None, most: int = 10
) -> dict[str, Any]:
    """Two runs under each measure, a query counting 0 where a run has nothing for it.

    Each of `comparisons` has `metric`, the means `a` and `b`, their `difference` (a - b), `t_test` and
    `randomisation_test` (p, two-sided), and for how many queries a is better (`wins`), worse or equal. `differ_most`:
    the queries with the largest differences under the first measure. Raises `DataError` for runs that cannot be
    compared: without judgements, or judged differently.
    """
    metrics.parse_measures(names, "--metric")
    given = None if qrels is None else _read_judgements(qrels)
    runs = [_open_run(path, with_judgements=qrels is None) for path in (a, b)]
    judgements = given if given is not None else _common_judgements(runs)
    for run in runs:
        if not judgements.keys() & run.ranking.keys():
            raise DataError("has none of the judged queries: it is a run of other queries", path=run.path)
    one, other = (metrics.per_query(names, judgements, run.ranking) for run in runs)
    texts = {**runs[1].texts, **runs[0].texts}
    return {
        "a": str(a),
        "b": str(b),
        "queries": len(judgements),
        "comparisons": [_comparison(name, one[name], other[name]) for name in names],
        "differ_most": _differ_most(list(judgements), one[names[0]], other[names[0]], texts, most),
    }


def _comparison(name: str, a: np.ndarray, b: np.ndarray) -> dict[str, Any]:
    test = metrics.paired_test(a, b)
    return {
        "metric": name,
        "a": float(a.mean()),
        "b": float(b.mean()),
        "difference": test["difference"],
        "t_test": test["p"],
        "randomisation_test": metrics.randomisation_test(a, b),
        "wins": test["wins"],
        "losses": test["losses"],
        "ties": test["queries"] - test["wins"] - test["losses"],
    }


def _differ_most(
    queries: list[str], a: np.ndarray, b: np.ndarray, texts: dict[str, str], most: int
) -> list[dict[str, Any]]:
    order = np.argsort(-np.abs(a - b), kind="stable")[:most]
    return [
        {"query": queries[i], "text": texts.get(queries[i]), "a": float(a[i]), "b": float(b[i])}
        for i in order.tolist()
        if a[i] != b[i]
    ]


def _open_run(path: Path, with_judgements: bool) -> _Run:
    """A run folder's student, or a run file; a file in a run folder's metrics/ has that folder's judgements."""
    folder = run_at(path if path.is_dir() else path.resolve().parent.parent)
    file = folder.trec_run("student") if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            "no such run folder or TREC run"
            if not path.is_dir()
            else "a run folder that is not evaluated yet: it has no metrics/student.run",
            path=path,
        )
    ranking = _read_ranking(file)
    inside = folder.evaluation.is_file() and file.resolve().parent == folder.metrics.resolve()
    if not inside or not with_judgements:
        return _Run(path, ranking, None, {})
    collection = open_collection(folder, read_json(folder.evaluation)["split"])
    names = collection.queries.ids(collection.query_rows)
    texts = dict(zip(names, collection.queries.texts(collection.query_rows), strict=True))
    return _Run(path, ranking, _judgements_of(collection, names), texts)


def _judgements_of(collection: Collection, names: list[str]) -> Judgements:
    return {
        name: dict(zip(collection.passages.ids(np.fromiter(graded, np.int64)), graded.values(), strict=True))
        for name, graded in zip(names, collection.grades.values(), strict=True)
    }


def _read_judgements(path: Path) -> Judgements:
    judgements: Judgements = {}
    for batch in read_qrels(path):
        for query, passage, grade in zip(
            *(batch.column(name).to_pylist() for name in ("query_id", "passage_id", "grade")), strict=True
        ):
            judgements.setdefault(query, {})[passage] = grade
    judged = {query: graded for query, graded in judgements.items() if max(graded.values()) > 0}
    if not judged:
        raise DataError("no query with a relevant passage", path=path)
    return judged


def _read_ranking(path: Path) -> dict[str, list[str]]:
    """Passages by descending score; equal scores by descending id, as trec_eval ranks them."""
    scores: dict[str, dict[str, float]] = {}
    for query, passage, score, line in run_lines(path):
        if passage in scores.setdefault(query, {}):
            raise DataError(f"query {query!r} has passage {passage!r} twice", path=path, line=line)
        scores[query][passage] = score
    return {
        query: [passage for passage, _ in sorted(found.items(), key=lambda hit: (hit[1], hit[0]), reverse=True)]
        for query, found in scores.items()
    }


def _common_judgements(runs: Sequence[_Run]) -> Judgements:
    judged = [run for run in runs if run.judgements is not None]
    if not judged:
        raise DataError(
            "neither run lies in a run folder, so nothing says what is relevant: give the judgements with --qrels FILE",
            path=runs[0].path,
        )
    if len(judged) == 2 and (difference := _difference(*(run.judgements for run in judged))) is not None:
        raise DataError(
            f"judged differently from {judged[1].path}, so their figures cannot be compared: {difference}; "
            "evaluate both on the same data and split, or give the judgements with --qrels FILE",
            path=judged[0].path,
        )
    return judged[0].judgements


def _difference(one: Judgements, other: Judgements) -> str | None:
    """Where two sets of judgements differ first, in words; None where they are equal."""
    if one.keys() != other.keys():
        query = min(one.keys() ^ other.keys())
        return (
            f"{len(one)} and {len(other)} judged queries, {len(one.keys() & other.keys())} of them the same "
            f"({query!r} is judged in one only)"
        )
    for query, graded in one.items():
        for passage in sorted(graded.keys() | other[query].keys()):
            grades = [side[query].get(passage) for side in (one, other)]
            if grades[0] != grades[1]:
                shown = " and ".join("no judgement" if grade is None else f"grade {grade}" for grade in grades)
                return f"query {query!r}, passage {passage!r}: {shown}"
    return None
