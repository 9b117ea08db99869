"""Recognition of folders and files for `distill init`, and estimated sizes."""

import pytest

from distill.config import Data, GenerateQueries
from distill.errors import DataError
from distill.importing.readers import open_source, source_fields
from distill.importing.sniff import sizes_of, sniff, with_query_log
from tests.importing.files import beir_folder, lines


def test_sniff_recognises_folders_and_files_and_holds_out_queries(tmp_path):
    found = sniff(beir_folder(tmp_path))
    assert found.data.source.kind == "beir" and found.data.source.splits == {"train": "train"}
    assert found.data.generate is None and "2 passages, 1 queries" in found.lines[0]
    (tmp_path / "qrels" / "train.tsv").rename(tmp_path / "qrels" / "test.tsv")
    assert sniff(tmp_path).data.generate is not None  # nothing to train on: queries are made
    rows = lines(tmp_path / "rows.jsonl", [{"query": f"q{i}", "pos": ["a"], "neg": ["b"]} for i in range(100)])
    source = sniff(rows).data.source
    assert (source.layout, source.test_queries, source.dev_queries) == ("flagembedding", 10, 5)
    lines(rows, [{"query": f"q{i % 20}", "pos": ["a"], "neg": [f"b{i}"]} for i in range(100)])  # twenty queries only
    assert sniff(rows).data.sizes.queries == 17 and sniff(rows).data.source.test_queries == 2
    (tmp_path / "pairs.csv").write_text("question,answer\nq,a\n")
    assert sniff(tmp_path / "pairs.csv").data.source.layout == "triples"
    (tmp_path / "empty").mkdir()
    with pytest.raises(DataError, match="not recognised; looked for"):
        sniff(tmp_path / "empty")
    with pytest.raises(DataError, match=r"\[query\]: missing"):
        sniff(lines(tmp_path / "other.jsonl", [{"a": 1}]))


@pytest.mark.parametrize("content", ["", "query-id\tcorpus-id\tscore\n"])
def test_sniff_ignores_judgement_files_without_judgements(tmp_path, content):
    (beir_folder(tmp_path) / "qrels" / "test.tsv").write_text(content)
    found = sniff(tmp_path)
    assert found.data.source.splits == {"train": "train"} and "-1" not in "\n".join(found.lines)
    assert (found.data.sizes.queries, found.data.sizes.test_queries) == (1, 0)  # the one line is no header
    named = found.data.source.model_copy(update={"splits": {"train": "train", "test": "test"}})
    assert sizes_of(found.data.model_copy(update={"source": named})).test_queries == 0


def test_text_lengths_are_estimated_from_the_words_of_a_sample(tmp_path):
    corpus = [{"_id": str(i), "title": "a title", "text": "four words of text"} for i in range(600)]
    corpus[590]["text"] *= 1000  # beyond the sample
    (tmp_path / "in" / "qrels").mkdir(parents=True)
    lines(tmp_path / "in" / "corpus.jsonl", corpus)
    sizes = sniff(tmp_path / "in").data.sizes  # texts too short to generate queries: the default stays
    assert (sizes.passage_tokens, sizes.query_tokens) == (7.8, 9.0)
    lines(tmp_path / "in" / "queries.jsonl", [{"_id": "q0", "text": "x"}, {"_id": "q1", "text": "just one two"}])
    lines(tmp_path / "in" / "qrels" / "test.tsv", ["q1\t0\t1"])
    assert sniff(tmp_path / "in").data.sizes.query_tokens == 3.9
    made = "a sentence of seven words without end . "
    lines(tmp_path / "in" / "corpus.jsonl", [{"_id": "0", "title": "", "text": made + "other words " * 8}])
    data = sniff(tmp_path / "in").data.model_copy(update={"generate": GenerateQueries()})
    assert sizes_of(data).query_tokens == pytest.approx(1.3 * 8, abs=0.06)  # its mark is a word
    rows = [{"query": "two words", "positive": "one", "negative": "one two three"}]
    sizes = sniff(lines(tmp_path / "rows.jsonl", rows)).data.sizes
    assert (sizes.passage_tokens, sizes.query_tokens) == (2.6, 2.6)


