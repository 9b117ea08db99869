"""Labels: each step on numbers computed by hand, then the stage on shards."""

import numpy as np
import pytest
from scipy.stats import kendalltau

from distill.config import Label, Recipe
from distill.errors import DataError, FingerprintError, RecipeError, StorageError
from distill.labelling.labels import (
    Moments,
    affine_map,
    ensemble,
    ensemble_scores,
    keep_negatives,
    normalise,
    teachers_of,
)
from distill.labelling.stats import label_stats
from distill.recipe.load import parse_recipe
from distill.run.layout import RunFolder
from distill.run.manifest import Manifest, write_manifest
from distill.run.run import Run
from distill.store.arrow import write_ipc
from distill.store.candidates import from_lists, read_candidates, write_candidates
from distill.store.judgements import JUDGEMENT_SCHEMA
from distill.store.labels import read_labels
from distill.store.scores import write_scores
from distill.training.batches import TrainingData
from tests.helpers.small_run import write_no_identity, write_passages, write_queries
from tests.helpers.stages import build_labels

NAN = float("nan")


def equal(values, expected):
    np.testing.assert_allclose(values, expected, rtol=1e-6, equal_nan=True)


def test_min_max_normalises_each_list_by_its_range():
    scores = [2.0, 6.0, 4.0, 7.0, 5.0, 5.0, NAN, -1.0, 1.0]
    offsets = np.array([0, 3, 4, 6, 6, 9])  # three, a single one, a constant list, an empty one, one missing
    equal(normalise(scores, offsets, "min-max"), [0, 1, 0.5, 0.5, 0.5, 0.5, NAN, 0, 1])


def test_z_score_normalises_each_list_by_its_mean_and_deviation():
    scores = [1.0, 3.0, 9.0, 4.0, 4.0, NAN, 2.0, 6.0, NAN]
    offsets = np.array([0, 2, 3, 5, 5, 8, 9])
    equal(normalise(scores, offsets, "z-score"), [-1, 1, 0, 0, 0, NAN, -1, 1, NAN])
    equal(normalise([0.1, 0.1, 0.1], np.array([0, 3]), "z-score"), [0, 0, 0])  # rounding noise is no spread
    equal(normalise(scores, offsets, "none"), scores)


def test_the_ensemble_is_a_weighted_mean_without_missing_scores():
    matrix = np.array([[0.0, 1.0, NAN, NAN], [1.0, 0.5, 0.25, NAN]])
    equal(ensemble(matrix, np.array([1.0, 3.0])), [0.75, 0.625, 0.25, NAN])


def test_the_affine_map_gives_the_reference_mean_and_deviation():
    values = np.array([0.0, 0.5, 1.0, 1.0])
    mapped = affine_map(values, values.mean(), values.std(), -3.0, 2.5)
    equal([mapped.mean(), mapped.std()], [-3.0, 2.5])
    equal(affine_map(np.array([2.0, 2.0]), 2.0, 0.0, -3.0, 2.5), [-3, -3])


def test_negatives_above_the_best_positive_by_more_than_the_margin_are_dropped():
    labels = np.array([2.0, 1.0, 2.4, 2.6, NAN, 5.0, 9.0])
    positive = np.array([True, True, False, False, True, False, False])
    keep = keep_negatives(labels, positive, np.array([0, 4, 6, 7]), Label(drop_false_negatives=0.5))
    assert keep.tolist() == [True, True, True, False, True, True, True]


