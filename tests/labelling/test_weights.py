"""Weights of teachers, fitted on judged development queries."""

import ir_measures
import numpy as np
import pyarrow as pa
import pytest
from ir_measures import nDCG

from distill.errors import RecipeError
from distill.labelling.labels import normalise
from distill.labelling.stage import label_fields
from distill.labelling.weights import fit_weights
from distill.pipeline.resolve import known_values, resolve
from distill.recipe.load import parse_recipe
from distill.run.layout import RunFolder
from distill.run.manifest import Manifest, write_manifest
from distill.run.run import Run
from distill.store.arrow import write_ipc
from distill.store.candidates import from_lists, read_candidates, write_candidates
from distill.store.judgements import JUDGEMENT_SCHEMA
from distill.store.scores import write_scores

LANGUAGE = "english (100% of 10 sampled passages are English)"  # as the import finds it
QUERIES, LENGTH = 60, 20
NOISE = {"good": 1.0, "other": 1.2, "junk": None, "silent": None}  # None: scores that know nothing


def recipe(root, **weights):
    teachers = {name: {"kind": "bm25", "weight": weight} for name, weight in weights.items()}
    source = {"kind": "beir", "path": "x"}
    return parse_recipe(
        {"name": "t", "run_dir": str(root), "student": {"model": "x"}, "data": {"source": source}, "teachers": teachers}
    )


def raw_scores():
    """Each teacher's scores [QUERIES, LENGTH]: what is relevant (the first passage of each list) plus its own noise."""
    rng = np.random.default_rng(5)
    relevant = np.zeros((QUERIES, LENGTH))
    relevant[:, 0] = 2.0
    return {
        name: relevant * (noise is not None) + rng.normal(0, noise or 1.0, relevant.shape)
        for name, noise in NOISE.items()
    }


@pytest.fixture
def folder(tmp_path) -> RunFolder:
    folder = RunFolder(tmp_path)
    rows = {"query": list(range(QUERIES)), "passage": [0] * QUERIES, "grade": [1] * QUERIES}
    batch = pa.RecordBatch.from_pydict(rows, schema=JUDGEMENT_SCHEMA)
    write_ipc(folder.judgements("dev"), JUDGEMENT_SCHEMA, [batch], {"fingerprint": "test"})
    counts = {"queries.dev": QUERIES, "queries.dev.generated": 0, "language": LANGUAGE}
    write_manifest(folder.data, Manifest({"stage": "import"}, [], counts))
    for split in ("train", "dev"):
        path, lists = folder.candidates(split), [list(range(LENGTH))] * QUERIES
        shard = write_candidates(
            path / "part-00000.arrow", from_lists(list(range(QUERIES)), lists, [1] * QUERIES, ("judgement",)), "c"
        )
        write_manifest(path, Manifest({"stage": "mine"}, [shard]))
        for name, scores in raw_scores().items():
            scored = write_scores(
                folder.scores(name, split) / shard.name,
                read_candidates(path / shard.name),
                np.float32(scores.ravel()),
                fingerprint="s",
                teacher=name,
                missing=False,
            )
            write_manifest(folder.scores(name, split), Manifest({"teacher": name}, [scored]))
    return folder


def measured(**weights):
    """nDCG@10 of the weighted mean of normalised scores, by ir_measures on dense arrays."""
    scores, offsets = raw_scores(), np.arange(0, QUERIES * LENGTH + 1, LENGTH)
    total = sum(weight * normalise(scores[name].ravel(), offsets, "min-max") for name, weight in weights.items())
    run = {
        str(q): {str(p): float(value) for p, value in enumerate(row)}
        for q, row in enumerate(total.reshape(QUERIES, LENGTH))
    }
    return ir_measures.calc_aggregate([nDCG @ 10], {str(q): {"0": 1} for q in range(QUERIES)}, run)[nDCG @ 10]


def test_a_teacher_that_makes_the_ensemble_worse_is_left_out(folder):
    run = Run(recipe(folder.root, good="auto", other="auto", junk="auto"), folder)
    weights, alone, together = fit_weights(run)
    assert weights["junk"] == 0 and weights["good"] > 0 and weights["other"] > 0
    assert alone == pytest.approx({name: measured(**{name: 1.0}) for name in weights}, abs=1e-6)
    assert together == pytest.approx(measured(**weights), abs=1e-6)
    assert together > max(measured(good=1.0), measured(good=1.0, other=1.0, junk=1.0))


def test_given_weights_stay_and_the_values_are_recorded_and_part_of_the_labels(folder):
    run = Run(recipe(folder.root, good=1.0, junk="auto"), folder)
    resolved = resolve(run)
    assert {name: teacher.weight for name, teacher in resolved.recipe.teachers.items()} == {"good": 1.0, "junk": 0.0}
    same = Run(recipe(folder.root, good=1.0, junk=0.0), folder)
    assert label_fields(resolved) == label_fields(same)
    assert "on the judged development queries: good" in known_values(run)[1]["teachers.junk.weight"]
    assert "not better" in folder.resolved.read_text()


@pytest.mark.parametrize(
    ("counts", "reason"),
    [
        ({"queries.dev": QUERIES, "queries.dev.generated": QUERIES}, "are generated ones, which favour"),
        ({"queries.dev": 12, "queries.dev.generated": 0}, "12 development queries are too few"),
    ],
)
def test_generated_or_few_queries_choose_nothing(folder, counts, reason):
    write_manifest(folder.data, Manifest({"stage": "import"}, [], {"language": LANGUAGE, **counts}))
    run = resolve(Run(recipe(folder.root, good="auto", junk="auto"), folder))
    assert {teacher.weight for teacher in run.recipe.teachers.values()} == {1.0}
    assert reason in folder.resolved.read_text()


def test_nothing_is_chosen_before_the_development_queries_are_scored(folder):
    (folder.scores("junk", "dev") / "manifest.json").unlink()
    run = resolve(Run(recipe(folder.root, good="auto", junk="auto"), folder))
    assert {teacher.weight for teacher in run.recipe.teachers.values()} == {"auto"}
    with pytest.raises(RecipeError, match="a weight is auto, which is chosen when"):
        label_fields(run)


def test_a_weight_cannot_be_fitted_without_scores_of_development_queries(folder):
    with pytest.raises(RecipeError, match=r"teachers\.good\.weight is auto, but with score\.rerank: false"):
        parse_recipe({**recipe(folder.root, good="auto").model_dump(mode="json"), "score": {"rerank": False}})
    with pytest.raises(RecipeError, match=r"teachers\.good\.weight is auto, but without a student"):
        parse_recipe({**recipe(folder.root, good="auto").model_dump(mode="json"), "student": None})