def test_lengths_in_scripts_without_blanks_are_estimated_from_characters(tmp_path):
    rows = [{"query": "東京の天気", "positive": "東京は日本の首都です。" * 3, "negative": "กรุงเทพ"}] * 4
    sizes = sniff(lines(tmp_path / "rows.jsonl", rows)).data.sizes
    assert 3 < sizes.query_tokens < 6 and 10 < sizes.passage_tokens < 30
    folder = beir_folder(tmp_path)
    lines(folder / "corpus.jsonl", [{"_id": "a", "text": ""}, {"_id": "b", "text": " "}])
    lines(folder / "queries.jsonl", [{"_id": "q1", "text": ""}])
    sizes = sniff(folder).data.sizes
    assert (sizes.passage_tokens, sizes.query_tokens) == (80.0, 9.0)  # nothing to estimate from: the defaults


ELSEWHERE = {  # name -> source of another kind, the refusal
    "rows at a folder": (
        {"kind": "jsonl", "path": "beir"},
        r"beir: is a folder, but kind: jsonl reads one file; .*",
    ),
    "rows at a folder of one file": (
        {"kind": "jsonl", "path": "one"},
        r"is a folder, .* path: one/rows\.jsonl\}",
    ),
    "folder at rows": (
        {"kind": "beir", "path": "one/rows.jsonl"},
        r"is a file, but kind: beir reads a folder; ",
    ),
    "BEIR at MS MARCO": (
        {"kind": "beir", "path": "msmarco"},
        r"does not read this folder; .*\{kind: msmarco",
    ),
    "MS MARCO at BEIR": (
        {"kind": "msmarco", "path": "beir"},
        r"does not read this folder; .*\{kind: beir",
    ),
    "dataset at rows": ({"kind": "huggingface", "dataset": "one/rows.jsonl"}, r"is a file, but .*\{kind: jsonl, path"),
    "dataset at BEIR": ({"kind": "huggingface", "dataset": "beir"}, r"kind: huggingface does not read .*\{kind: beir"),
    "scores at a folder": (
        {"kind": "naver", "scores": "one", "collection": {"kind": "beir", "path": "beir"}},
        r"one: is a folder, but kind: naver reads one file of scores in data\.source\.scores",
    ),
}


@pytest.mark.parametrize("name", ELSEWHERE)
def test_a_source_of_another_kind_is_refused_with_the_one_that_reads_it(tmp_path, monkeypatch, name):
    for folder in ("beir", "one", "msmarco"):
        (tmp_path / folder).mkdir()
    beir_folder(tmp_path / "beir")
    lines(tmp_path / "one" / "rows.jsonl", [{"query": "q", "positive": "a"}])
    lines(tmp_path / "msmarco" / "collection.tsv", ["1\ta"])
    monkeypatch.chdir(tmp_path)
    source, message = ELSEWHERE[name]
    data = Data.model_validate({"source": source})
    with pytest.raises(DataError, match=message):
        source_fields(data.source)
    with pytest.raises(DataError, match=message):
        open_source(data, 0, tmp_path)


def test_queries_without_judgements_are_named_and_trained_on_where_nothing_is_judged(tmp_path):
    folder = beir_folder(tmp_path)
    lines(folder / "queries.jsonl", [{"_id": f"q{i}", "text": f"query {i}"} for i in range(1, 5)])
    found = sniff(folder)
    assert found.data.query_log is None and any("3 queries without judgements" in line for line in found.lines)
    (folder / "qrels" / "train.tsv").rename(folder / "qrels" / "test.tsv")
    found = sniff(folder)
    assert found.data.query_log is not None and found.data.query_log.path is None
    assert found.data.train_queries == "auto"
    # the passages are too short for queries
    assert found.data.sizes.queries == 3 and any("trained on, too" in line for line in found.lines)


def test_a_file_of_queries_is_added_unless_nothing_would_be_mined_for_it(tmp_path):
    log = tmp_path / "log.tsv"
    log.write_text("query\tcount\tuser\nwide rivers\t3\tu\nold bridges\t1\tv\n")
    (tmp_path / "beir").mkdir()
    found = with_query_log(sniff(beir_folder(tmp_path / "beir")), log)
    assert found.data.query_log.path == log and found.data.sizes.queries == 1 + 2
    assert "query log: 2 rows in log.tsv, trained on without judgements" in found.lines
    rows = lines(tmp_path / "rows.jsonl", [{"query": "q", "pos": ["a"], "neg": ["b"]}] * 3)
    with pytest.raises(DataError, match=r"log.tsv: the source brings its own negatives"):
        with_query_log(sniff(rows), log)
    log.write_text("suche\nwide rivers\n")
    with pytest.raises(DataError, match=r"no column with a query"):
        with_query_log(sniff(tmp_path / "beir"), log)
