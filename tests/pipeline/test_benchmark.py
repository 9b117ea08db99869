"""`distill benchmark` on small collections, against ir-measures on the rankings of sentence-transformers' encoder."""

from __future__ import annotations

import gzip
import json
import signal
import subprocess
import sys
import time

import ir_measures
import numpy as np
import pytest
import scipy.stats
import yaml
from datasets import Dataset
from sentence_transformers import SparseEncoder
from typer.testing import CliRunner

from distill.cli.app import app
from distill.config.suite import Suite
from distill.errors import DataError, FingerprintError, RecipeError
from distill.evaluation import evaluate as evaluation
from distill.evaluation import places
from distill.evaluation.places import place_of, remedy
from distill.pipeline import benchmark as module
from distill.pipeline.benchmark import Options, benchmark, chosen, system_names
from distill.recipe.suites import load_suite, suite_names
from distill.reporting.benchmark import cells, markdown, write_pages
from distill.retrieval.encode import encode_blocks
from tests.helpers.small_run import PASSAGES, save_checkpoint

TEXTS = [text for text in PASSAGES if text]
QUERIES = {"q1": "cats and dogs", "q2": "the stock market today", "q3": "wind and rain", "q4": "a storm"}
QRELS = {
    "animals": {"q1": {"d6": 2, "d1": 1}, "q4": {"d5": 1}},
    "markets": {"q2": {"d2": 1, "d7": 2}},
    "weather": {"q3": {"d4": 1, "d5": 1, "d7": 1}},
}


def write_collection(folder, qrels, *, own: str | None = None):
    """A folder in BEIR's layout; `own`: a query that is a passage, too."""
    (folder / "qrels").mkdir(parents=True)
    passages = {f"d{i}": text for i, text in enumerate(TEXTS)}
    if own is not None:
        passages[own] = "something else that the query does not say, about cats and dogs"
    rows = [json.dumps({"_id": id_, "title": "", "text": text}) for id_, text in passages.items()]
    (folder / "corpus.jsonl").write_text("\n".join(rows) + "\n")
    rows = [json.dumps({"_id": id_, "text": text}) for id_, text in QUERIES.items()]
    (folder / "queries.jsonl").write_text("\n".join(rows) + "\n")
    lines = [f"{query}\t{passage}\t{grade}" for query, graded in qrels.items() for passage, grade in graded.items()]
    (folder / "qrels" / "test.tsv").write_text("\n".join(["query-id\tcorpus-id\tscore", *lines]) + "\n")
    return passages


def write_lines(path, lines):
    path.write_text("".join(f"{line}\n" for line in lines))


def with_passages_of_their_own(data):
    """Otherwise the three collections share their passages, and are searched together."""
    for name in ("markets", "weather"):
        with (data / name / "corpus.jsonl").open("a") as file:
            file.write(json.dumps({"_id": "own", "title": "", "text": f"a passage of {name}"}) + "\n")


@pytest.fixture
def data(tmp_path):
    for name, qrels in QRELS.items():
        write_collection(tmp_path / "data" / name, qrels)
    return tmp_path / "data"


@pytest.fixture
def checkpoints(tmp_path, tiny_mlm):
    save_checkpoint(tiny_mlm, tmp_path / "first" / "model")
    save_checkpoint(tiny_mlm, tmp_path / "second", top_k=4)
    return [str(tmp_path / "first" / "model"), str(tmp_path / "second")]


SUITE = Suite.model_validate(
    {
        "metrics": ["nDCG@10", "R@5"],
        "sources": {"Paper": "a paper, table 1"},
        "collections": [
            {"name": "animals", "queries": 2, "published": {"Paper": 0.5}, "note": "the second version"},
            {"name": "rest", "published": {"Paper": 0.25}, "parts": [{"name": "markets"}, {"name": "weather"}]},
        ],
    }
)


