"""Checkpoints on the judged collections of a suite: one table with its mean, and what it was made from.

Every collection has a folder of its own, a run folder without training: its texts are imported once, and every system
leaves a TREC run and its values per query there, under a fingerprint of what they depend on. What is there is not
measured again, so an interrupted benchmark goes on where it was.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import xxhash

from distill.config import Dtype, Evaluate
from distill.config.base import nearest
from distill.config.suite import Part, Suite, SuiteCollection
from distill.errors import DataError, RecipeError
from distill.evaluation import metrics
from distill.evaluation.collection import Collection, open_collection
from distill.evaluation.evaluate import bm25_ranking, search_together, write_run
from distill.evaluation.places import Place, place_of, remedy
from distill.evaluation.rerank import Ranking
from distill.pipeline.registry import stage_of
from distill.pipeline.run import run_stage
from distill.recipe.load import parse_recipe
from distill.retrieval.bm25_settings import bm25_fields
from distill.run.files import read_object, write_json
from distill.run.fingerprint import fingerprint
from distill.run.manifest import FORMAT, require_manifest
from distill.run.model_ref import ModelRef
from distill.run.run import Run

log = logging.getLogger(__name__)

BM25 = "BM25"
DEPTH = 1000  # of the TREC runs
_Found = tuple[SuiteCollection, list[tuple[Part, Place]]]


@dataclass(frozen=True)
class Options:
    """How a benchmark is carried out; see `distill benchmark --help`."""

    data: Path | None = None
    out: Path = Path("runs/benchmark")
    download: bool = False
    allow_missing: bool = False
    batch_tokens: int | None = None
    precision: Dtype = "float32"
    trust_remote_code: bool = False
    redo: bool = False


def benchmark(checkpoints: Sequence[str], suite: Suite, options: Options) -> dict[str, Any]:
    """Measure checkpoints and BM25 on a suite; returns the content of <out>/benchmark.json.

    `collections` has a row per collection: its `values` (system -> measure -> mean; without a system that ranks no
    passage), the `published` ones and the paired `tests` of each checkpoint against BM25 and the checkpoints after it;
    `mean` and `tests` are over all collections. Raises `DataError` if a collection is missing, unless `allow_missing`,
    and if all are; `FingerprintError` if a folder was made of other texts, unless `redo`.
    """
    metrics.parse_measures(suite.metrics, "metrics")
    metrics.check_depth(suite.metrics, DEPTH)
    models = {name: ModelRef.parse(path) for name, path in system_names(checkpoints).items()}
    identities = {name: model.identity() for name, model in models.items()}
    found, missing = _found(suite, options)
    if not found or (missing and not options.allow_missing):
        raise DataError(
            "\n".join(
                f"{collection.name} is missing: {remedy(collection, options.data, options.download)}"
                for collection in missing
            )
            + ("" if not found else "\nWith --allow-missing the others are measured, and the mean is theirs")
        )
    measured = [
        (collection, [_Measured.of(part, place, collection, suite, options) for part, place in parts])
        for collection, parts in found
    ]
    for group in _by_passages([part for _, parts in measured for part in parts]):
        _measure(group, BM25, {"bm25": True}, options)
        for name, model in models.items():
            _measure(group, name, identities[name], options, model)
    rows = [_row(collection, parts, suite) for collection, parts in measured]
    systems = [BM25, *models]
    result = {
        "metrics": list(suite.metrics),
        "systems": {
            name: {"model": models[name].name, **identities[name]} if name in models else {} for name in systems
        },
        "collections": [{key: value for key, value in row.items() if key != "per_query"} for row in rows],
        "mean": {
            name: {metric: float(np.mean([row["values"][name][metric] for row in rows])) for metric in suite.metrics}
            for name in systems
            if all(name in row["values"] for row in rows)
        },
        "published_mean": _published_means(rows, suite.metrics[0]),
        "tests": _tests_over(rows, suite.metrics[0]),
        "missing": [collection.name for collection in missing],
        "sources": suite.sources,
    }
    write_json(options.out / "benchmark.json", result)
    return result


def chosen(suite: Suite, names: Sequence[str]) -> Suite:
    """Return the suite with the collections of these names only, all for none. Raises `RecipeError` for others."""
    known = [collection.name for collection in suite.collections]
    for name in names:
        if name not in known:
            raise RecipeError(f"--collection: the suite has no {name!r}{nearest(name, known)}")
    kept = tuple(collection for collection in suite.collections if not names or collection.name in names)
    return suite.model_copy(update={"collections": kept})


def system_names(checkpoints: Sequence[str]) -> dict[str, str]:
    """Name -> checkpoint: a hub name as it is, of a folder its name, or its run's if it is called `model`."""
    named: dict[str, str] = {}
    for checkpoint in checkpoints:
        ref = ModelRef.parse(checkpoint)
        ref.check_found()
        name = checkpoint
        if ref.folder is not None:
            folder = ref.folder.resolve()
            name = folder.parent.name if folder.name == "model" else folder.name
        if name in named or name == BM25:
            name = checkpoint
        if name in named:
            raise RecipeError(f"{checkpoint}: given twice")
        named[name] = checkpoint
    return named


