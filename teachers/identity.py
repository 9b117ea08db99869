"""What a teacher's scores depend on, read without torch and without loading weights.

A model is known by its content: a hub model by its commit, a folder by the checksum of its files. So a moved folder
still fits the scores made with it, and an edited one does not. A teacher that cannot be loaded is refused here, by
the driver, before any work.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import xxhash

from distill import config
from distill.config import missing_folder, resolve_model
from distill.data.files import read_json, xxh128_file
from distill.data.layout import RunFolder
from distill.data.manifest import read_manifest
from distill.errors import RecipeError, StorageError, TeacherError
from distill.own_code import import_object

_WEIGHTS = (".safetensors", ".bin", ".pt")
_IGNORED = {"README.md", ".gitattributes", ".cache", "manifest.json"}
DEFAULT_TEMPLATE = (
    "Judge whether the passage answers the query. Reply yes or no.\nQuery: {query}\nPassage: {passage}\nReply:"
)


def identity(name: str, cfg: config.Teacher, folder: RunFolder) -> dict[str, Any]:
    """JSON values that change when the teacher's scores would. Raises `TeacherError` for one that cannot be loaded."""
    if cfg.kind == "bm25":
        return {"kind": "bm25", "formula": "lucene", **BM25}
    if cfg.kind == "custom":
        cls = import_class(name, cfg.cls)
        own = cls.identity(**cfg.options) if hasattr(cls, "identity") else {}
        return {"kind": "custom", "class": cfg.cls, "options": cfg.options, **own}
    fields = {"kind": cfg.kind, "max_length": cfg.max_length}
    if cfg.fine_tune is not None:
        paths = fold_folders(name, cfg, folder)
        return {**fields, "folds": [_content(name, path) for path in paths]}
    if cfg.kind == "cross-encoder":
        _check_classifier(name, cfg)
    if cfg.kind == "llm":
        fields |= {"template": llm_template(name, cfg), "answers": list(llm_answers(name, cfg))}
    return {**fields, **model_identity(name, cfg.model, cfg.revision)}


BM25 = {"k1": 1.5, "b": 0.75}


def model_identity(name: str, model: str, revision: str | None) -> dict[str, Any]:
    """`{"model", "revision"}` of a hub model (resolved to a commit), or `{"content"}` of a folder."""
    path = Path(resolve_model(model))
    if path.is_dir():
        return {"content": _content(name, path)}
    file = _hub_file(name, model, revision)
    from transformers.utils.hub import extract_commit_hash

    return {"model": model, "revision": extract_commit_hash(str(file), None)}


def fold_folders(name: str, cfg: config.Teacher, folder: RunFolder) -> list[Path]:
    """Where the fine-tuned models lie; `TeacherError` unless fine-tuning is finished."""
    assert cfg.fine_tune is not None
    paths = [folder.teacher_fold(name, fold) for fold in range(cfg.fine_tune.folds)]
    if read_manifest(folder.teacher(name)) is None or not all(path.is_dir() for path in paths):
        raise TeacherError(f"teacher {name!r} is not fine-tuned yet; run `distill teach` first")
    return paths


def llm_template(name: str, cfg: config.Teacher) -> str:
    template = cfg.template or DEFAULT_TEMPLATE
    query, passage = template.find("{query}"), template.find("{passage}")
    if template.count("{query}") != 1 or template.count("{passage}") != 1 or query > passage:
        raise TeacherError(f"teacher {name!r}: the template must hold {{query}} and, after it, {{passage}}, once each")
    return template


def llm_answers(name: str, cfg: config.Teacher) -> tuple[str, str]:
    """The words for "relevant" and "not relevant"."""
    unknown = set(cfg.options) - {"yes", "no"}
    if unknown:
        raise TeacherError(
            f"teacher {name!r}: options of an llm are yes and no (the words it answers with), "
            f"not {', '.join(sorted(unknown))}"
        )
    return str(cfg.options.get("yes", "yes")), str(cfg.options.get("no", "no"))


def import_class(name: str, path: str) -> type:
    try:
        return import_object(path)
    except RecipeError as error:
        raise TeacherError(f"teacher {name!r}: cls: {error}") from error


def check_labels(name: str, model: str, labels: int) -> None:
    if labels not in (1, 2):
        raise TeacherError(
            f"teacher {name!r}: {model!r} has {labels} labels; a ranker has one (a score) or two "
            "(not relevant, relevant)"
        )


def _check_classifier(name: str, cfg: config.Teacher) -> None:
    path = Path(resolve_model(cfg.model))
    settings = _read_config(name, path / "config.json" if path.is_dir() else _hub_file(name, cfg.model, cfg.revision))
    named = settings.get("architectures") or []
    if named and not any(architecture.endswith("ForSequenceClassification") for architecture in named):
        raise TeacherError(
            f"teacher {name!r}: {cfg.model!r} is a {named[0]}, which has no classification head; "
            "give it a fine_tune section, or name a cross-encoder"
        )
    if "id2label" in settings:
        check_labels(name, cfg.model, len(settings["id2label"]))


def _content(name: str, path: Path) -> str:
    """Checksum over a model folder; `TeacherError` if weights are missing or cut short."""
    if not any(file.suffix in _WEIGHTS for file in path.rglob("*")):
        raise TeacherError(f"teacher {name!r}: {path} holds no model weights")
    digest = xxhash.xxh3_128()
    for file in sorted(path.rglob("*")):
        if file.is_file() and not _IGNORED.intersection(file.relative_to(path).parts):
            if file.suffix == ".safetensors":
                _check_safetensors(name, file)
            digest.update(f"{file.relative_to(path)} {xxh128_file(file)}\n".encode())
    return digest.hexdigest()


def _check_safetensors(name: str, file: Path) -> None:
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(file, framework="numpy") as weights:
            weights.keys()
    except (SafetensorError, OSError) as error:
        raise TeacherError(f"teacher {name!r}: {file} is damaged: {error}") from error


def _read_config(name: str, path: Path) -> dict[str, Any]:
    if not path.is_file():
        raise TeacherError(f"teacher {name!r}: {path} is missing, so {path.parent} is no model")
    try:
        return read_json(path)
    except StorageError as error:
        raise TeacherError(f"teacher {name!r}: {error}") from error


def _hub_file(name: str, model: str, revision: str | None) -> Path:
    from transformers.utils.hub import cached_file

    if (missing := missing_folder(model)) is not None:
        raise TeacherError(f"teacher {name!r} cannot be loaded: {missing}")
    try:
        return Path(cached_file(model, "config.json", revision=revision))
    except (OSError, ValueError) as error:
        first = str(error).strip().split("\n")[0]
        raise TeacherError(
            f"teacher {name!r}: cannot load {model!r}: no such folder, and not from the hub: {first}"
        ) from error