def expected(checkpoint, qrels, passages, metric="nDCG@10", left_out=()):
    """A measure of the checkpoint by sentence-transformers and ir-measures, per query."""
    encoder = SparseEncoder(checkpoint)
    vectors = encoder.encode_document(list(passages.values()), convert_to_sparse_tensor=False)
    run = {}
    for query in qrels:
        scores = encoder.similarity(encoder.encode_query([QUERIES[query]], convert_to_sparse_tensor=False), vectors)[0]
        hits = {id_: float(score) for id_, score in zip(passages, scores, strict=True) if score > 0}
        run[query] = {id_: score for id_, score in hits.items() if (query, id_) not in left_out}
    measure = ir_measures.parse_measure(metric)
    return {result.query_id: result.value for result in measure.iter_calc(qrels, run)}


def test_values_means_and_parts_equal_those_of_sentence_transformers(data, checkpoints, tmp_path):
    result = benchmark(checkpoints, SUITE, Options(data=data, out=tmp_path / "out"))
    passages = {f"d{i}": text for i, text in enumerate(TEXTS)}
    for name, checkpoint in zip(("first", "second"), checkpoints, strict=True):
        values = {part: expected(checkpoint, qrels, passages) for part, qrels in QRELS.items()}
        mean = {part: np.mean(list(value.values())) for part, value in values.items()}
        animals, rest = result["collections"]
        assert animals["values"][name]["nDCG@10"] == pytest.approx(mean["animals"])
        assert rest["values"][name]["nDCG@10"] == pytest.approx((mean["markets"] + mean["weather"]) / 2)
        assert result["mean"][name]["nDCG@10"] == pytest.approx(
            (mean["animals"] + (mean["markets"] + mean["weather"]) / 2) / 2
        )
    assert (animals["queries"], rest["queries"], rest["parts"]) == (2, 2, 2)
    assert result["published_mean"] == {"Paper": {"nDCG@10": 0.375}}
    assert [(test["ours"], test["theirs"], test["queries"], test["collections"]) for test in result["tests"]] == [
        ("first", "BM25", 4, 2),
        ("first", "second", 4, 2),
        ("second", "BM25", 4, 2),
    ]
    both = [
        [value for part in QRELS for value in expected(path, QRELS[part], passages).values()] for path in checkpoints
    ]
    test = result["tests"][1]
    assert test["p"] == pytest.approx(scipy.stats.ttest_rel(*both).pvalue)
    assert test["difference"] == pytest.approx(np.mean(both[0]) - np.mean(both[1]))
    means = [[row["values"][name]["nDCG@10"] for row in result["collections"]] for name in ("first", "second")]
    assert test["ahead"] == sum(ours > theirs for ours, theirs in zip(*means, strict=True))
    page = "\n".join(markdown(result, "small"))
    row = next(test for test in rest["tests"] if (test["ours"], test["theirs"]) == ("first", "second"))
    assert "| | first − BM25 | first − second | second − BM25 |" in page and f"{row['difference']:+.3f}, p" in page
    lines = (tmp_path / "out" / "rest" / "weather" / "metrics" / "first.run").read_text().splitlines()
    assert lines[0].split()[:2] == ["q3", "Q0"] and lines[0].split()[3] == "1"


def test_what_has_been_measured_is_not_measured_again(data, checkpoints, tmp_path, monkeypatch):
    with_passages_of_their_own(data)
    options = Options(data=data, out=tmp_path / "out")

    def killed(path, home, judged, trust_remote_code):
        if home.recipe.name == "rest-weather":
            raise KeyboardInterrupt
        return search(path, home, judged, trust_remote_code)

    search = module.search_together
    monkeypatch.setattr(module, "search_together", killed)
    with pytest.raises(KeyboardInterrupt):
        benchmark(checkpoints[:1], SUITE, options)
    assert not (tmp_path / "out" / "benchmark.json").exists()
    measured = []

    def counted(path, home, judged, trust_remote_code):
        measured.extend(run.recipe.name for run, _ in judged)
        return search(path, home, judged, trust_remote_code)

    monkeypatch.setattr(module, "search_together", counted)
    resumed = benchmark(checkpoints[:1], SUITE, options)
    assert measured == ["rest-weather"]
    assert benchmark(checkpoints[:1], SUITE, options) == resumed and len(measured) == 1
    assert benchmark(checkpoints[:1], SUITE, Options(data=data, out=tmp_path / "other")) == resumed


