"""Text and token stores, candidate and score shards, judgements."""

import numpy as np
import pyarrow as pa
import pytest

from distill.errors import DataError, StorageError
from distill.run.layout import RunFolder
from distill.run.manifest import Manifest, write_manifest
from distill.run.seals import is_damaged
from distill.store.arrow import write_ipc
from distill.store.candidates import (
    SCHEMA,
    Candidates,
    candidate_shards,
    from_lists,
    iterate_candidates,
    read_candidates,
    write_candidates,
)
from distill.store.judgements import from_triples
from distill.store.scores import read_scores, write_scores
from distill.store.texts import PASSAGE_SCHEMA, TextStore
from distill.store.tokens import TokenStore, build_token_store, token_key


@pytest.fixture
def passages(tmp_path) -> TextStore:
    rows = [
        {"id": f"p{i}", "title": "Title" if i % 2 else "", "text": f"text {i}" if i % 3 else "", "origin": -1}
        for i in range(30)
    ]
    rows += [
        {"id": "p4#title", "title": "", "text": "cut", "origin": 4},
        {"id": "p1#s0", "title": "", "text": "too", "origin": 1},
    ]
    table = pa.Table.from_pylist(rows, schema=PASSAGE_SCHEMA)
    write_ipc(
        tmp_path / "passages.arrow", PASSAGE_SCHEMA, iter(table.to_batches(max_chunksize=7)), {"fingerprint": "f"}
    )
    return TextStore.open(tmp_path / "passages.arrow")


def test_the_text_of_a_passage_is_title_space_text(passages):
    assert passages.texts([1, 2, 3, 0, 31]) == ["Title text 1", "text 2", "Title", "", "too"]
    assert [text for batch in passages.text_batches(stop=9) for text in batch] == passages.texts(np.arange(9))


def test_collection_size_excludes_the_variants(passages):
    assert len(passages) == 32 and passages.collection_size == 30
    assert passages.origin([29, 30, 31]).tolist() == [-1, 4, 1]


def test_rows_of_ids_in_any_order_with_repeats_and_unknown_ids(passages):
    ids = ["p29", "nowhere", "p0", "p29", "p4#title"]  # a variant is not part of the collection
    assert passages.rows_of(ids).tolist() == [29, -1, 0, 29, -1]
    assert passages.rows_of([]).tolist() == []
    assert passages.ids(passages.rows_of(["p7", "p3"])) == ["p7", "p3"]


def test_document_frequencies_count_each_token_once_per_text_within_the_cut(passages, tiny_mlm, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_mlm)
    store = build_token_store(passages, tokenizer, tmp_path / "tokens.arrow", 8, prefix="the the ")
    expected = np.zeros(len(tokenizer), np.int64)
    for tokens in store.take(np.arange(30)):
        expected[np.unique(tokens[:4])] += 1
    assert (expected > 1).sum() > 3
    np.testing.assert_array_equal(store.document_frequencies(len(tokenizer), 30, max_tokens=4), expected)


def test_stored_tokens_are_those_of_the_tokenizer_without_special_tokens(passages, tiny_mlm, tmp_path):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_mlm)
    store = build_token_store(passages, tokenizer, tmp_path / "tokens" / "passages.arrow", 5, prefix="the ")
    texts = passages.texts(np.arange(len(passages)))
    expected = [tokenizer("the " + text, add_special_tokens=False)["input_ids"][:5] for text in texts]
    rows = np.array([31, 0, 8, 8, 17])
    assert [ids.tolist() for ids in store.take(rows)] == [expected[row] for row in rows]
    ragged = store.take_ragged(np.asarray(rows))
    assert np.split(ragged.ids, np.cumsum(ragged.lengths)[:-1])[0].dtype == np.int32
    assert [ids.tolist() for ids in np.split(ragged.ids, np.cumsum(ragged.lengths)[:-1])] == [expected[r] for r in rows]
    assert store.lengths.tolist() == [len(ids) for ids in expected]
    assert store.take(rows)[0].dtype == np.int32 and len(store) == len(passages)


def test_a_token_store_serves_smaller_cuts_and_is_rebuilt_for_larger_ones(passages, tiny_mlm, tmp_path):
    path = tmp_path / "passages.arrow.tokens"
    build_token_store(passages, str(tiny_mlm), path, 4)
    written = path.stat().st_mtime_ns
    assert build_token_store(passages, str(tiny_mlm), path, 3).max_tokens == 4
    assert path.stat().st_mtime_ns == written
    assert build_token_store(passages, str(tiny_mlm), path, 9).max_tokens == 9 == TokenStore.open(path).max_tokens


@pytest.mark.parametrize("damage", ["zero length", "cut", "other text", "another Arrow file"])
def test_a_token_store_that_cannot_be_opened_is_made_again(passages, tiny_mlm, tmp_path, damage, caplog):
    path = tmp_path / "tokens" / "passages.arrow"
    build_token_store(passages, str(tiny_mlm), path, 4)
    whole = path.read_bytes()
    if damage == "another Arrow file":
        write_ipc(path, pa.schema([("a", pa.int64())]), [], {"texts": passages.fingerprint, "max_tokens": "x"})
    else:
        path.write_bytes({"zero length": b"", "cut": whole[:-40], "other text": b"hello"}[damage])
    build_token_store(passages, str(tiny_mlm), path, 4)
    assert path.read_bytes() == whole and not is_damaged(path)
    assert "passages.arrow: damaged" in caplog.text and path.with_name("passages.arrow.damaged").exists()


