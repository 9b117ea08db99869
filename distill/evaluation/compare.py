"""Test whether one run is better than another: paired tests over the same judged queries.

A run is a run folder (its student) or a TREC run file. Judgements come from the run folder or from a qrels file.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from distill.errors import DataError
from distill.evaluation import metrics
from distill.evaluation.collection import Collection, open_collection
from distill.importing.readers.naver import run_lines
from distill.importing.readers.qrels import read_qrels
from distill.run.files import read_json
from distill.run.layout import run_at

Judgements = dict[str, dict[str, int]]  # query id -> passage id -> grade; only queries with a positive


@dataclass(frozen=True)
class _Run:
    path: Path
    ranking: dict[str, list[str]]  # query id -> passage ids, best first
    judgements: Judgements | None
    texts: dict[str, str]  # query id -> text of the judged queries; empty outside run folders


def compare(
    a: Path, b: Path, names: Sequence[str] = ("nDCG@10",), *, qrels: Path | None = None, most: int = 10
) -> dict[str, Any]:
    """Compare two runs under each measure; a query that a run has no ranking for counts as 0.

    Each of `comparisons` has `metric`, the means `a` and `b`, their `difference` (a - b), `t_test` and
    `randomisation_test` (p, two-sided), and the number of queries for which a is better (`wins`), worse (`losses`) or
    equal (`ties`). `differ_most` lists the `most` queries with the largest differences under the first measure. Raises
    `DataError` for runs without judgements or with different ones.
    """
    metrics.parse_measures(names, "--metric")
    qrels_judgements = None if qrels is None else _read_judgements(qrels)
    runs = [_open_run(path, with_judgements=qrels is None) for path in (a, b)]
    judgements = _common_judgements(runs) if qrels_judgements is None else qrels_judgements
    for run in runs:
        if not judgements.keys() & run.ranking.keys():
            raise DataError("has a ranking for none of the judged queries: it is a run of other queries", path=run.path)
    values_a, values_b = (metrics.per_query(names, judgements, run.ranking) for run in runs)
    texts = {**runs[1].texts, **runs[0].texts}
    return {
        "a": str(a),
        "b": str(b),
        "queries": len(judgements),
        "comparisons": [_comparison(name, values_a[name], values_b[name]) for name in names],
        "differ_most": _differ_most(list(judgements), values_a[names[0]], values_b[names[0]], texts, most),
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
    """Read a run folder's student or a run file. A file in a run folder's metrics/ gets that folder's judgements."""
    folder = run_at(path if path.is_dir() else path.resolve().parent.parent)
    file = folder.trec_run("student") if path.is_dir() else path
    if not file.is_file():
        raise DataError(
            "the run has not been evaluated yet (it has no metrics/student.run); run `distill evaluate` first"
            if path.is_dir()
            else "no such run folder or TREC run file",
            path=path,
        )
    ranking = _read_ranking(file)
    in_run_folder = folder.evaluation.is_file() and file.resolve().parent == folder.metrics.resolve()
    if not in_run_folder or not with_judgements:
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
        raise DataError("no query has a relevant passage (a grade above 0)", path=path)
    return judged


def _read_ranking(path: Path) -> dict[str, list[str]]:
    """Rank passages by descending score; equal scores by descending id, as trec_eval does."""
    scores: dict[str, dict[str, float]] = {}
    for query, passage, score, line in run_lines(path):
        if passage in scores.setdefault(query, {}):
            raise DataError(f"query {query!r} has passage {passage!r} twice", path=path, line=line)
        scores[query][passage] = score
    return {
        query: [passage for passage, _ in sorted(scored.items(), key=lambda hit: (hit[1], hit[0]), reverse=True)]
        for query, scored in scores.items()
    }


def _common_judgements(runs: Sequence[_Run]) -> Judgements:
    judged = [(run.path, run.judgements) for run in runs if run.judgements is not None]
    if not judged:
        raise DataError(
            "no judgements: neither run lies in a run folder; give them with --qrels FILE",
            path=runs[0].path,
        )
    (path_a, judgements_a), (path_b, judgements_b) = judged[0], judged[-1]
    if (difference := _difference(judgements_a, judgements_b)) is not None:
        raise DataError(
            f"judged differently from {path_b}, so the figures are not comparable: {difference}; "
            "evaluate both runs on the same data and split, or give the judgements with --qrels FILE",
            path=path_a,
        )
    return judgements_a


def _difference(a: Judgements, b: Judgements) -> str | None:
    """Describe the first difference between two sets of judgements; None if they are equal."""
    if a.keys() != b.keys():
        query = min(a.keys() ^ b.keys())
        return (
            f"{len(a)} and {len(b)} judged queries, {len(a.keys() & b.keys())} in common "
            f"({query!r} is judged in only one of them)"
        )
    for query in a:
        for passage in sorted(a[query].keys() | b[query].keys()):
            grades = [judgements[query].get(passage) for judgements in (a, b)]
            if grades[0] != grades[1]:
                shown = " and ".join("no judgement" if grade is None else f"grade {grade}" for grade in grades)
                return f"query {query!r}, passage {passage!r}: {shown}"
    return None
