"""A recipe with all stages on a BEIR folder of a hundred passages, which runs in half a minute."""

from __future__ import annotations

import json
from pathlib import Path

from distill.config import Recipe
from distill.recipe.load import parse_recipe

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
THINGS = ("book", "house", "river", "road", "table", "market", "school", "garden", "window", "paper")


def write_beir(data: Path) -> None:
    (data / "qrels").mkdir(parents=True)
    passages = [
        {"_id": f"{a}-{b}", "title": f"{a} {b}", "text": f"the {b} of number {a} is here , and people see it ."}
        for a in NUMBERS
        for b in THINGS
    ]
    queries = [{"_id": f"q-{p['_id']}", "text": f"where is {p['title']}"} for p in passages[::2]]
    (data / "corpus.jsonl").write_text("\n".join(map(json.dumps, passages)))
    (data / "queries.jsonl").write_text("\n".join(map(json.dumps, queries)))
    for split, rows in (("train", queries[:30]), ("dev", queries[30:40]), ("test", queries[40:])):
        lines = "".join(f"{query['_id']}\t{query['_id'][2:]}\t1\n" for query in rows)
        (data / "qrels" / f"{split}.tsv").write_text("query-id\tcorpus-id\tscore\n" + lines)


def whole_recipe(root: Path, mlm: Path, sentence: Path) -> Recipe:
    """Return the recipe, with its data in root/data and its run in root/run."""
    write_beir(root / "data")
    return parse_recipe(
        {
            "name": "whole",
            "run_dir": str(root / "run"),
            "data": {"source": {"kind": "beir", "path": str(root / "data")}},
            "mine": {
                "miners": {"bm25": {"kind": "bm25", "top": 5, "sample": 2, "depth": 20}},
                "rerank_depth": 5,
                "shard_queries": 10,
            },
            "teachers": {
                "tuned": {
                    "kind": "cross-encoder",
                    "model": str(sentence),
                    "max_length": 32,
                    "dtype": "float32",
                    "fine_tune": {"folds": 2, "negatives": 2, "batch_size": 16, "lr": 1e-3},
                },
                "bi-encoder": {"kind": "bi-encoder", "model": str(sentence), "dtype": "float32"},
                "bm25": {"kind": "bm25"},
            },
            "label": {"map_to": "tuned"},
            "student": {"model": str(mlm), "query_max_length": 16, "passage_max_length": 24},
            "train": {
                "batch_size": 8,
                "negatives": 3,
                "steps": 6,
                "lr": 1e-3,
                "precision": "fp32",
                "evaluate_every": 3,
                "losses": [{"kind": "kl"}, {"kind": "margin-mse", "weight": 0.05}],
                "passage_regularizers": [{"kind": "flops", "weight": 1e-3, "ramp_steps": 4}],
            },
            "evaluate": {"precision": "float32"},
        }
    )
