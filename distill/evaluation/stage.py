"""Stage 7, evaluate: the saved student against BM25, its teachers and the untrained student."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from distill.config import Evaluate, Recipe
from distill.errors import RecipeError
from distill.evaluation.compared import other_students
from distill.evaluation.rerank import scored_teachers
from distill.planning.case import Case, Cost, StageCost, encoded, on_one_device, searched
from distill.reporting.table import print_rounds, print_table
from distill.reporting.tracking import follow
from distill.retrieval.bm25_settings import bm25_fields
from distill.run.files import read_json
from distill.run.layout import RunFolder
from distill.run.manifest import FORMAT, read_manifest, require_manifest
from distill.run.model_ref import content_hash
from distill.run.output import Output
from distill.run.run import Run
from distill.run.stage import Stage
from distill.store.judgements import load_judgements
from distill.store.texts import TextStore

_NOTHING_JUDGED = (
    "add judged queries, let data.generate make development queries (its dev_share) and set evaluate.split=dev, or run "
    "the other stages one by one, without `evaluate`"
)


def evaluation_fields(run: Run) -> dict[str, Any]:
    """Fingerprint inputs of the evaluation."""
    cfg = run.recipe.evaluate
    require_manifest(run.folder.model, "train")
    fields = {
        "stage": "evaluate",
        "format": FORMAT,
        "split": cfg.split,
        "metrics": list(cfg.metrics),
        "depth": cfg.depth,
        "baselines": cfg.baselines,
        "model": content_hash(run.folder.model),
        "data": require_manifest(run.folder.data, "import").fingerprint,
    }
    if cfg.baselines:
        teachers = scored_teachers(run, cfg.split)
        fields |= {name: content_hash(path) for name, (_, path) in other_students(run).items()}
        fields["normalise"] = run.recipe.label.normalise
        fields["weights"] = {name: run.recipe.teachers[name].known_weight for name in teachers}
        fields["scores"] = {
            name: require_manifest(run.folder.scores(name, cfg.split), "score").fingerprint for name in teachers
        }
    if cfg.searches_bm25:
        fields |= bm25_fields(run)
    searched_by_seismic = cfg.search == "seismic" or bool(cfg.top_ks)
    return {
        **fields,
        "search": cfg.search,
        "seismic": cfg.seismic.model_dump(mode="json") if searched_by_seismic else None,
        "curve": {"top_ks": sorted(set(cfg.top_ks)), "of": cfg.top_ks_of} if cfg.top_ks else None,
        "evaluators": _evaluator_fields(cfg),
    }


def _evaluator_fields(cfg: Evaluate) -> list[dict[str, Any]]:
    if not cfg.evaluators:
        return []
    from distill.evaluation.evaluator_data import evaluator_fields

    return [evaluator_fields(entry) for entry in cfg.evaluators]


def outputs(run: Run) -> list[Output]:
    return [Output(run.folder.metrics, lambda: evaluation_fields(run))]


def execute(run: Run, outputs: Sequence[Output]) -> None:
    from distill.evaluation.evaluate import evaluate

    with follow(run):
        evaluate(run, outputs[0])


def check_recipe(recipe: Recipe) -> None:
    """Refuse unknown metrics, and cutoffs beyond `evaluate.depth`."""
    from distill.evaluation.metrics import check_depth

    check_depth(recipe.evaluate.metrics, recipe.evaluate.depth)


def check_data(run: Run) -> None:
    """Refuse a split without judgements, and evaluators that do not fit their data or the collection."""
    cfg, folder = run.recipe.evaluate, run.folder
    if not _is_judged(folder, cfg.split):
        others = [other for other in ("dev", "test") if _is_judged(folder, other)]
        remedy = f"set evaluate.split={others[0]}" if others else _NOTHING_JUDGED
        raise RecipeError(
            f"evaluate.split is {cfg.split!r}, but the data in {folder.data} has no judged {cfg.split} queries; "
            + remedy
        )
    if cfg.evaluators and read_manifest(folder.metrics) is None:
        from distill.evaluation.evaluators import check_evaluators

        check_evaluators(cfg.evaluators, TextStore.open(folder.passages).collection_size)


def _is_judged(folder: RunFolder, split: str) -> bool:
    return folder.judgements(split).exists() and len(load_judgements(folder, split).with_positives) > 0


def print_results(runs: Sequence[Run]) -> None:
    """Print the last round's table, the comparison of rounds, and the paths of checkpoint and report."""

    evaluations = [read_json(run.folder.evaluation) for run in runs]
    print_table(evaluations[-1])
    if len(runs) > 1:
        print_rounds(evaluations)
    print(f"checkpoint: {runs[-1].folder.model}\nreport:     {runs[-1].folder.report}")


def cost(case: Case) -> StageCost:
    """Encoding and search of the collection on one device, by the student and, if compared, the untrained student."""
    cfg, size = case.recipe.evaluate, case.size
    queries = size.queries[cfg.split]
    work, disk = f"{queries:,} {cfg.split} queries against {size.passages:,} passages", queries * cfg.depth * 40.0
    if measured := on_one_device(case, "evaluate", lambda case: case.size.texts):
        return StageCost(work, disk, [measured])
    parts: list[Cost] = []
    for name in ("student", "its start")[: 2 if cfg.baselines and cfg.start else 1]:
        cost = encoded(case, f"{name}: encode")
        if cost.device_seconds is not None:
            cost = replace(cost, wall_seconds=cost.device_seconds + case.start, bound="one device")
        parts += [cost, searched(replace(case, gpus=1), f"{name}: search", queries)]
    return StageCost(work, disk, parts)


STAGE = Stage(
    "evaluate",
    help="Evaluate the saved student, its teachers and BM25 on the judged queries.",
    outputs=outputs,
    execute=execute,
    cost=cost,
    needs=("mine", "teach", "score", "label", "train"),  # not import: the machine may lack the source
    needs_student=True,
    check_recipe=check_recipe,
    check_data=check_data,
    results=print_results,
    pages=True,
)
