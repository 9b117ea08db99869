"""Stage 5, label: training labels from the teachers' scores."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distill.labelling.labels import build_labels
from distill.labelling.weights import auto_weights
from distill.planning.case import Case, StageCost, on_processors
from distill.planning.volumes import BYTES_PER_PAIR, BYTES_PER_SCORE
from distill.run.manifest import FORMAT, require_manifest
from distill.run.output import Output
from distill.run.run import Run
from distill.run.stage import Stage

LABELS_PER_SECOND = 1e6  # measured on two processor cores


def label_fields(run: Run) -> dict[str, Any]:
    """Fingerprint inputs of the labels. Raises `StorageError` if a teacher's scores are not finished."""
    recipe, folder = run.recipe, run.folder
    return {
        "stage": "label",
        "format": FORMAT,
        "candidates": require_manifest(folder.candidates("train"), "mine").fingerprint,
        "teachers": {
            name: {
                "scores": require_manifest(folder.scores(name, "train"), "score").fingerprint,
                "weight": teacher.known_weight,
            }
            for name, teacher in recipe.teachers.items()
        },
        **recipe.label.model_dump(mode="json"),
    }


def outputs(run: Run) -> list[Output]:
    return [Output(run.folder.labels(), lambda: label_fields(run))]


def execute(run: Run, outputs: Sequence[Output]) -> None:
    build_labels(run, outputs[0])


def statistics(run: Run) -> None:
    from distill.labelling.stats import label_stats, print_label_stats

    print_label_stats(label_stats(run))


def cost(case: Case) -> StageCost:
    """One process reads all scores twice."""
    label, pairs = case.recipe.label, case.counts.train_pairs
    mapped = f", mapped to {label.map_to}" if label.map_to else ""
    rate = f"{LABELS_PER_SECOND:,.0f} labels per second"
    made = on_processors(case, "label", pairs / LABELS_PER_SECOND, rate, lambda case: case.counts.train_pairs)
    work = f"{label.normalise} per query, weighted mean{mapped}: {pairs:,} labels"
    return StageCost(work, pairs * (BYTES_PER_PAIR + BYTES_PER_SCORE), [made])


STAGE = Stage(
    "label",
    help="Make training labels from the teachers' scores.",
    outputs=outputs,
    auto_of=auto_weights,
    execute=execute,
    cost=cost,
    needs=("import", "mine", "teach", "score"),
    statistics=statistics,
)
