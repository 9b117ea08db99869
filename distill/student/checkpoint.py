"""Saving and loading students, in the layout that `sentence_transformers.SparseEncoder` reads.

A saved folder is also a plain masked language model (`AutoModelForMaskedLM.from_pretrained`). A student with a query
table has a `Router` over the same files, in the layout of OpenSearch's public inference-free models. Public SPLADE
checkpoints load with or without sentence-transformers' files (naver's older ones have none).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import Router, SparseStaticEmbedding, SpladePooling, Transformer
from torch import Tensor

from distill import config
from distill.errors import StudentError
from distill.recipe.imports import import_object, is_named_by_a_recipe
from distill.run.files import new_folder, write_json
from distill.run.model_ref import ModelRef
from distill.student.base import Student
from distill.student.csr import CsrStudent
from distill.student.layout import inside, load_table, read_parts
from distill.student.model import (
    DocumentFrequencies,
    SpladeStudent,
    load_mlm,
    load_tokenizer,
    longest_input,
    start_splade,
)
from distill.student.query_table import QueryTable

OWN_CLASS = "student.json"  # names the class of a user-defined student
TABLE_FOLDER = "query_0_SparseStaticEmbedding"


def save_student(student: Student, path: str | Path) -> None:
    """Save a student so that `SparseEncoder(path)` loads it; atomic, an existing folder is replaced.

    `encode_query` and `encode_document` cut at the student's two maximum lengths, `encode` at that of passages.
    """
    with new_folder(Path(path)) as folder:
        if type(student) is SpladeStudent:
            _save_splade(student, folder)
        else:
            student.save(folder)
        if type(student) not in (SpladeStudent, CsrStudent):
            write_json(folder / OWN_CLASS, {"cls": _import_path(student)})


def _save_splade(student: SpladeStudent, folder: Path) -> None:
    student.mlm.save_pretrained(folder)
    student.tokenizer.save_pretrained(folder)
    transformer = Transformer(
        str(folder),
        transformer_task="fill-mask",
        max_seq_length=student.passage_max_length,
        query_length=student.query_max_length,
        document_length=student.passage_max_length,
    )
    pooling = SpladePooling(student.head.pooling, student.head.activation, student.vocab_size)
    encoder = SparseEncoder(
        modules=[transformer, pooling],
        device="cpu",
        similarity_fn_name="dot",
        prompts=dict(student.prompts) or None,
        max_active_dims=student.top_k,
    )
    encoder.save(str(folder), create_model_card=False)
    if student.table is not None:
        _add_router(folder, student, student.table)


def _add_router(folder: Path, student: SpladeStudent, table: QueryTable) -> None:
    """Turn a saved plain encoder into a `Router` whose queries use the table."""
    plain = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    document = [module["path"] for module in plain]  # the transformer is in the folder itself: ""
    tokenizer = copy.deepcopy(student.tokenizer)
    tokenizer.model_max_length = student.query_max_length  # the only length that the module cuts at
    static_module = SparseStaticEmbedding(tokenizer, table.weight.detach().cpu().clamp(min=0), frozen=not table.learned)
    (folder / TABLE_FOLDER).mkdir()
    static_module.save(str(folder / TABLE_FOLDER))
    types = {module["path"]: module["type"] for module in plain}
    router, static = (f"{kind.__module__}.{kind.__name__}" for kind in (Router, SparseStaticEmbedding))
    query = [TABLE_FOLDER] if student.inference_free else [*document, TABLE_FOLDER]
    write_json(
        folder / Router.config_file_name,
        {
            "types": {**types, TABLE_FOLDER: static},
            "structure": {"query": query, "document": document},
            "parameters": {"default_route": "document", "allow_empty_key": True},
        },
    )
    write_json(folder / "modules.json", [{"idx": 0, "name": "0", "path": "", "type": router}])


def load_student(path: str | Path, revision: str | None = None, *, trust_remote_code: bool = False) -> Student:
    """Load a student, in float32, from a folder, a hub name or `package:<module>/<folder>`.

    A checkpoint may name a class of its own, whose code then runs: that takes `trust_remote_code`, or a recipe of this
    process that names the same class. Raises `StudentError` otherwise, and for a checkpoint of an unsupported layout.
    """
    name = ModelRef.parse(str(path)).location
    if (class_file := Path(name) / OWN_CLASS).is_file():
        return _named_class(class_file, trust_remote_code).load(Path(name))
    modules = ModelRef.parse(name, revision).read_json("modules.json") or ()
    if modules and modules[-1]["type"].endswith(".SparseAutoEncoder"):
        return CsrStudent.load(name, revision)
    return _load_splade(path, name, revision)


def start_student(
    cfg: config.AnyStudent,
    texts: Sequence[str],
    document_frequencies: DocumentFrequencies,
    stand_ins: Tensor | None = None,
) -> Student:
    """Build the untrained student of the recipe's section.

    `texts`, `stand_ins`: passages for a calibrated start, and its terms; `document_frequencies`: those of the passages,
    for an IDF table.
    """
    match cfg:
        case config.CsrStudent():
            return CsrStudent.start(cfg)
        case config.CustomStudent():
            student = _own_class(cfg.cls, "student.cls").start(cfg, texts)
            if _import_path(student) != cfg.cls:
                raise StudentError(
                    f"student.cls: {cfg.cls} starts a student of class {_import_path(student)}; name that class"
                )
            return student
        case config.Student():
            return start_splade(cfg, texts, document_frequencies, stand_ins)


def _import_path(student: Student) -> str:
    return f"{type(student).__module__}:{type(student).__qualname__}"


def _named_class(file: Path, trusted: bool) -> type[Student]:
    """The class that a checkpoint names."""
    content = ModelRef.parse(str(file.parent)).read_json(file.name)
    path = content.get("cls") if isinstance(content, dict) else None
    if not isinstance(path, str):
        raise StudentError(f"{file}: damaged, it names no class")
    if not (trusted or is_named_by_a_recipe(path)):
        raise StudentError(
            f"{file}: the checkpoint names the class {path}, whose code would run. If you trust its origin, add "
            "--trust-remote-code (in Python: trust_remote_code=True)"
        )
    return _own_class(path, file)


def _own_class(path: str, where: str | Path) -> type[Student]:
    """Import a user-defined class; `where`: the recipe field or file that names it."""
    cls = import_object(path)
    if not (isinstance(cls, type) and issubclass(cls, Student)):
        raise StudentError(f"{where}: {path} is not a class derived from distill.student.base.Student")
    return cls


def _load_splade(path: str | Path, name: str, revision: str | None) -> SpladeStudent:
    """Load a SPLADE checkpoint; `path` as the caller has it, for messages, `name` its location."""
    parts, ref = read_parts(name, revision), ModelRef.parse(name, revision)
    settings = ref.read_json("config_sentence_transformers.json") or {}
    pooling = ref.read_json(f"{parts.pooling}/config.json") or {} if parts.pooling else {}
    lengths = ref.read_json(inside(parts.transformer, "sentence_bert_config.json")) or {}
    mlm, headless = load_mlm(name, revision, subfolder=parts.transformer)
    if headless:
        raise StudentError(f"{path}: not a SPLADE checkpoint: it has no MLM head")
    tokenizer = load_tokenizer(name, revision, bool(lengths.get("do_lower_case")), parts.transformer)
    longest = lengths.get("max_seq_length") or longest_input(mlm, tokenizer)
    query_length = lengths.get("query_length") or longest
    table = None
    vocab_size: int = mlm.config.vocab_size
    if (static := load_table(name, revision, parts, tokenizer, vocab_size)) is not None:
        table = QueryTable(static.weight, learned=not static.frozen and parts.inference_free)
        if parts.inference_free:
            query_length = min(static.max_seq_length, longest)
    return SpladeStudent(
        mlm,
        tokenizer,
        pooling.get("pooling_strategy", "max"),
        pooling.get("activation_function", "relu"),
        query_max_length=query_length,
        passage_max_length=lengths.get("document_length") or longest,
        top_k=settings.get("max_active_dims"),
        prompts={name: text for name, text in (settings.get("prompts") or {}).items() if text},
        table=table,
        inference_free=parts.inference_free,
    )
