"""What the report and the model card both say about a run, gathered from its recipe and its manifests."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from distill import __version__
from distill.config import AnyStudent, Loss, Recipe, Teacher, TopK
from distill.data.files import read_json, read_json_lines
from distill.data.layout import SPLITS, RunFolder, run_at
from distill.data.manifest import read_manifest
from distill.recipe_file import load_recipe

_SOURCES = {
    "python-docs": "docstrings of the Python standard library (query: summary line, passage: name and body)",
    "beir": "a collection in BEIR's layout",
    "msmarco": "MS MARCO passages",
    "jsonl": "queries with labelled passages",
    "naver": "hard negatives scored by naver's tools",
    "huggingface": "a Hugging Face dataset",
    "ir-datasets": "a collection of the ir_datasets catalogue",
}


def evaluation_of(folder: RunFolder) -> dict[str, Any] | None:
    """What `evaluate` wrote, or None while there is nothing."""
    return read_json(folder.evaluation) if folder.evaluation.exists() else None


def dataset_name(recipe: Recipe) -> str:
    """The source's name, without the path to it."""
    source = recipe.data.source
    if hasattr(source, "path"):
        return Path(source.path).name
    return getattr(source, "dataset", source.kind)


def data_sentence(recipe: Recipe) -> str:
    """The source in words."""
    kind, name = recipe.data.source.kind, dataset_name(recipe)
    sentence = _SOURCES[kind] + (f" (`{name}`)" if name != kind else "")
    if recipe.data.generate is not None:
        sentence += f"; training queries made from the passages ({', '.join(recipe.data.generate.kinds)})"
    return sentence


def counts(folder: RunFolder) -> dict[str, dict[str, Any]]:
    """What each finished stage counted, by stage, nested counts under dotted names."""
    stages = {
        "import": folder.data,
        **{f"mine, {split}": folder.candidates(split) for split in SPLITS},
        "label": folder.labels(),
    }
    found = {name: read_manifest(path) for name, path in stages.items()}
    return {name: _flat(manifest.counts) for name, manifest in found.items() if manifest and manifest.counts}


def teacher_rows(recipe: Recipe, folder: RunFolder) -> list[dict[str, str]]:
    """One row a teacher: what it is, its weight, and how many training queries it scored."""
    rows = []
    for name, teacher in recipe.teachers.items():
        manifest = read_manifest(folder.scores(name, "train"))
        rows.append(
            {
                "teacher": name,
                "kind": teacher.kind,
                "model": model_name(teacher.model or teacher.cls or "–"),
                "fine-tuned": _fine_tuning(teacher),
                "weight": f"{teacher.weight:g}",
                "training queries scored": f"{manifest.rows:,}" if manifest else "–",
            }
        )
    return rows


def training_rows(recipe: Recipe) -> list[tuple[str, str]]:
    """The training in a few lines of (what, value)."""
    train = recipe.train
    length = f"{train.steps} steps" if train.steps else f"{train.epochs:g} epochs"
    return [
        ("losses", _losses(train.losses) + _top_ks(train.top_ks)),
        *(
            (f"dataset {name}", _losses(train.losses if other.losses is None else other.losses))
            for name, other in train.datasets.items()
        ),
        ("query regularisers", _regularizers(train.query_regularizers)),
        ("passage regularisers", _regularizers(train.passage_regularizers)),
        ("length", f"{length} of {train.batch_size} queries × {1 + train.negatives} passages"),
        (
            "optimizer",
            f"{train.optimizer}, learning rate {train.lr:g}"
            + (f" (head {train.head_lr:g})" if train.head_lr else "")
            + (f" (query table {train.table_lr:g})" if train.table_lr else "")
            + f", {train.schedule}, {train.warmup_ratio:.0%} warm-up",
        ),
        ("student", student_sentence(recipe.student)),
    ]


def _losses(losses: Sequence[Loss]) -> str:
    return "; ".join(_term(loss.kind, loss.weight, loss.model_dump(exclude_defaults=True)) for loss in losses)


def _top_ks(caps: tuple[TopK, ...]) -> str:
    said = ", ".join(f"{cap.k or 'all'} (weight {cap.weight:g})" for cap in caps)
    return f"; averaged over the strongest terms of a text: {said}" if caps else ""


def student_sentence(student: AnyStudent) -> str:
    lengths = f"queries of at most {student.query_max_length} tokens, passages of {student.passage_max_length}"
    if student.kind == "csr":
        return f"{model_name(student.model)}, its vectors as at most {student.k} latents (CSR); {lengths}"
    if student.kind == "custom":
        return f"{student.cls} on {model_name(student.model)}; {lengths}"
    layers = f", its lower {student.layers} layers" if student.layers else ""
    kind = student.query.kind
    query = {"model": "", "lexical": "; queries without expansion"}.get(kind, f"; inference-free queries ({kind})")
    return f"{model_name(student.model)}{layers}; {student.pooling} pooling{query}; {lengths}"


def model_name(name: str) -> str:
    """A model as it may be shown: a hub name as it is, a path without the folders above."""
    return Path(name).name if Path(name).is_absolute() or name.startswith(".") else name.removeprefix("package:")


def recipe_yaml(recipe: Recipe) -> str:
    """The resolved recipe with all its rounds, without where it was run: another machine makes the same of it."""
    whole = recipe if recipe.follows is None else load_recipe(run_at(recipe.follows.run).recipe)
    tree = whole.model_dump(mode="json", exclude={"run_dir", "follows", "slurm", "cluster"})
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True)


def training_log(folder: RunFolder) -> list[dict[str, Any]]:
    """The finished lines of logs/train.jsonl."""
    return list(read_json_lines(folder.train_log))


def logged_numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """The numbers of one line of the log but its step; those of an evaluation during training under `dev/`."""
    prefix = "dev/" if line.get("event") == "evaluation" else ""
    return {
        prefix + name: float(value)
        for name, value in line.items()
        if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def version() -> str:
    return f"splade-distill {__version__}"


def _fine_tuning(teacher: Teacher) -> str:
    cfg = teacher.fine_tune
    return "–" if cfg is None else f"{cfg.folds} folds, {cfg.epochs:g} epochs, {cfg.negatives} negatives"


def _regularizers(regularizers: tuple) -> str:
    return "; ".join(_term(r.kind, r.weight, r.model_dump(exclude_defaults=True)) for r in regularizers) or "none"


def _term(kind: str, weight: float, fields: dict[str, Any]) -> str:
    options = ", ".join(
        f"{key.replace('_', ' ')} {value}" for key, value in fields.items() if key not in ("kind", "weight")
    )
    return f"{weight:g} × {kind}" + (f" ({options})" if options else "")


def _flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, dict):
            flat.update(_flat(value, f"{prefix}{key}."))
        elif value not in (None, [], ""):
            flat[f"{prefix}{key}"] = value
    return flat
