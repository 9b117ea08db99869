"""Labels: each step on numbers worked by hand, then the stage on shards."""

import numpy as np
import pytest
from scipy.stats import kendalltau
from small_run import write_passages

from distill.config import Label, Recipe
from distill.data.batches import TrainingData
from distill.data.candidates import from_lists, read_candidates, write_candidates
from distill.data.label_stats import label_stats
from distill.data.labels import (
    Moments,
    affine_map,
    build_labels,
    ensemble,
    ensemble_scores,
    keep_negatives,
    normalise,
    read_labels,
    teachers_of,
)
from distill.data.layout import RunFolder
from distill.data.manifest import Manifest, write_manifest
from distill.data.scores import write_scores
from distill.errors import DataError, FingerprintError, RecipeError, StorageError
from distill.recipe_file import parse_recipe

NAN = float("nan")


def equal(values, expected):
    np.testing.assert_allclose(values, expected, rtol=1e-6, equal_nan=True)


def test_min_max_by_hand():
    scores = [2.0, 6.0, 4.0, 7.0, 5.0, 5.0, NAN, -1.0, 1.0]
    offsets = np.array([0, 3, 4, 6, 6, 9])  # three, a single one, a constant list, an empty one, one missing
    equal(normalise(scores, offsets, "min-max"), [0, 1, 0.5, 0.5, 0.5, 0.5, NAN, 0, 1])


def test_z_score_by_hand():
    scores = [1.0, 3.0, 9.0, 4.0, 4.0, NAN, 2.0, 6.0, NAN]
    offsets = np.array([0, 2, 3, 5, 5, 8, 9])
    equal(normalise(scores, offsets, "z-score"), [-1, 1, 0, 0, 0, NAN, -1, 1, NAN])
    equal(normalise([0.1, 0.1, 0.1], np.array([0, 3]), "z-score"), [0, 0, 0])  # rounding noise is no spread
    equal(normalise(scores, offsets, "none"), scores)


def test_the_ensemble_is_a_weighted_mean_of_what_is_there():
    matrix = np.array([[0.0, 1.0, NAN, NAN], [1.0, 0.5, 0.25, NAN]])
    equal(ensemble(matrix, np.array([1.0, 3.0])), [0.75, 0.625, 0.25, NAN])


def test_the_affine_map_gives_the_reference_mean_and_deviation():
    values = np.array([0.0, 0.5, 1.0, 1.0])
    mapped = affine_map(values, values.mean(), values.std(), -3.0, 2.5)
    equal([mapped.mean(), mapped.std()], [-3.0, 2.5])
    equal(affine_map(np.array([2.0, 2.0]), 2.0, 0.0, -3.0, 2.5), [-3, -3])


def test_false_negatives_are_those_far_above_the_best_positive():
    labels = np.array([2.0, 1.0, 2.4, 2.6, NAN, 5.0, 9.0])
    positive = np.array([True, True, False, False, True, False, False])
    kept = keep_negatives(labels, positive, np.array([0, 4, 6, 7]), Label(drop_false_negatives=0.5))
    assert kept.tolist() == [True, True, True, False, True, True, True]


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
def test_negatives_are_filtered_as_in_mining_by_sentence_transformers(limits):
    """As its documentation has it: positive - score >= absolute_margin, score <= positive - |positive| * margin."""
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
    kept = keep_negatives(labels, np.arange(2 * size) % size == 0, np.array([0, size, 2 * size]), Label(**limits))
    expected = [fits for positive in positives for fits in (True, *(stays(positive, score) for score in negatives))]
    assert kept.tolist() == expected and not all(expected)


def test_moments_of_parts_are_those_of_the_whole():
    values = np.random.default_rng(0).normal(1000, 3, 500)
    moments = Moments()
    for part in (values[:3], values[3:3], values[3:], np.array([NAN])):
        moments.add(part)
    equal([moments.count, moments.mean, moments.std], [500, values.mean(), values.std()])