@dataclass(frozen=True)
class _Measured:
    """One searched collection, with each system's values per query."""

    run: Run
    collection: Collection
    metrics: tuple[str, ...]
    excluded_grade: int | None
    data: str  # fingerprint of the texts and judgements
    values: dict[str, dict[str, np.ndarray]]  # system -> measure -> float64 [queries]
    costs: dict[str, dict[str, float]]
    silent: set[str]  # systems that rank no passage for any query

    @classmethod
    def of(cls, part: Part, place: Place, collection: SuiteCollection, suite: Suite, options: Options) -> _Measured:
        name, home = collection.name, options.out / collection.name
        if part is not collection:
            name, home = f"{name}-{part.name}", home / part.name
        tree = {
            "name": name,
            "run_dir": str(home),
            "data": {
                "source": place.source.model_dump(mode="json", exclude_unset=True),
                "own_document": collection.own_document,
                "language": collection.language,
                "on_missing": "drop",
            },
            "teachers": {"bm25": {"kind": "bm25"}},  # a recipe has one; nothing is scored
        }
        search = Evaluate(depth=DEPTH, batch_tokens=options.batch_tokens, precision=options.precision)
        run = Run.of(parse_recipe(tree, origin=name).model_copy(update={"evaluate": search}))
        log.info("%s", name)
        run_stage(stage_of(run, "import"), run, options.redo)
        data = require_manifest(run.folder.data, "import").fingerprint
        judged, grade = open_collection(run.folder, place.split), collection.excluded_grade
        judged = judged if grade is None else judged.excluding(grade)
        return cls(run, judged, suite.metrics, grade, data, {}, {}, set())

    def load(self, system: str, identity: Mapping[str, Any], options: Options) -> bool:
        """Take a system's values if they are there; returns whether they are."""
        path = self._file(system)
        saved = read_object(path) if path.exists() else {}
        if saved.get("fingerprint") != self._fingerprint(system, identity, options):
            return False
        self._take(system, saved)
        return True

    def save(
        self, system: str, identity: Mapping[str, Any], options: Options, ranking: Ranking, costs: dict[str, float]
    ) -> None:
        """Write a system's TREC run and values."""
        saved = {
            "fingerprint": self._fingerprint(system, identity, options),
            "ranked": sum(map(len, ranking.values())),
            "values": self._values(ranking),
            "costs": costs,
        }
        tag = self._file(system).stem
        write_run(self.run.folder.trec_run(tag), ranking, self.collection, tag=tag)
        write_json(self._file(system), saved)
        self._take(system, saved)

    def _take(self, system: str, saved: Mapping[str, Any]) -> None:
        self.values[system] = {metric: np.array(values) for metric, values in saved["values"].items()}
        self.costs[system] = saved["costs"]
        if saved["ranked"]:
            mean = self.values[system][self.metrics[0]].mean()
            log.info("%s, %s: %s %.3f", self.run.recipe.name, system, self.metrics[0], mean)
        else:
            self.silent.add(system)
            log.warning("%s, %s: no passage is ranked for any query", self.run.recipe.name, system)

    def _file(self, system: str) -> Path:
        return self.run.folder.metrics / f"{system.replace('/', '--')}.json"

    def _fingerprint(self, system: str, identity: Mapping[str, Any], options: Options) -> str:
        return fingerprint(
            {
                "format": FORMAT,
                "data": self.data,
                "system": dict(identity),
                "metrics": list(self.metrics),
                **({} if self.excluded_grade is None else {"excluded_grade": self.excluded_grade}),
                **(bm25_fields(self.run) if system == BM25 else {"precision": options.precision}),
            }
        )

    def _values(self, ranking: Ranking) -> dict[str, list[float]]:
        top = {query: rows.tolist() for query, rows in ranking.items()}
        values = metrics.per_query(self.metrics, self.collection.grades, top)
        return {metric: value.tolist() for metric, value in values.items()}


def _measure(
    group: Sequence[_Measured],
    system: str,
    identity: Mapping[str, Any],
    options: Options,
    model: ModelRef | None = None,
) -> None:
    """Measure a checkpoint, or BM25, on the collections of the group that lack its values."""
    pending = [part for part in group if not part.load(system, identity, options)]
    if not pending:
        return
    searched = [(part.run, part.collection) for part in pending]
    results = (
        [bm25_ranking(*judged) for judged in searched]
        if model is None
        else search_together(model.name, group[0].run, searched, options.trust_remote_code)
    )
    for part, (ranking, costs) in zip(pending, results, strict=True):
        part.save(system, identity, options, ranking, costs)