@pytest.mark.parametrize(
    "limits",
    [
        {"drop_false_negatives": -0.25},
        {"relative_margin": 0.25},
        {"max_score": 1.5},
        {"min_score": -1.0},
        {"relative_margin": 0.0, "min_score": -2.0},
    ],
    ids=str,
)
def test_limits_drop_the_negatives_that_sentence_transformers_drops(limits):
    """Its documentation: positive - score >= absolute_margin, score <= positive - |positive| * relative_margin."""
    positives = (2.0, -2.0)
    negatives = (-3.0, -2.5, -2.25, -1.0, 0.0, 1.5, 1.625, 1.75, 1.875, 2.5)

    def stays(positive, score):
        return all(
            fits
            for name, fits in {
                "drop_false_negatives": positive - score >= -limits.get("drop_false_negatives", 0),
                "relative_margin": score <= positive - abs(positive) * limits.get("relative_margin", 0),
                "max_score": score <= limits.get("max_score", 0),
                "min_score": score >= limits.get("min_score", 0),
            }.items()
            if name in limits
        )

    labels = np.array([value for positive in positives for value in (positive, *negatives)])
    size = 1 + len(negatives)
    keep = keep_negatives(labels, np.arange(2 * size) % size == 0, np.array([0, size, 2 * size]), Label(**limits))
    expected = [fits for positive in positives for fits in (True, *(stays(positive, score) for score in negatives))]
    assert keep.tolist() == expected and not all(expected)


def test_moments_added_in_parts_equal_those_of_the_whole():
    values = np.random.default_rng(0).normal(1000, 3, 500)
    moments = Moments()
    for part in (values[:3], values[3:3], values[3:], np.array([NAN])):
        moments.add(part)
    equal([moments.count, moments.mean, moments.std], [500, values.mean(), values.std()])


# two shards of (queries, lists, number of positives): query 5 has a constant list for teacher a, 6 a single candidate,
# 7 a missing score of teacher a
SHARDS = [([3, 5], [[1, 2, 3], [4, 5]], [1, 1]), ([6, 7], [[6], [7, 8, 9]], [1, 1])]
RAW = {"a": [[4.0, 0.0, 2.0, 1.0, 1.0], [3.0, 1.0, 9.0, NAN]], "b": [[10, 30, 20, -5, 5], [0, 5, 6, 8]]}


# queries 3, 5, 6, 7: a (weight 3) -> 1, 0, .5 | .5, .5 | .5 | 0, 1, missing; b -> 0, 1, .5 | 0, 1 | .5 | 0, 1/3, 1
ENSEMBLE = [0.75, 0.25, 0.5, 0.375, 0.625, 0.5, 0.0, (3 + 1 / 3) / 4, 1.0]


def recipe(**label) -> Recipe:
    return parse_recipe(
        {
            "name": "t",
            "student": {"model": "x"},
            "label": label,
            "data": {"source": {"kind": "beir", "path": "x"}},
            "teachers": {"a": {"kind": "bm25", "weight": 3}, "b": {"kind": "bm25", "weight": 1}},
        }
    )


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path)
    write_passages(folder.passages, list("abcdefghij"))
    write_no_identity(folder, ["train"])
    write_queries(folder.queries("train"), [f"question {i}" for i in range(8)])
    write_ipc(folder.judgements("train"), JUDGEMENT_SCHEMA, [], {"fingerprint": "test"})
    path, shards = folder.candidates("train"), []
    for i, (queries, lists, positives) in enumerate(SHARDS):
        shards.append(
            write_candidates(path / f"part-{i:05d}.arrow", from_lists(queries, lists, positives, ("judgement",)), "c")
        )
    write_manifest(path, Manifest({"stage": "mine"}, shards))
    for teacher, values in RAW.items():
        scored = [
            write_scores(
                folder.scores(teacher, "train") / shard.name,
                read_candidates(path / shard.name),
                np.float32(part),
                fingerprint="s",
                teacher=teacher,
                missing=True,
            )
            for shard, part in zip(shards, values, strict=True)
        ]
        write_manifest(folder.scores(teacher, "train"), Manifest({"teacher": teacher}, scored))
    return folder


def all_labels(folder: RunFolder) -> dict[int, dict[int, float]]:
    """query row -> passage row -> label."""
    result = {}
    for shard in sorted(folder.labels().glob("*.arrow")):
        labels = read_labels(shard)
        for query, piece in zip(labels.query, map(slice, labels.offsets, labels.offsets[1:]), strict=True):
            result[int(query)] = dict(zip(labels.passages[piece].tolist(), labels.labels[piece].tolist(), strict=True))
    return result