# two shards: lists of (positive, negatives); query 5 has a constant list, 6 a single candidate, 7 a missing score
SHARDS = [([3, 5], [[1, 2, 3], [4, 5]], [1, 1]), ([6, 7], [[6], [7, 8, 9]], [1, 1])]
RAW = {"a": [[4.0, 0.0, 2.0, 1.0, 1.0], [3.0, 1.0, 9.0, NAN]], "b": [[10, 30, 20, -5, 5], [0, 5, 6, 8]]}


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
    found = {}
    for shard in sorted(folder.labels().glob("*.arrow")):
        labels = read_labels(shard)
        for query, piece in zip(labels.query, map(slice, labels.offsets, labels.offsets[1:]), strict=True):
            found[int(query)] = dict(zip(labels.passages[piece].tolist(), labels.labels[piece].tolist(), strict=True))
    return found


def test_labels_without_mapping_are_the_ensemble(folder):
    manifest = build_labels(recipe(), folder)
    # query 3: a -> 1, 0, .5 (weight 3); b -> 0, 1, .5 (weight 1)
    # query 5: a constant -> .5; b -> 0, 1.  query 7: a -> 0, 1, missing; b -> 0, 1/3, 1
    labels = all_labels(folder)
    assert set(labels) == {3, 5, 7}
    equal(list(labels[3].values()), [0.75, 0.25, 0.5])
    equal(list(labels[5].values()), [0.375, 0.625])
    equal([labels[7][p] for p in (7, 8, 9)], [0, (3 + 1 / 3) / 4, 1])
    counts = manifest.counts
    assert [counts[key] for key in ("queries", "queries_dropped", "queries_single", "pairs", "pairs_unscored")] == [
        3,
        1,
        1,
        8,
        0,
    ]
    assert counts["constant_lists"] == {"a": 1, "b": 0} and counts["missing_scores"] == {"a": 1, "b": 0}
    assert counts["negatives_above_positive"] == 3 / 5


def test_mapped_labels_take_the_reference_teachers_moments(folder):
    build_labels(recipe(map_to="b"), folder)
    ours = np.concatenate([values for _, _, values in ensemble_scores(recipe(), folder, "train")])
    raw = np.concatenate([np.float64(part) for part in RAW["b"]])
    mapped = (ours - ours.mean()) / ours.std() * raw.std() + raw.mean()
    labels = all_labels(folder)
    equal([*labels[3].values(), *labels[5].values(), *labels[7].values()], np.delete(mapped, 5))


def test_negatives_above_the_positive_are_dropped_and_counted(folder):
    manifest = build_labels(recipe(drop_false_negatives=0.3), folder)
    assert {query: list(labels) for query, labels in all_labels(folder).items()} == {3: [1, 2, 3], 5: [4, 5]}
    assert manifest.counts["false_negatives_dropped"] == 2 and manifest.counts["queries_dropped"] == 2


def test_limits_of_labels_are_part_of_what_they_are(folder):
    manifest = build_labels(recipe(max_score=0.6), folder)
    assert {query: list(labels) for query, labels in all_labels(folder).items()} == {3: [1, 2, 3]}
    assert manifest.counts["false_negatives_dropped"] == 3 and manifest.counts["queries_dropped"] == 3
    with pytest.raises(FingerprintError, match="max_score"):
        build_labels(recipe(max_score=0.7), folder)


def test_labels_are_made_once_and_other_labels_are_refused(folder):
    first = build_labels(recipe(), folder)
    assert build_labels(recipe(), folder) == first
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
    (_, candidates, values), *_ = ensemble_scores(ours, folder, "test")
    equal(values, normalise(RAW["a"][0], candidates.offsets, "min-max"))


def test_labels_wait_for_every_teacher(folder):
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


def test_statistics_of_the_teachers(folder):
    stats = label_stats(recipe(), folder)
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