def test_a_shard_of_no_or_several_batches_is_damaged(tmp_path):
    write_ipc(tmp_path / "part-00000.arrow", SCHEMA, [])
    with pytest.raises(StorageError, match=r"part-00000\.arrow: damaged, a shard has one record batch, not 0"):
        read_candidates(tmp_path / "part-00000.arrow")


def test_token_keys_depend_on_tokenizer_content_and_prefix_not_on_call_settings(tiny_mlm):
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(tiny_mlm)
    before = token_key(tokenizer)
    tokenizer(["a text"], truncation=True, max_length=3, padding=True)
    assert token_key(tokenizer) == before == token_key(tiny_mlm) != token_key(tiny_mlm, "query: ")


def test_the_token_key_of_a_slow_tokenizer_depends_on_options_not_on_location(tmp_path):
    from transformers import BertJapaneseTokenizer

    from tests.helpers.tiny_models import tiny_tokenizer

    (tmp_path / "vocab.txt").write_text("\n".join(tiny_tokenizer().get_vocab()), encoding="utf-8")
    options = {"vocab_file": str(tmp_path / "vocab.txt"), "word_tokenizer_type": "basic"}
    tokenizer = BertJapaneseTokenizer(**options)
    assert not hasattr(tokenizer, "backend_tokenizer")
    by_letters = BertJapaneseTokenizer(**options, subword_tokenizer_type="character")
    assert by_letters.get_vocab() == tokenizer.get_vocab() and token_key(by_letters) != token_key(tokenizer)
    keys = set()
    for location in ("here", "there"):
        tokenizer.save_pretrained(tmp_path / location)
        moved = BertJapaneseTokenizer.from_pretrained(tmp_path / location)
        keys.add(token_key(moved))
        moved.model_max_length = 64
        moved.save_pretrained(tmp_path / "again")
        keys.add(token_key(BertJapaneseTokenizer.from_pretrained(tmp_path / "again")))
    assert len(keys) == 1


def candidates() -> Candidates:
    return from_lists(
        [3, 5, 9],
        [[1, 2, 3], [4], [5, 6]],
        [1, 0, 2],
        ("judgement", "bm25"),
        source=[[0, 1, 1], [1], [0, 0]],
        rank=[[0, 1, 2], [1], [0, 0]],
    )


def test_candidates_are_equal_after_writing_and_reading(tmp_path):
    shard = write_candidates(tmp_path / "part-00000.arrow", candidates(), "f")
    write_manifest(tmp_path, Manifest({}, [shard]))
    assert candidate_shards(tmp_path) == (shard,)
    ((name, back),) = iterate_candidates(tmp_path)
    assert name == shard.name and back.sources == ("judgement", "bm25")
    for field in ("query", "offsets", "passages", "positive", "source", "rank"):
        written, read = getattr(candidates(), field), getattr(back, field)
        assert written.tolist() == read.tolist() and written.dtype == read.dtype
    assert back.pair_queries.tolist() == [3, 3, 3, 5, 9, 9]
    assert np.flatnonzero(back.positive).tolist() == [0, 4, 5]


def test_writing_a_positive_after_a_negative_is_an_assertion_error(tmp_path):
    unordered = candidates()
    unordered.positive[2] = True
    with pytest.raises(AssertionError):
        write_candidates(tmp_path / "x.arrow", unordered, "f")


def test_scores_are_equal_after_writing_and_reading_and_need_a_manifest(tmp_path):
    folder = RunFolder(tmp_path)
    write_candidates(folder.candidates("train") / "part-00000.arrow", candidates(), "f")
    pairs = read_candidates(folder.candidates("train") / "part-00000.arrow")
    values = np.array([1.5, -2, 0, 3, 4, 5], np.float32)
    path = folder.scores("minilm", "train")
    shard = write_scores(
        path / "part-00000.arrow", pairs, values, fingerprint="g", teacher="minilm", execution={"dtype": "float32"}
    )
    with pytest.raises(StorageError, match="distill score"):
        list(read_scores(folder, "minilm", "train"))
    write_manifest(path, Manifest({}, [shard]))
    ((_, back),) = read_scores(folder, "minilm", "train")
    assert back.values.tolist() == values.tolist() and back.offsets.tolist() == pairs.offsets.tolist()
    assert back.metadata["teacher"] == "minilm" and back.metadata["execution"] == '{"dtype": "float32"}'


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_a_score_that_is_not_finite_is_refused_with_its_pair(tmp_path, bad):
    values = np.array([1, 2, 3, 4, bad, 6], np.float32)
    with pytest.raises(DataError, match="query row 9 and passage row 5"):
        write_scores(tmp_path / "x.arrow", candidates(), values, fingerprint="g", teacher="t")
    assert not list(tmp_path.iterdir())


def test_judgements_are_grouped_by_query_and_grade_zero_is_not_positive():
    judged = from_triples(np.array([4, 1, 4, 4]), np.array([10, 11, 12, 13]), np.array([1, 2, 0, 3], np.int32))
    assert judged.queries.tolist() == [1, 4] and len(judged) == 2
    assert judged.positives(4).tolist() == [10, 13] and judged.of(4)[1].tolist() == [1, 0, 3]
    assert judged.positives(2).size == 0