def test_passages_that_collections_share_are_encoded_once_with_the_same_results(
    data, checkpoints, tmp_path, monkeypatch
):
    write_collection(tmp_path / "more" / "arguments", QRELS["animals"], own="q1")
    (tmp_path / "more" / "arguments").rename(data / "arguments")
    (data / "weather" / "corpus.jsonl").write_bytes((data / "arguments" / "corpus.jsonl").read_bytes())
    (data / "markets" / "corpus.jsonl").write_bytes((data / "arguments" / "corpus.jsonl").read_bytes())
    collections = [
        {"name": "markets"},
        {"name": "animals"},  # has one passage less
        {"name": "arguments", "own_document": "same-id"},
        {"name": "weather"},
    ]
    suite = Suite.model_validate({"metrics": ["nDCG@10"], "collections": collections})
    encoded = []

    def counted(student, tokens, rows, side, *others):
        encoded.append(len(rows))
        return encode_blocks(student, tokens, rows, side, *others)

    monkeypatch.setattr(evaluation, "encode_blocks", counted)
    together = benchmark(checkpoints[:1], suite, Options(data=data, out=tmp_path / "together"))
    assert encoded == [len(TEXTS) + 1, len(TEXTS)]
    for row in together["collections"]:
        name = row["name"]
        alone = benchmark(checkpoints[:1], chosen(suite, [name]), Options(data=data, out=tmp_path / name))
        assert alone["collections"] == [row]
        runs = [tmp_path / out / name / "metrics" / "first.run" for out in ("together", name)]
        assert runs[0].read_bytes() == runs[1].read_bytes()


@pytest.mark.slow  # starts the command three times
def test_a_killed_command_goes_on_and_writes_what_an_undisturbed_one_writes(data, checkpoints, tmp_path):
    file, out = tmp_path / "mine.yaml", tmp_path / "out"
    file.write_text(yaml.safe_dump(SUITE.model_dump(mode="json", exclude_defaults=True)))
    command = [
        sys.executable,
        "-m",
        "distill.cli",
        "benchmark",
        checkpoints[0],
        "--suite",
        str(file),
        "--out",
        str(out),
    ]
    command += ["--data", str(data)]
    with_passages_of_their_own(data)
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    first = out / "animals" / "metrics" / "first.json"
    while not first.exists() and process.poll() is None:
        time.sleep(0.005)
    process.kill()
    assert process.wait() == -signal.SIGKILL and not (out / "benchmark.json").exists()
    written = first.stat().st_mtime_ns
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    undisturbed = benchmark(checkpoints[:1], SUITE, Options(data=data, out=tmp_path / "undisturbed"))
    assert json.loads((out / "benchmark.json").read_text()) == undisturbed
    assert first.stat().st_mtime_ns == written


def test_a_changed_checkpoint_is_measured_again(data, checkpoints, tmp_path, tiny_mlm):
    options = Options(data=data, out=tmp_path / "out")
    before = benchmark(checkpoints[:1], SUITE, options)
    save_checkpoint(tiny_mlm, tmp_path / "first" / "model", top_k=2)
    after = benchmark(checkpoints[:1], SUITE, options)
    assert after["mean"]["first"] != before["mean"]["first"] and after["mean"]["BM25"] == before["mean"]["BM25"]


