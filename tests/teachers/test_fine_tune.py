"""Fine-tuning in folds on a tiny model: the training lists, resuming, and which fold scores which query."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest
from sentence_transformers import CrossEncoder
from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments

from distill.config import FineTune
from distill.errors import FingerprintError, RecipeError, TeacherError
from distill.run.layout import RunFolder
from distill.run.manifest import verify
from distill.run.run import Run
from distill.store.arrow import write_ipc
from distill.store.candidates import iterate_candidates
from distill.store.judgements import JUDGEMENT_SCHEMA
from distill.store.texts import TextStore
from teachers.base import Pairs, open_teacher, prepare
from teachers.execution import Execution
from teachers.fine_tune import training_lists
from teachers.folds import query_folds
from teachers.identity import identity
from teachers.spec import TeacherSpec
from teachers.stage import check_data
from tests.helpers.small_run import (
    JUDGEMENTS,
    PASSAGES,
    small_recipe,
    write_no_identity,
    write_passages,
    write_queries,
    write_run,
)
from tests.helpers.stages import fine_tune

FLOAT32 = Execution("cpu", "float32", 1, 512)


def recipe_for(folder, model, **tuning):
    options = {"folds": 2, "negatives": 2, "epochs": 1, "batch_size": 4, "lr": 1e-3, **tuning}
    return small_recipe(
        folder.root,
        teachers={
            "own": {
                "kind": "cross-encoder",
                "model": str(model),
                "max_length": 32,
                "dtype": "float32",
                "fine_tune": options,
            }
        },
    )


def splitmix64(value: int) -> int:
    """Steele et al., 2014, in plain integers."""
    z = (value + 0x9E3779B97F4A7C15) % 2**64
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB % 2**64
    return z ^ (z >> 31)


def test_a_querys_fold_is_a_hash_of_its_first_positive_or_of_what_a_variant_was_cut_from(folder):
    first = {}
    for query, passage, grade in JUDGEMENTS["train"]:
        passage = 6 if passage == 10 else passage  # the variant of passage 6
        if grade:
            first[query] = min(passage, first.get(query, passage))
    assert query_folds(folder, 5).tolist() == [splitmix64(first[query]) % 5 for query in range(4)]


def test_folds_are_balanced(tmp_path):
    folder, rows = RunFolder(tmp_path), range(3000)
    texts = [str(row) for row in rows]
    write_passages(folder.passages, texts)
    write_no_identity(folder, ["train"])
    write_queries(folder.queries("train"), texts)
    judgements = pa.RecordBatch.from_pydict(
        dict(zip(JUDGEMENT_SCHEMA.names, (rows, rows, [1] * 3000), strict=True)), schema=JUDGEMENT_SCHEMA
    )
    write_ipc(folder.judgements("train"), JUDGEMENT_SCHEMA, [judgements], {"fingerprint": "test"})
    assert np.bincount(query_folds(folder, 3), minlength=3).min() > 900


def test_training_lists_hold_a_positive_and_negatives_from_the_candidates(folder):
    lists = training_lists(folder, FineTune(negatives=2), seed=1)
    judged = {(query, passage) for query, passage, grade in JUDGEMENTS["train"] if grade}
    assert {(each.query, each.passages[0]) for each in lists} == judged
    candidates = {
        (q, p)
        for _, shard in iterate_candidates(folder.candidates("train"))
        for q, p in zip(shard.pair_queries.tolist(), shard.passages.tolist(), strict=True)
    }
    negatives = {(each.query, passage) for each in lists for passage in each.passages[1:]}
    assert negatives and negatives <= candidates - judged
    assert lists == training_lists(folder, FineTune(negatives=2), seed=1)


def test_random_negatives_follow_the_mined_ones_and_are_no_candidates(folder):
    mined, both = (training_lists(folder, FineTune(negatives=1, random_negatives=n), seed=1) for n in (0, 200))
    assert [each.query for each in mined] == [each.query for each in both]
    ((_, candidates),) = iterate_candidates(folder.candidates("train"))
    origin = TextStore.open(folder.passages).origin
    for each in both:
        i = candidates.query.tolist().index(each.query)
        known = candidates.passages[candidates.offsets[i] : candidates.offsets[i + 1]]
        known = {*known.tolist(), *origin(known).tolist()}
        assert set(each.passages[2:]) == set(range(len(PASSAGES))) - known  # 200 draws from ten: all of them


def test_each_fold_is_a_cross_encoder_and_scores_only_queries_that_it_was_not_trained_on(folder, tiny_sentence):
    recipe = recipe_for(folder, tiny_sentence, layers=1)
    spec = TeacherSpec("own", recipe.teachers["own"], folder)
    with pytest.raises(TeacherError, match="distill teach"):
        identity(spec)
    manifest = fine_tune(recipe, folder, "own")
    assert not verify(folder.teacher("own"))
    assert {"fold-0/model.safetensors", "fold-1/tokenizer_config.json"} < {shard.name for shard in manifest.shards}
    identity(spec)
    models = [CrossEncoder(str(folder.teacher_fold("own", k)), device="cpu") for k in (0, 1)]
    assert all(model.config.num_hidden_layers == 1 and model.max_seq_length == 32 for model in models)

    prepare(spec, ["train", "test"])
    teacher = open_teacher(spec, FLOAT32)
    for split in ("train", "test"):
        pairs = Pairs(np.repeat(np.arange(4), 5), np.tile(np.arange(5), 4), split)
        texts = list(
            zip(
                TextStore.open(folder.queries(split)).texts(pairs.query_rows),
                TextStore.open(folder.passages).texts(pairs.passage_rows),
                strict=True,
            )
        )
        by_model = np.array([model.predict(texts, activation_fn=lambda x: x) for model in models])  # [2, 20]
        folds = query_folds(folder, 2)[pairs.query_rows]
        expected = by_model[folds, np.arange(20)] if split == "train" else by_model.mean(0)
        np.testing.assert_allclose(teacher.score(pairs), expected, rtol=1e-4, atol=1e-5)


def test_a_killed_stage_resumes_with_the_missing_fold_and_a_finished_one_does_nothing(
    folder, tiny_sentence, monkeypatch
):
    recipe, save = recipe_for(folder, tiny_sentence), CrossEncoder.save
    saved = []

    def interrupted(self, path):
        if saved:
            raise KeyboardInterrupt
        saved.append(path)
        save(self, path)

    monkeypatch.setattr(CrossEncoder, "save", interrupted)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(recipe, folder, "own")
    home = folder.teacher("own")
    assert {path.name for path in home.iterdir()} == {"fold-0", "claim.json"}
    monkeypatch.setattr(CrossEncoder, "save", save)
    trained = [(home / "fold-0" / "model.safetensors").stat()]
    fine_tune(recipe, folder, "own")
    trained.append((home / "fold-1" / "model.safetensors").stat())
    fine_tune(recipe, folder, "own")
    assert {path.name for path in home.iterdir()} == {"fold-0", "fold-1", "manifest.json", "claim.json"}
    for fold, before in enumerate(trained):
        after = (home / f"fold-{fold}" / "model.safetensors").stat()
        assert (after.st_ino, after.st_mtime_ns) == (before.st_ino, before.st_mtime_ns)
    with pytest.raises(FingerprintError, match=r"lr 0.001 -> 0.1"):
        fine_tune(recipe_for(folder, tiny_sentence, lr=0.1), folder, "own")


def test_the_second_machine_to_finish_a_fold_keeps_the_first_ones_model(folder, tiny_sentence, monkeypatch):
    recipe, save = recipe_for(folder, tiny_sentence, folds=1), CrossEncoder.save
    home = folder.teacher_fold("own", 0)

    def save_while_another_finishes(self, path):
        save(self, path)
        monkeypatch.setattr(CrossEncoder, "save", save)
        fine_tune(recipe, folder, "own")
        (home / "first").touch()

    monkeypatch.setattr(CrossEncoder, "save", save_while_another_finishes)
    fine_tune(recipe, folder, "own")
    assert (home / "first").exists() and not verify(folder.teacher("own"))
    assert {path.name for path in home.parent.iterdir()} == {"fold-0", "manifest.json", "claim.json"}


def test_a_fine_tuned_model_ranks_each_training_positive_first(folder, tiny_sentence):
    recipe = recipe_for(folder, tiny_sentence, folds=1, epochs=30, lr=3e-3)
    fine_tune(recipe, folder, "own")
    model = CrossEncoder(str(folder.teacher_fold("own", 0)), device="cpu")
    queries, passages = TextStore.open(folder.queries("train")), TextStore.open(folder.passages)
    for each in training_lists(folder, recipe.teachers["own"].fine_tune, recipe.seed):
        query = queries.texts(np.array([each.query]))[0]
        scores = model.predict([(query, text) for text in passages.texts(np.array(each.passages))])
        assert scores[0] > scores[1:].max()


def test_more_layers_than_the_backbone_has_are_refused(folder, tiny_sentence):
    with pytest.raises(TeacherError, match=r"fine_tune\.layers is 9, but .* has 2 layers"):
        fine_tune(recipe_for(folder, tiny_sentence, layers=9), folder, "own")


def test_fine_tuning_needs_a_query_with_a_positive_and_says_so_before_mining(tmp_path):
    folder = write_run(tmp_path)
    run = Run(recipe_for(folder, "anything"), folder)
    check_data(run)
    write_ipc(folder.judgements("train"), JUDGEMENT_SCHEMA, [], {"fingerprint": "test"})
    with pytest.raises(RecipeError, match=r"teachers.own.fine_tune needs training queries with a positive"):
        check_data(run)


def test_several_gpus_train_a_teacher_as_one_does(folder, tiny_sentence, monkeypatch):
    """transformers' Trainer would use them all: DataParallel, which the loss cannot read, and N times the batch."""
    setup = CrossEncoderTrainingArguments.__post_init__

    def on_two_gpus(self):
        setup(self)
        self._n_gpu = 2

    monkeypatch.setattr(CrossEncoderTrainingArguments, "__post_init__", on_two_gpus)
    seen = []
    train = CrossEncoderTrainer.train

    def train_and_look(self):
        train(self)
        seen.append((self.args.n_gpu, self.args.train_batch_size, type(self.model_wrapped).__name__))

    monkeypatch.setattr(CrossEncoderTrainer, "train", train_and_look)
    fine_tune(recipe_for(folder, tiny_sentence, folds=1), folder, "own")
    assert seen == [(1, 1, "CrossEncoder")]