def _by_passages(measured: Sequence[_Measured]) -> list[list[_Measured]]:
    """Group the collections that have the same passages: those are encoded once for the queries of all."""
    sizes = Counter(part.collection.passages.collection_size for part in measured)
    groups: dict[tuple[int, str], list[_Measured]] = {}
    for part in measured:
        size = part.collection.passages.collection_size
        groups.setdefault((size, _digest(part) if sizes[size] > 1 else ""), []).append(part)
    return list(groups.values())


def _digest(part: _Measured) -> str:
    """Hash of the ids and texts of a collection's passages, kept beside them, since reading them takes minutes."""
    path, passages = part.run.folder.root / "passages.json", part.collection.passages
    saved = read_object(path) if path.exists() else {}
    if saved.get("data") != part.data:
        digest, first = xxhash.xxh3_128(), 0
        for texts in passages.text_batches(passages.collection_size):
            ids = passages.ids(np.arange(first, first + len(texts)))
            digest.update("".join(f"{id_}\0{text}\0" for id_, text in zip(ids, texts, strict=True)).encode())
            first += len(texts)
        saved = {"data": part.data, "digest": digest.hexdigest()}
        write_json(path, saved)
    return str(saved["digest"])


def _row(collection: SuiteCollection, parts: Sequence[_Measured], suite: Suite) -> dict[str, Any]:
    """The row of a collection: the mean of its parts."""
    queries = sum(len(part.collection.grades) for part in parts)
    if collection.queries is not None and queries != collection.queries:
        log.warning(
            "%s has %d judged queries here; published figures are for %d, and cannot be compared",
            collection.name,
            queries,
            collection.queries,
        )
    systems = list(parts[0].values)
    ranking = [name for name in systems if not any(name in part.silent for part in parts)]
    per_query = {name: np.concatenate([part.values[name][suite.metrics[0]] for part in parts]) for name in ranking}
    return {
        "name": collection.name,
        "queries": queries,
        "passages": sum(part.collection.passages.collection_size for part in parts),
        "parts": len(collection.parts) or 1,
        "values": {
            name: {
                metric: float(np.mean([part.values[name][metric].mean() for part in parts])) for metric in suite.metrics
            }
            for name in ranking
        },
        "costs": {
            name: {cost: float(np.mean([part.costs[name][cost] for part in parts])) for cost in parts[0].costs[name]}
            for name in systems
        },
        "published": dict(collection.published) if collection.queries in (None, queries) else {},
        **({"note": collection.note} if collection.note else {}),
        "tests": _tests(per_query),
        "per_query": per_query,
    }


def _pairs(systems: Sequence[str]) -> list[tuple[str, str]]:
    """Every checkpoint with BM25 and with those after it."""
    checkpoints = [name for name in systems if name != BM25]
    return [
        (ours, theirs)
        for i, ours in enumerate(checkpoints)
        for theirs in (BM25, *checkpoints[i + 1 :])
        if theirs in systems
    ]


def _tests(per_query: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Paired tests on one collection."""
    return [
        {"ours": ours, "theirs": theirs, **metrics.paired_test(per_query[ours], per_query[theirs])}
        for ours, theirs in _pairs(list(per_query))
    ]


def _tests_over(rows: Sequence[Mapping[str, Any]], metric: str) -> list[dict[str, Any]]:
    """Paired tests over the queries of all collections that both systems rank passages of; `ahead`: on how many."""
    tests = []
    for ours, theirs in _pairs(list(dict.fromkeys(name for row in rows for name in row["values"]))):
        both = [row for row in rows if ours in row["values"] and theirs in row["values"]]
        if both:
            values = (np.concatenate([row["per_query"][name] for row in both]) for name in (ours, theirs))
            ahead = sum(row["values"][ours][metric] > row["values"][theirs][metric] for row in both)
            test = {**metrics.paired_test(*values), "collections": len(both), "ahead": ahead}
            tests.append({"ours": ours, "theirs": theirs, **test})
    return tests


def _published_means(rows: Sequence[Mapping[str, Any]], metric: str) -> dict[str, dict[str, Any]]:
    """Each published system's mean, if it has a figure for every collection."""
    systems = dict.fromkeys(name for row in rows for name in row["published"])
    return {
        name: {metric: float(np.mean([row["published"][name] for row in rows]))}
        for name in systems
        if all(name in row["published"] for row in rows)
    }


def _found(suite: Suite, options: Options) -> tuple[list[_Found], list[SuiteCollection]]:
    """The collections whose parts are all there, with their places, and the missing ones."""
    found: list[_Found] = []
    missing: list[SuiteCollection] = []
    for collection in suite.collections:
        parts: tuple[Part, ...] = collection.parts or (collection,)
        places = [place_of(part, options.data, options.download) for part in parts]
        if any(place is None for place in places):
            missing.append(collection)
        else:
            found.append((collection, [(part, place) for part, place in zip(parts, places, strict=True) if place]))
    return found, missing