def test_other_texts_are_refused_until_they_are_to_replace_the_old_ones(data, checkpoints, tmp_path):
    benchmark(checkpoints[:1], SUITE, Options(data=data, out=tmp_path / "out"))
    corpus = data / "animals" / "corpus.jsonl"
    corpus.write_text(corpus.read_text() + json.dumps({"_id": "new", "title": "", "text": "cats and dogs"}) + "\n")
    with pytest.raises(FingerprintError, match="add --redo"):
        benchmark(checkpoints[:1], SUITE, Options(data=data, out=tmp_path / "out"))
    result = benchmark(checkpoints[:1], SUITE, Options(data=data, out=tmp_path / "out", redo=True))
    assert result == benchmark(checkpoints[:1], SUITE, Options(data=data, out=tmp_path / "afresh"))


def test_the_querys_own_document_is_left_out_where_the_collections_rule_says_so(tmp_path, checkpoints):
    passages = write_collection(tmp_path / "data" / "arguments", QRELS["animals"], own="q1")
    collections = [{"name": "arguments", "own_document": "same-id"}, {"name": "kept", "folder": "arguments"}]
    suite = Suite.model_validate({"metrics": ["RR@10"], "collections": collections})
    result = benchmark(checkpoints[:1], suite, Options(data=tmp_path / "data", out=tmp_path / "out"))
    own = [("q1", "q1")]
    for row, left_out in zip(result["collections"], (own, []), strict=True):
        values = expected(checkpoints[0], QRELS["animals"], passages, "RR@10", left_out)
        assert row["values"]["first"]["RR@10"] == pytest.approx(np.mean(list(values.values())))
    run = (tmp_path / "out" / "arguments" / "metrics" / "first.run").read_text()
    assert "q1 Q0 q1" not in run


def test_passages_that_a_query_excludes_are_left_out_and_do_not_count(tmp_path, checkpoints):
    qrels = {"q1": {"d6": 1, "d1": -100, "d0": -100}, "q4": {"d5": 1, "d2": 0}}
    passages = write_collection(tmp_path / "data" / "excluding", qrels)
    collections = [{"name": "excluding", "excluded_grade": -100}]
    suite = Suite.model_validate({"metrics": ["nDCG@10"], "collections": collections})
    result = benchmark(checkpoints[:1], suite, Options(data=tmp_path / "data", out=tmp_path / "out"))
    judged = {query: {id_: max(grade, 0) for id_, grade in graded.items()} for query, graded in qrels.items()}
    values = expected(checkpoints[0], judged, passages, left_out=[("q1", "d1"), ("q1", "d0")])
    assert result["collections"][0]["values"]["first"]["nDCG@10"] == pytest.approx(np.mean(list(values.values())))
    lines = (tmp_path / "out" / "excluding" / "metrics" / "first.run").read_text().splitlines()
    ranked = [line.split()[2] for line in lines if line.startswith("q1 ")]
    assert len(ranked) == len(TEXTS) - 2 and not {"d0", "d1"} & set(ranked)


def test_missing_collections_are_named_with_the_remedy(data, checkpoints, tmp_path):
    suite = Suite.model_validate(
        {"collections": [*SUITE.model_dump()["collections"], {"name": "absent", "ir_datasets": "beir/absent"}]}
        | {"sources": SUITE.sources}
    )
    options = Options(data=data, out=tmp_path / "out")
    with pytest.raises(DataError, match=r"absent is missing: no corpus.jsonl in .*data/absent; --download fetches it"):
        benchmark(checkpoints[:1], suite, options)
    assert not (tmp_path / "out").exists()
    result = benchmark(checkpoints[:1], suite, Options(data=data, out=tmp_path / "out", allow_missing=True))
    assert result["missing"] == ["absent"] and len(result["collections"]) == 2
    with pytest.raises(DataError, match="name the folder that has animals/ in BEIR's layout"):
        benchmark(checkpoints[:1], SUITE, Options(out=tmp_path / "none", allow_missing=True))


