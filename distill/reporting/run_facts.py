"""Facts about a run that the report and the model card share, read from its recipe and manifests."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

import yaml

from distill.config import AUTO, AnyRegularizer, AnyStudent, Loss, Recipe, Teacher, TopK
from distill.recipe.load import load_recipe
from distill.run.files import read_json, read_json_lines
from distill.run.layout import RunFolder, run_at
from distill.run.manifest import read_manifest
from distill.run.resolved import read_record, value_of
from distill.run.run import Run
from distill.run.truncation import read_truncation

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
    """Content of metrics/evaluation.json; None before the evaluation."""
    return read_json(folder.evaluation) if folder.evaluation.exists() else None


def dataset_name(recipe: Recipe) -> str:
    """The source's name, without its path."""
    source = recipe.data.source
    if hasattr(source, "path"):
        return Path(source.path).name
    return getattr(source, "dataset", source.kind)


def data_sentence(recipe: Recipe) -> str:
    """Describe the data source."""
    kind, name = recipe.data.source.kind, dataset_name(recipe)
    sentence = _SOURCES[kind] + (f" (`{name}`)" if name != kind else "")
    if recipe.data.generate is not None:
        sentence += f"; training queries made from the passages ({', '.join(recipe.data.generate.kinds)})"
    if recipe.data.query_log is not None:
        sentence += "; training queries without judgements, from a query log"
    return sentence


def teacher_rows(run: Run) -> list[dict[str, str]]:
    """One row per teacher: its kind and model, its weight, and the number of training queries that it scored."""
    rows = []
    for name, teacher in run.recipe.teachers.items():
        manifest = read_manifest(run.folder.scores(name, "train"))
        rows.append(
            {
                "teacher": name,
                "kind": teacher.kind,
                "model": model_name(teacher.model or teacher.cls or "–"),
                "fine-tuned": _fine_tuning(teacher),
                "weight": "auto" if teacher.weight == AUTO else f"{teacher.weight:g}",
                "training queries scored": f"{manifest.rows:,}" if manifest else "–",
            }
        )
    return rows


