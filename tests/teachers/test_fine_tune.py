"""Fine-tuning in folds on a tiny model: what is trained on what, what is kept, who scores whom."""

from __future__ import annotations

import numpy as np
import pytest
from sentence_transformers import CrossEncoder
from small_run import JUDGEMENTS, PASSAGES, small_recipe

from distill.config import FineTune
from distill.data.candidates import iterate_candidates
from distill.data.manifest import read_manifest, verify
from distill.data.texts import TextStore
from distill.errors import FingerprintError, TeacherError
from teachers import fine_tune as module
from teachers.base import Pairs, open_teacher, prepare
from teachers.execution import Execution
from teachers.fine_tune import fine_tune, training_lists
from teachers.folds import _mix, query_folds
from teachers.identity import identity

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


def test_queries_with_a_common_answer_share_a_fold_also_through_variants(folder):
    folds = query_folds(folder, 2)
    assert len(folds) == 4 and set(folds) <= {0, 1}
    np.testing.assert_array_equal(folds, query_folds(folder, 2))
    positives = {query: passage for query, passage, grade in JUDGEMENTS["train"] if grade}
    assert positives[2] == 10  # the variant of passage 6 counts as passage 6
    assert folds[2] == _mix(np.array([6])) % 2


def test_folds_are_balanced():
    counts = np.bincount((_mix(np.arange(3000)) % np.uint64(3)).astype(int))
    assert counts.min() > 900


def test_lists_hold_a_positive_and_negatives_from_the_candidates(folder):
    lists = training_lists(folder, FineTune(negatives=2), seed=1)
    judged = {(query, passage) for query, passage, grade in JUDGEMENTS["train"] if grade}
    assert {(one.query, one.passages[0]) for one in lists} == judged
    candidates = {
        (q, p)
        for _, shard in iterate_candidates(folder.candidates("train"))
        for q, p in zip(shard.pair_queries.tolist(), shard.passages.tolist(), strict=True)
    }
    negatives = {(one.query, passage) for one in lists for passage in one.passages[1:]}
    assert negatives and negatives <= candidates - judged
    assert lists == training_lists(folder, FineTune(negatives=2), seed=1)


def test_random_negatives_are_beside_the_mined_ones_and_no_candidates(folder):
    mined, both = (training_lists(folder, FineTune(negatives=1, random_negatives=n), seed=1) for n in (0, 200))
    assert [one.query for one in mined] == [one.query for one in both]
    ((_, candidates),) = iterate_candidates(folder.candidates("train"))
    origin = TextStore.open(folder.passages).origin
    for one in both:
        i = candidates.query.tolist().index(one.query)
        known = candidates.passages[candidates.offsets[i] : candidates.offsets[i + 1]]
        known = {*known.tolist(), *origin(known).tolist()}
        assert set(one.passages[2:]) == set(range(len(PASSAGES))) - known  # 200 draws from ten: all of them


def test_each_fold_is_a_cross_encoder_and_scores_only_what_it_has_not_seen(folder, tiny_sentence):
    recipe = recipe_for(folder, tiny_sentence, layers=1)
    with pytest.raises(TeacherError, match="distill teach"):
        identity("own", recipe.teachers["own"], folder)
    manifest = fine_tune(recipe, folder, "own")
    assert not verify(folder.teacher("own")) and len(manifest.shards) == 2
    identity("own", recipe.teachers["own"], folder)
    models = [CrossEncoder(str(folder.teacher_fold("own", k)), device="cpu") for k in (0, 1)]
    assert all(model.config.num_hidden_layers == 1 and model.max_seq_length == 32 for model in models)

    prepare("own", recipe.teachers["own"], folder, ["train", "test"])
    teacher = open_teacher("own", recipe.teachers["own"], folder, FLOAT32)
    for split in ("train", "test"):
        pairs = Pairs(np.repeat(np.arange(4), 5), np.tile(np.arange(5), 4), split)
        texts = list(
            zip(
                TextStore.open(folder.queries(split)).texts(pairs.query_rows),
                TextStore.open(folder.passages).texts(pairs.passage_rows),
                strict=True,
            )
        )
        each = np.array([model.predict(texts, activation_fn=lambda x: x) for model in models])  # [2, 20]
        folds = query_folds(folder, 2)[pairs.query_rows]
        expected = each[folds, np.arange(20)] if split == "train" else each.mean(0)
        np.testing.assert_allclose(teacher.score(pairs), expected, rtol=1e-4, atol=1e-5)


def test_a_killed_stage_trains_only_the_missing_fold_and_a_finished_one_nothing(folder, tiny_sentence, monkeypatch):
    recipe, train_fold = recipe_for(folder, tiny_sentence), module._train_fold
    trained = []

    def killed(*arguments):
        if trained:
            raise KeyboardInterrupt
        trained.append(arguments[-1].name)
        train_fold(*arguments)

    monkeypatch.setattr(module, "_train_fold", killed)
    with pytest.raises(KeyboardInterrupt):
        fine_tune(recipe, folder, "own")
    assert trained == ["fold-0"] and read_manifest(folder.teacher("own")) is None
    monkeypatch.setattr(module, "_train_fold", lambda *a: (trained.append(a[-1].name), train_fold(*a)))
    fine_tune(recipe, folder, "own")
    fine_tune(recipe, folder, "own")
    assert trained == ["fold-0", "fold-1"]
    assert {path.name for path in folder.teacher("own").iterdir()} == {"fold-0", "fold-1", "manifest.json", "plan.json"}
    with pytest.raises(FingerprintError, match=r"lr 0.001 -> 0.1"):
        fine_tune(recipe_for(folder, tiny_sentence, lr=0.1), folder, "own")


def test_the_second_machine_to_finish_a_fold_takes_the_first_ones_model(folder, tiny_sentence, monkeypatch):
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
    assert {path.name for path in home.parent.iterdir()} == {"fold-0", "manifest.json", "plan.json"}


def test_it_learns_what_it_is_shown(folder, tiny_sentence):
    recipe = recipe_for(folder, tiny_sentence, folds=1, epochs=30, lr=3e-3)
    fine_tune(recipe, folder, "own")
    model = CrossEncoder(str(folder.teacher_fold("own", 0)), device="cpu")
    queries, passages = TextStore.open(folder.queries("train")), TextStore.open(folder.passages)
    for one in training_lists(folder, recipe.teachers["own"].fine_tune, recipe.seed):
        query = queries.texts(np.array([one.query]))[0]
        scores = model.predict([(query, text) for text in passages.texts(np.array(one.passages))])
        assert scores[0] > scores[1:].max()


def test_more_layers_than_the_backbone_has_are_refused(folder, tiny_sentence):
    with pytest.raises(TeacherError, match=r"fine_tune\.layers is 9"):
        fine_tune(recipe_for(folder, tiny_sentence, layers=9), folder, "own")