def test_folders_in_other_layouts_give_the_same_values(data, checkpoints, tmp_path):
    """MS MARCO's files, packed files, and a copy of a hub dataset whose judgements have no grades, as NanoBEIR's."""
    texts = {f"d{i}": text for i, text in enumerate(TEXTS)}
    (data / "marco").mkdir()
    write_lines(data / "marco" / "collection.tsv", [f"{id_}\t{text}" for id_, text in texts.items()])
    write_lines(data / "marco" / "queries.dev.small.tsv", [f"{id_}\t{text}" for id_, text in QUERIES.items()])
    judged = [(query, passage, 1) for query, graded in QRELS["weather"].items() for passage in graded]
    rows = [f"{query}\t0\t{passage}\t{grade}" for query, passage, grade in judged]
    write_lines(data / "marco" / "qrels.dev.small.tsv", rows)
    (data / "packed" / "qrels").mkdir(parents=True)
    for name in ("corpus.jsonl", "queries.jsonl", "qrels/test.tsv"):
        content = (data / "weather" / name).read_bytes()
        (data / "packed" / f"{name}.gz").write_bytes(gzip.compress(content))
    tables = {
        "corpus": {"_id": list(texts), "text": list(texts.values())},
        "queries": {"_id": list(QUERIES), "text": list(QUERIES.values())},
        "qrels": {"query-id": [row[0] for row in judged], "corpus-id": [row[1] for row in judged]},
    }
    for name, table in tables.items():
        (data / "NanoWeather" / name).mkdir(parents=True)
        Dataset.from_dict(table).to_parquet(str(data / "NanoWeather" / name / "train-00000.parquet"))
    collections = [
        {"name": "weather"},
        {"name": "marco", "split": "dev"},
        {"name": "packed"},
        {"name": "nano", "hub": "somebody/NanoWeather", "hub_split": "train"},
    ]
    suite = Suite.model_validate({"collections": collections})
    rows = benchmark(checkpoints[:1], suite, Options(data=data, out=tmp_path / "out"))["collections"]
    assert all(row["values"] == rows[0]["values"] and row["queries"] == 1 for row in rows)


def test_downloads_are_from_ir_datasets_if_it_is_installed_and_else_from_the_hub(monkeypatch):
    part = load_suite("nano-beir").collections[0]
    assert place_of(part, None, download=False) is None
    for installed, kind, split in ((object(), "ir-datasets", "test"), (None, "huggingface", "train")):
        monkeypatch.setattr(places, "locate", lambda name, installed=installed: installed)
        place = place_of(part, None, download=True)
        assert (place.source.kind, place.split) == (kind, split)
    bright = load_suite("bright").collections[0]
    assert place_of(bright, None, download=True) is None and "needs the package ir_datasets" in remedy(
        bright, None, True
    )


def test_figures_for_other_queries_are_not_shown(data, checkpoints, tmp_path, caplog):
    tree = SUITE.model_dump()
    tree["collections"][0]["queries"] = 300
    result = benchmark(checkpoints[:1], Suite.model_validate(tree), Options(data=data, out=tmp_path / "out"))
    assert "animals has 2 judged queries here; published figures are for 300" in caplog.text
    assert result["collections"][0]["published"] == {} and result["published_mean"] == {}


def test_bm25_that_ranks_nothing_is_no_zero_in_the_table(tmp_path, checkpoints):
    write_collection(tmp_path / "data" / "other", {"q4": {"d5": 1}})
    queries = tmp_path / "data" / "other" / "queries.jsonl"
    queries.write_text(json.dumps({"_id": "q4", "text": "Unwetter"}) + "\n")
    suite = Suite.model_validate({"collections": [{"name": "other"}]})
    result = benchmark(checkpoints[:1], suite, Options(data=tmp_path / "data", out=tmp_path / "out"))
    assert "BM25" not in result["collections"][0]["values"] and "BM25" not in result["mean"]
    assert result["tests"] == [] and result["collections"][0]["tests"] == []
    assert cells(result)[1][2] == ""
    write_pages(result, "small", tmp_path / "out")
    assert "BM25 ranks no passage for any query" in (tmp_path / "out" / "benchmark.md").read_text()


