"""Students to disk and back, in the layout that `sentence_transformers.SparseEncoder` reads.

A saved folder is also a plain masked language model (`AutoModelForMaskedLM.from_pretrained`). A student with a query
table has a `Router` over the same files, laid out as OpenSearch's public inference-free models are. Public SPLADE
checkpoints load too, with or without sentence-transformers' files (naver's have none in their older form).
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import Router, SparseStaticEmbedding, SpladePooling, Transformer

from distill import config
from distill.config import resolve_model
from distill.data.files import new_folder, write_json
from distill.errors import StudentError
from distill.own_code import import_object
from distill.student.base import Student
from distill.student.csr import CsrStudent
from distill.student.layout import inside, load_table, read_json, read_parts
from distill.student.model import (
    DocumentFrequencies,
    SpladeStudent,
    load_mlm,
    load_student,
    load_tokenizer,
    longest_input,
)
from distill.student.query_table import QueryTable

OWN_CLASS = "student.json"  # names the class of a student of one's own
TABLE_FOLDER = "query_0_SparseStaticEmbedding"


def save_student(student: Student, path: str | Path) -> None:
    """Write `path`, whole or not at all (a folder already there is replaced), for `SparseEncoder(path)`.

    `encode_query` and `encode_document` then cut at the student's two lengths, `encode` at the passages'.
    """
    with new_folder(Path(path)) as folder:
        if type(student) is SpladeStudent:
            _save_splade(student, folder)
        else:
            student.save(folder)
        if type(student) not in (SpladeStudent, CsrStudent):
            write_json(folder / OWN_CLASS, {"cls": f"{type(student).__module__}:{type(student).__qualname__}"})


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
        _put_router_over(folder, student)


def _put_router_over(folder: Path, student: SpladeStudent) -> None:
    """Turn a saved plain encoder into one whose queries go by the student's table."""
    plain = json.loads((folder / "modules.json").read_text(encoding="utf-8"))
    document = [module["path"] for module in plain]  # the transformer lies in the folder itself: ""
    table = SparseStaticEmbedding(
        copy.deepcopy(student.tokenizer),
        student.table.weight.detach().cpu().clamp(min=0),
        frozen=not student.table.learned,
    )
    table.tokenizer.model_max_length = student.query_max_length  # it cuts by this alone
    (folder / TABLE_FOLDER).mkdir()
    table.save(str(folder / TABLE_FOLDER))
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


def load_checkpoint(path: str | Path, revision: str | None = None) -> Student:
    """A student from a folder, a hub name or `package:<module>/<folder>`, in float32, with its lengths and prompts.

    Raises `StudentError` for what is no checkpoint of the layouts above.
    """
    name = resolve_model(str(path))
    if (own := Path(name) / OWN_CLASS).is_file():
        return _own_class(read_json(name, OWN_CLASS, None)["cls"], own).load(Path(name))
    modules = read_json(name, "modules.json", revision) or ()
    if modules and modules[-1]["type"].endswith(".SparseAutoEncoder"):
        return CsrStudent.load(name, revision)
    return _load_splade(path, name, revision)


def start_student(cfg: config.AnyStudent, texts: Sequence[str], document_frequencies: DocumentFrequencies) -> Student:
    """The untrained student of the recipe's section; what the latter two are for, `load_student` says."""
    match cfg:
        case config.CsrStudent():
            return CsrStudent.start(cfg)
        case config.CustomStudent():
            student = _own_class(cfg.cls, "student.cls").start(cfg, texts)
            if f"{type(student).__module__}:{type(student).__qualname__}" != cfg.cls:
                raise StudentError(
                    f"student.cls: name the class where it is defined, as "
                    f"{type(student).__module__}:{type(student).__qualname__}"
                )
            return student
        case config.Student():
            return load_student(cfg, texts, document_frequencies)


def _own_class(path: str, where: str | Path) -> type[Student]:
    found = import_object(path)
    if not (isinstance(found, type) and issubclass(found, Student)):
        raise StudentError(f"{where}: {path} is no class derived from distill.student.base.Student")
    return found


def _load_splade(path: str | Path, name: str, revision: str | None) -> SpladeStudent:
    parts = read_parts(name, revision)
    settings = read_json(name, "config_sentence_transformers.json", revision) or {}
    pooling = read_json(name, f"{parts.pooling}/config.json", revision) or {} if parts.pooling else {}
    lengths = read_json(name, inside(parts.transformer, "sentence_bert_config.json"), revision) or {}
    mlm, headless = load_mlm(name, revision, subfolder=parts.transformer)
    if headless:
        raise StudentError(f"{path}: not a SPLADE checkpoint: it has no MLM head")
    tokenizer = load_tokenizer(name, revision, bool(lengths.get("do_lower_case")), parts.transformer)
    longest = lengths.get("max_seq_length") or longest_input(mlm, tokenizer)
    query_length = lengths.get("query_length") or longest
    table = None
    if (static := load_table(name, revision, parts, tokenizer, mlm.config.vocab_size)) is not None:
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