def test_labels_without_mapping_are_the_ensemble(folder):
    manifest = build_labels(recipe(), folder)
    labels = all_labels(folder)
    assert {query: list(of_query) for query, of_query in labels.items()} == {3: [1, 2, 3], 5: [4, 5], 7: [7, 8, 9]}
    equal([label for of_query in labels.values() for label in of_query.values()], np.delete(ENSEMBLE, 5))
    counts = manifest.counts
    expected = {"queries": 3, "queries_dropped": 1, "queries_single": 1, "pairs": 8, "pairs_unscored": 0}
    assert {key: counts[key] for key in expected} == expected
    assert counts["constant_lists"] == {"a": 1, "b": 0} and counts["missing_scores"] == {"a": 1, "b": 0}
    assert counts["negatives_above_positive"] == 3 / 5


def test_mapped_labels_take_the_reference_teachers_moments(folder):
    build_labels(recipe(map_to="b"), folder)
    raw = np.concatenate([np.float64(part) for part in RAW["b"]])
    mapped = (np.array(ENSEMBLE) - np.mean(ENSEMBLE)) / np.std(ENSEMBLE) * raw.std() + raw.mean()
    labels = all_labels(folder)
    equal([*labels[3].values(), *labels[5].values(), *labels[7].values()], np.delete(mapped, 5))


def test_negatives_above_the_positive_are_dropped_and_counted(folder):
    manifest = build_labels(recipe(drop_false_negatives=0.3), folder)
    assert {query: list(labels) for query, labels in all_labels(folder).items()} == {3: [1, 2, 3], 5: [4, 5]}
    assert manifest.counts["false_negatives_dropped"] == 2 and manifest.counts["queries_dropped"] == 2


def test_changed_limits_change_the_labels_and_their_fingerprint(folder):
    manifest = build_labels(recipe(max_score=0.6), folder)
    assert {query: list(labels) for query, labels in all_labels(folder).items()} == {3: [1, 2, 3]}
    assert manifest.counts["false_negatives_dropped"] == 3 and manifest.counts["queries_dropped"] == 3
    with pytest.raises(FingerprintError, match="max_score"):
        build_labels(recipe(max_score=0.7), folder)


def test_repeated_labelling_changes_nothing_and_other_options_are_refused(folder):
    first = build_labels(recipe(), folder)
    written = {path: path.stat().st_mtime_ns for path in folder.labels().iterdir()}
    assert build_labels(recipe(), folder) == first
    assert {path: path.stat().st_mtime_ns for path in folder.labels().iterdir()} == written
    with pytest.raises(FingerprintError, match='normalise "min-max" -> "z-score"'):
        build_labels(recipe(normalise="z-score"), folder)
    assert len(TrainingData.open(folder)) == 3


def test_imported_teachers_take_part_in_training_only(folder):
    ours = parse_recipe(
        {**recipe().model_dump(mode="json"), "teachers": {"a": {"kind": "bm25"}, "b": {"kind": "imported"}}}
    )
    assert teachers_of(ours, "train") == ["a", "b"] and teachers_of(ours, "test") == ["a"]
    for path in (folder.candidates, lambda split: folder.scores("a", split)):
        path("train").rename(path("test"))
    (_, _, values), *_ = ensemble_scores(Run(ours, folder), "test")
    equal(values, [1, 0, 0.5, 0.5, 0.5])  # teacher a alone


def test_labels_need_the_finished_scores_of_every_teacher(folder):
    (folder.scores("b", "train") / "manifest.json").unlink()
    with pytest.raises(StorageError, match=r"scores/b/train.*distill score"):
        build_labels(recipe(), folder)
    assert not folder.labels().exists()


@pytest.mark.parametrize("queries, reverse", [([3, 4], False), (SHARDS[0][0], True)])
def test_scores_of_other_candidates_are_refused(folder, queries, reverse):
    lists = [rows[::-1] for rows in SHARDS[0][1]] if reverse else SHARDS[0][1]
    other = from_lists(queries, lists, [1, 1], ("judgement",))
    path = folder.scores("b", "train") / "part-00000.arrow"
    write_scores(path, other, np.float32(RAW["b"][0]), fingerprint="s", teacher="b", exclusive=False)
    with pytest.raises(StorageError, match="not scores of the candidate shard"):
        build_labels(recipe(), folder)