def test_the_command_measures_a_suite_of_ones_own(data, checkpoints, tmp_path):
    file = tmp_path / "mine.yaml"
    collections = [{"name": "one", "path": "data/animals"}, {"name": "two", "path": "data/weather"}]
    file.write_text(yaml.safe_dump({"metrics": ["nDCG@10"], "collections": collections}))
    arguments = ["benchmark", *checkpoints, "--suite", str(file), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*arguments, "-c", "two"])
    assert done.exit_code == 0, done.output
    assert "mean of 1" in done.output and "first against second" in done.output
    done = CliRunner().invoke(app, [*arguments, "--json"])
    assert done.exit_code == 0
    assert (tmp_path / "out" / "benchmark.svg").read_text().startswith("<?xml")
    assert "| mean of 2 | 3 |" in (tmp_path / "out" / "benchmark.md").read_text()


@pytest.mark.parametrize(
    "content, message",
    [
        ("collections: [{name: a, pth: b}]", "unknown field 'collections.0.pth'; did you mean 'path'"),
        ("metrics: [nDCG@10]", "collections: name at least one"),
        ("collections: [{name: a}, {name: a}]", "'a' is there twice"),
        ("collections: [{name: a, published: {X: 0.5}}]", "published figures of 'X' need their source"),
        ("collections: [{name: a, path: b, source: {kind: beir, path: c}}]", "two places for one collection"),
        ("includes: [beir-12]", "'beir-12' is no shipped suite; did you mean 'beir-1"),
        ("- a", "not a suite"),
        ("a: [", "not a readable YAML file"),
        ("collections: [{name: arguana}]\nincludes: [beir-13]", "'arguana' is in an included suite, too"),
    ],
)
def test_a_wrong_suite_is_refused_with_file_and_field(tmp_path, content, message):
    file = tmp_path / "suite.yaml"
    file.write_text(content)
    with pytest.raises(RecipeError) as refused:
        load_suite(str(file))
    assert message in str(refused.value) and str(file) in str(refused.value)


def test_wrong_names_are_refused(checkpoints):
    with pytest.raises(RecipeError, match=r"'beir-31' is no file, and no suite; did you mean 'beir-1[38]'"):
        load_suite("beir-31")
    with pytest.raises(RecipeError, match="the suite has no 'animal'; did you mean 'animals'"):
        chosen(SUITE, ["animal"])
    with pytest.raises(RecipeError, match="given twice"):
        system_names([checkpoints[1], checkpoints[1], checkpoints[1]])


def test_shipped_suites_are_valid_and_beirs_published_means_are_those_of_the_papers():
    suites = {name: load_suite(name) for name in suite_names()}
    assert set(suites) == {"beir-13", "beir-18", "bright", "lotte", "miracl", "msmarco", "nano-beir", "trec-dl"}
    rows = suites["beir-13"].collections
    assert len(rows) == 13 and len(suites["beir-18"].collections) == 18
    mean = np.mean([row.published["SPLADE-v3"] for row in rows])
    assert round(float(mean), 3) == 0.517  # arXiv 2403.06789, and the model's card
    cqadupstack = next(row for row in suites["beir-18"].collections if row.name == "cqadupstack")
    assert len(cqadupstack.parts) == 12
    own = [row.name for row in rows if row.own_document == "same-id"]
    assert own == ["arguana", "quora", "scidocs"]  # queries and passages have ids of one space
    forums = {"BM25 flat": 0.3021, "BM25 fields": 0.2987, "SPLADE++ ED": 0.3338}  # means of Pyserini's twelve figures
    assert cqadupstack.published == forums
    for suite in suites.values():
        figures = [row for row in suite.collections if row.published]
        assert all(row.queries for row in figures)
