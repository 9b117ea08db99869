"""Fingerprint inputs of teachers, computed without torch and without loading weights.

A model is identified by its content: a hub model by its commit, a folder by the hash of its files. A moved folder
still matches the scores made with it, and an edited one does not. A teacher that cannot be loaded is refused here, by
the driver, before any work.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from distill.errors import ModelError, RecipeError, TeacherError
from distill.recipe.imports import import_object
from distill.run.manifest import read_manifest
from distill.run.model_ref import ModelRef
from teachers.spec import TeacherSpec

T = TypeVar("T")
_WEIGHTS = (".safetensors", ".bin", ".pt")
DEFAULT_TEMPLATE = (
    "Judge whether the passage answers the query. Reply yes or no.\nQuery: {query}\nPassage: {passage}\nReply:"
)


def identity(spec: TeacherSpec) -> dict[str, Any]:
    """Fingerprint inputs of a teacher's scores, as JSON values. Raises `TeacherError` if it cannot be loaded."""
    cfg = spec.config
    if cfg.kind == "bm25":
        return {"kind": "bm25", "formula": "lucene", "k1": spec.bm25.k1, "b": spec.bm25.b, **spec.bm25.fields()}
    if cfg.kind == "custom":
        cls = import_class(spec)
        user_fields = cls.identity(**cfg.options) if hasattr(cls, "identity") else {}
        return {"kind": "custom", "class": cfg.cls, "options": cfg.options, **user_fields}
    fields: dict[str, Any] = {"kind": cfg.kind, "max_length": cfg.max_length}
    if cfg.fine_tune is not None:
        models = [model_identity(spec.name, ModelRef.parse(str(path))) for path in fold_folders(spec)]
        return {**fields, "folds": [model["content"] for model in models]}
    if cfg.kind == "cross-encoder":
        _check_classifier(spec)
    if cfg.kind == "llm":
        fields |= {"template": llm_template(spec), "answers": list(llm_answers(spec))}
    return {**fields, **model_identity(spec.name, spec.model)}


def check_available(spec: TeacherSpec) -> None:
    """Raise `TeacherError` for a teacher that cannot be loaded; of one to fine-tune, its backbone is checked."""
    if spec.config.fine_tune is None:
        identity(spec)
    else:
        model_identity(spec.name, spec.model)


def model_identity(name: str, model: ModelRef, weights: bool = True) -> dict[str, Any]:
    """Return `model.identity()`. Raises `TeacherError`, with `weights` also if a folder's are missing or damaged."""
    if weights and model.folder is not None:
        _check_weights(name, model.folder)
    return _as_teacher_error(name, model.identity)


def fold_folders(spec: TeacherSpec) -> list[Path]:
    """Folders of the fine-tuned models, one per fold. Raises `TeacherError` unless fine-tuning is finished."""
    paths = [spec.folder.teacher_fold(spec.name, fold) for fold in range(spec.fine_tune.folds)]
    if read_manifest(spec.folder.teacher(spec.name)) is None or not all(path.is_dir() for path in paths):
        raise TeacherError(f"teacher {spec.name!r} is not fine-tuned yet; run `distill teach` first")
    return paths


def llm_template(spec: TeacherSpec) -> str:
    """The prompt template, checked."""
    template = spec.config.template or DEFAULT_TEMPLATE
    query, passage = template.find("{query}"), template.find("{passage}")
    if template.count("{query}") != 1 or template.count("{passage}") != 1 or query > passage:
        raise TeacherError(
            f"teacher {spec.name!r}: the template must contain {{query}} once and, after it, {{passage}} once"
        )
    return template


def llm_answers(spec: TeacherSpec) -> tuple[str, str]:
    """The words that mean "relevant" and "not relevant"."""
    options = spec.config.options
    unknown = set(options) - {"yes", "no"}
    if unknown:
        raise TeacherError(
            f"teacher {spec.name!r}: unknown options {', '.join(sorted(unknown))}; an llm takes yes and no (the words "
            "it answers with)"
        )
    return str(options.get("yes", "yes")), str(options.get("no", "no"))


def import_class(spec: TeacherSpec) -> type:
    """The class that a custom teacher names."""
    assert spec.config.cls is not None
    try:
        return import_object(spec.config.cls)
    except RecipeError as error:
        raise TeacherError(f"teacher {spec.name!r}: cls: {error}") from error


def check_labels(name: str, model: str, labels: int) -> None:
    """Raise `TeacherError` unless the model's number of labels is that of a ranker."""
    if labels not in (1, 2):
        raise TeacherError(
            f"teacher {name!r}: {model!r} has {labels} labels; a ranker has one (a score) or two "
            "(not relevant, relevant)"
        )


def _check_classifier(spec: TeacherSpec) -> None:
    name, model = spec.name, spec.model
    settings = _as_teacher_error(name, lambda: model.read_json("config.json"))
    if settings is None:
        raise TeacherError(f"teacher {name!r}: {model.name!r} is not a model: it has no config.json")
    architectures = settings.get("architectures") or []
    if architectures and not any(each.endswith("ForSequenceClassification") for each in architectures):
        raise TeacherError(
            f"teacher {name!r}: {model.name!r} is a {architectures[0]}, which has no classification head; "
            "give it a fine_tune section, or name a cross-encoder"
        )
    if "id2label" in settings:
        check_labels(name, model.name, len(settings["id2label"]))


def _as_teacher_error(name: str, read: Callable[[], T]) -> T:
    """Call `read`, turning a `ModelError` into a `TeacherError` that names the teacher."""
    try:
        return read()
    except ModelError as error:
        raise TeacherError(f"teacher {name!r}: {error}") from error


def _check_weights(name: str, folder: Path) -> None:
    files = [file for file in folder.rglob("*") if file.suffix in _WEIGHTS]
    if not files:
        raise TeacherError(f"teacher {name!r}: {folder} has no model weights")
    for file in files:
        if file.suffix == ".safetensors":
            _check_safetensors(name, file)


def _check_safetensors(name: str, file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as weights:
            weights.keys()
    except (SafetensorError, OSError) as error:
        raise TeacherError(f"teacher {name!r}: {file} is damaged: {error}") from error