def test_nothing_to_train_on_is_an_error(folder):
    with pytest.raises(DataError, match="nothing to train on"):
        build_labels(recipe(drop_false_negatives=-5.0), folder)
    assert not (folder.labels() / "manifest.json").exists()


def test_statistics_describe_each_teacher_and_their_agreement(folder):
    stats = label_stats(Run(recipe(), folder))
    a, b = stats.teachers["a"], stats.teachers["b"]
    raw = np.concatenate([np.float64(part) for part in RAW["b"]])
    equal([b.mean, b.std, b.quantiles["0.5"]], [raw.mean(), raw.std(), np.median(raw)])
    assert (a.scores, a.missing, b.missing) == (8, 1, 0)
    equal([a.negatives_above_positive, b.negatives_above_positive], [1 / 4, 1.0])
    taus = [kendalltau([4, 0, 2], [10, 30, 20]).statistic, kendalltau([1, 9], [5, 6]).statistic]
    equal(stats.kendall_tau["a", "b"], np.mean(taus))


def test_scale_multiplies_the_labels_and_excludes_a_mapping(folder):
    build_labels(recipe(), folder)
    plain = all_labels(folder)
    (folder.labels() / "manifest.json").unlink()
    build_labels(recipe(scale=8), folder)
    scaled = all_labels(folder)
    assert plain.keys() == scaled.keys()
    for query in plain:
        equal([scaled[query][p] for p in plain[query]], [8 * value for value in plain[query].values()])
    with pytest.raises(RecipeError, match="leave out scale, or map_to"):
        recipe(scale=8, map_to="a")


def without_positives(folder: RunFolder, unjudged: dict[int, int]) -> RunFolder:
    """The fixture's candidates with other numbers of positives for some queries."""
    path, shards = folder.candidates("train"), []
    for i, (queries, lists, positives) in enumerate(SHARDS):
        known = [unjudged.get(query, count) for query, count in zip(queries, positives, strict=True)]
        candidates = from_lists(queries, lists, known, ("judgement",))
        shards.append(write_candidates(path / f"part-{i:05d}.arrow", candidates, "c"))
    write_manifest(path, Manifest({"stage": "mine"}, shards))
    return folder


def test_a_list_without_a_positive_is_labelled_if_it_has_two_scored_passages(folder):
    manifest = build_labels(recipe(), without_positives(folder, {5: 0, 6: 0, 7: 0}))
    labels = all_labels(folder)
    assert {query: list(of_query) for query, of_query in labels.items()} == {3: [1, 2, 3], 5: [4, 5], 7: [7, 8, 9]}
    equal([label for of_query in labels.values() for label in of_query.values()], np.delete(ENSEMBLE, 5))
    counts = manifest.counts
    assert (counts["queries"], counts["queries_without_positives"], counts["queries_dropped"]) == (3, 2, 1)
    assert counts["negatives_above_positive"] == 0.0  # of the two negatives of query 3
    assert TrainingData.open(folder).query(1)[3] == 0


@pytest.mark.parametrize(
    ("limits", "kept"),
    [
        ({"drop_false_negatives": -5.0}, {5: [4, 5], 7: [7, 8, 9]}),
        ({"relative_margin": 0.9, "max_score": 0.1}, {5: [4, 5], 7: [7, 8, 9]}),
        ({"min_score": 0.5}, {3: [1, 3], 7: [8, 9]}),
    ],
)
def test_limits_keep_a_list_without_a_positive_but_for_what_is_too_easy(folder, limits, kept):
    build_labels(recipe(**limits), without_positives(folder, {5: 0, 7: 0}))
    assert {query: list(labels) for query, labels in all_labels(folder).items()} == kept


def test_negatives_above_the_positive_are_counted_where_there_is_a_positive(folder):
    stats = label_stats(Run(recipe(), without_positives(folder, {5: 0, 7: 0})))
    assert [stats.teachers[name].negatives_above_positive for name in "ab"] == [0.0, 1.0]
