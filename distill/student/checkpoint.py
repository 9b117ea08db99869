"""Students to disk and back, in the layout that `sentence_transformers.SparseEncoder` reads.

A saved folder is also a plain masked language model (`AutoModelForMaskedLM.from_pretrained`). Public SPLADE
checkpoints load too, with or without sentence-transformers' files (naver's have none in their older form).
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import uuid
from pathlib import Path
from typing import Any

from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.modules import SpladePooling, Transformer
from sentence_transformers.util import load_file_path

from distill.config import resolve_model
from distill.data.files import storage_errors, sync
from distill.errors import StudentError
from distill.student.model import SpladeStudent, load_mlm, load_tokenizer, longest_input


def save_student(student: SpladeStudent, path: str | Path) -> None:
    """Write `path`, whole or not at all (a folder already there is replaced), for `SparseEncoder(path)`.

    `encode_query` and `encode_document` then cut at the student's two lengths, `encode` at the passages'.
    """
    path = Path(path)
    with _folder(path) as folder:
        student.mlm.save_pretrained(folder)
        student.tokenizer.save_pretrained(folder)
        transformer = Transformer(str(folder), transformer_task="fill-mask", max_seq_length=student.passage_max_length,
                                  query_length=student.query_max_length, document_length=student.passage_max_length)
        pooling = SpladePooling(student.head.pooling, student.head.activation, student.vocab_size)
        encoder = SparseEncoder(modules=[transformer, pooling], device="cpu", similarity_fn_name="dot",
                                prompts=dict(student.prompts) or None, max_active_dims=student.top_k)
        encoder.save(str(folder), create_model_card=False)


def load_checkpoint(path: str | Path, revision: str | None = None) -> SpladeStudent:
    """A student from a folder, a hub name or `package:<module>/<folder>`, in float32, with its lengths and prompts.

    Raises `StudentError` for what is no SPLADE checkpoint of the layouts above.
    """
    name = resolve_model(str(path))
    modules = _read_json(name, "modules.json", revision)
    pooling: dict[str, Any] = {}
    lengths: dict[str, Any] = {}
    if modules is not None:
        kinds = [module["type"].rsplit(".", 1)[-1] for module in modules]
        if len(kinds) != 2 or kinds[0] not in ("Transformer", "MLMTransformer") or kinds[1] != "SpladePooling":
            raise StudentError(f"{path}: not a SPLADE checkpoint: its modules are {', '.join(kinds)}, "
                               "not Transformer and SpladePooling")
        if modules[0]["path"]:
            raise StudentError(f"{path}: its transformer lies in the subfolder {modules[0]['path']!r}; "
                               "load that model with SparseEncoder and save it again")
        pooling = _read_json(name, f"{modules[1]['path']}/config.json", revision) or {}
        lengths = _read_json(name, "sentence_bert_config.json", revision) or {}
    settings = _read_json(name, "config_sentence_transformers.json", revision) or {}
    mlm, headless = load_mlm(name, revision)
    if headless:
        raise StudentError(f"{path}: not a SPLADE checkpoint: it has no MLM head")
    tokenizer = load_tokenizer(name, revision, lower_case=bool(lengths.get("do_lower_case")))
    longest = lengths.get("max_seq_length") or longest_input(mlm, tokenizer)
    return SpladeStudent(mlm, tokenizer, pooling.get("pooling_strategy", "max"),
                         pooling.get("activation_function", "relu"),
                         query_max_length=lengths.get("query_length") or longest,
                         passage_max_length=lengths.get("document_length") or longest,
                         top_k=settings.get("max_active_dims"),
                         prompts={name: text for name, text in (settings.get("prompts") or {}).items() if text})


def _read_json(name: str, file: str, revision: str | None) -> Any:
    found = load_file_path(name, file, revision=revision)
    return None if found is None else json.loads(Path(found).read_text(encoding="utf-8"))


@contextlib.contextmanager
def _folder(path: Path):
    """A temporary folder beside `path` that takes its name when the block ends without an error."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary, replaced = (path.with_name(f".{path.name}.{uuid.uuid4().hex[:12]}.{kind}") for kind in ("tmp", "old"))
    try:
        with storage_errors(path):
            temporary.mkdir()
            yield temporary
            for part in (*temporary.rglob("*"), temporary):
                sync(part)
            if path.exists():
                os.replace(path, replaced)
            os.replace(temporary, path)
            sync(path.parent)
            shutil.rmtree(replaced, ignore_errors=True)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