def training_rows(recipe: Recipe) -> list[tuple[str, str]]:
    """Describe the training in rows of (name, value); none without a student."""
    if recipe.student is None:
        return []
    train = recipe.train
    length = f"{train.steps} steps" if train.steps else f"{train.epochs:g} epochs"
    return [
        ("losses", _losses(train.losses) + _top_ks(train.top_ks)),
        *(
            (f"dataset {name}", _losses(train.losses if dataset.losses is None else dataset.losses))
            for name, dataset in train.datasets.items()
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


def chosen_rows(run: Run) -> list[tuple[str, str]]:
    """Describe the values that the program chose for the recipe, in rows of (field, value and reason)."""
    return [
        (entry.field, f"{entry.value}, chosen from the data: {entry.reason}")
        for entry in read_record(run.folder).values()
        if value_of(run.recipe, entry.field) == entry.value
    ]


def truncation_rows(folder: RunFolder) -> list[dict[str, str]]:
    """One row per model and kind of texts that it reads: the share that its maximum length cuts."""
    record = read_truncation(folder)
    return [
        {
            "model": figure.reader,
            "texts": f"{figure.texts} ({figure.counted})",
            "maximum length": f"{figure.max_length:,}",
            "cut": f"{figure.cut:.1%}",
            "length that cuts at most 1 %": f"{figure.sufficient:,}",
        }
        for figure in (record.figures if record else ())
    ]


def truncation_warnings(folder: RunFolder) -> list[str]:
    """Sentences on models that do not read many texts to their end, or of which that is not known."""
    record = read_truncation(folder)
    if record is None:
        return []
    return record.warnings + [f"not known what the {name} cuts: {reason}" for name, reason in record.unknown.items()]


def _losses(losses: Sequence[Loss]) -> str:
    return "; ".join(_term(loss.kind, loss.weight, loss.model_dump(exclude_defaults=True)) for loss in losses)


def _top_ks(caps: tuple[TopK, ...]) -> str:
    weighted = ", ".join(f"{cap.k or 'all'} (weight {cap.weight:g})" for cap in caps)
    return f"; averaged over caps on the terms per text: {weighted}" if caps else ""


def student_sentence(student: AnyStudent) -> str:
    lengths = f"queries of at most {student.query_max_length} tokens, passages of {student.passage_max_length}"
    if student.kind == "csr":
        return f"{model_name(student.model)}, its vectors as at most {student.k} latents each (CSR); {lengths}"
    if student.kind == "custom":
        return f"{student.cls} on {model_name(student.model)}; {lengths}"
    layers = f", its lower {student.layers} layers" if student.layers else ""
    kind = student.query.kind
    query = {"model": "", "lexical": "; queries without expansion"}.get(kind, f"; inference-free queries ({kind})")
    return f"{model_name(student.model)}{layers}; {student.pooling} pooling{query}; {lengths}"


def model_name(name: str) -> str:
    """A model's name without private paths: hub names unchanged, folders by their last part."""
    return Path(name).name if Path(name).is_absolute() or name.startswith(".") else name.removeprefix("package:")


def recipe_yaml(recipe: Recipe) -> str:
    """The resolved recipe with all its rounds, as it may be published."""
    whole = recipe if recipe.follows is None else load_recipe(run_at(recipe.follows.run).recipe)
    return yaml.safe_dump(public_tree(whole), sort_keys=False, allow_unicode=True)


def public_tree(recipe: Recipe) -> dict[str, Any]:
    """The recipe as plain values, without folders and machines of this run and without what looks like a secret."""
    return _without_secrets(recipe.model_dump(mode="json", exclude={"run_dir", "follows", "slurm", "cluster"}))


def _without_secrets(value: Any, name: str = "") -> Any:
    if isinstance(value, dict):
        return {key: _without_secrets(inner, str(key)) for key, inner in value.items()}
    if isinstance(value, list):
        return [_without_secrets(inner, name) for inner in value]
    return "(left out)" if isinstance(value, str) and _SECRET.search(name) else value


_SECRET = re.compile(r"(^|[_-])(token|key|secret|password|passwd|pwd|credentials?|auth|apikey)$", re.IGNORECASE)


def training_log(folder: RunFolder) -> list[dict[str, Any]]:
    """Complete lines of logs/train.jsonl."""
    return list(read_json_lines(folder.train_log))


def logged_numbers(line: Mapping[str, Any]) -> dict[str, float]:
    """Numbers of one log line except its step; those of an evaluation during training get the prefix `dev/`."""
    prefix = "dev/" if line.get("event") == "evaluation" else ""
    return {
        prefix + name: float(value)
        for name, value in line.items()
        if name != "step" and isinstance(value, (int, float)) and not isinstance(value, bool)
    }


def version() -> str:
    return f"splade-distill {metadata.version('splade-distill')}"


def _fine_tuning(teacher: Teacher) -> str:
    cfg = teacher.fine_tune
    return "–" if cfg is None else f"{cfg.folds} folds, {cfg.epochs:g} epochs, {cfg.negatives} negatives"


def _regularizers(regularizers: Sequence[AnyRegularizer]) -> str:
    return "; ".join(_term(r.kind, r.weight, r.model_dump(exclude_defaults=True)) for r in regularizers) or "none"


def _term(kind: str, weight: float, fields: dict[str, Any]) -> str:
    options = ", ".join(
        f"{key.replace('_', ' ')} {value}" for key, value in fields.items() if key not in ("kind", "weight")
    )
    return f"{weight:g} × {kind}" + (f" ({options})" if options else "")


def flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten a tree of counts to dotted names, without empty values."""
    leaves: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            leaves |= flat(value, f"{prefix}{key}.")
        elif value not in (None, [], ""):
            leaves[f"{prefix}{key}"] = value
    return leaves
