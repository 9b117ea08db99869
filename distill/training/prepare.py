"""Build everything training needs before the process group forms: untrained student, token stores, teacher vectors.

This can exceed the timeout of collectives, so one process builds under a file lock while the others wait.
"""

from __future__ import annotations

import logging
from typing import Any

import numpy as np
import torch

from distill import config
from distill.errors import FingerprintError, StorageError
from distill.retrieval.bm25 import run_index
from distill.retrieval.lexical import LexicalVectors
from distill.run.device import default_device
from distill.run.files import locked
from distill.run.manifest import Shard, verify
from distill.run.model_ref import model_files
from distill.run.output import Output
from distill.run.run import Run
from distill.store.scripts import unspaced_texts
from distill.store.texts import TextStore
from distill.store.tokens import build_token_store, token_key
from distill.student.base import Student
from distill.student.checkpoint import load_student, save_student, start_student
from distill.student.dropout import set_dropout
from distill.student.model import SpladeStudent, load_tokenizer
from distill.training.checks import check_development, check_losses
from distill.training.datasets import build_tokens, datasets
from distill.training.fields import start_fields
from distill.training.lexical_start import learn_lexical_vectors
from distill.training.targets import build_targets

log = logging.getLogger(__name__)


def prepare(run: Run, output: Output) -> None:
    """Build what `open_start`, `datasets.open_tokens` and `targets.DatasetTargets` open, unless it exists.

    Raises `FingerprintError` if the folder holds the start of another recipe's training.
    """
    check_development(run)
    check_losses(run)
    if (state := output.state()).kind == "stale":
        raise FingerprintError(state.difference)
    with locked(run.folder.start):
        _make_start(run)
    output.claim()  # only now: after an error above, such as a model not found, the recipe can still be corrected
    student = open_start(run)
    for dataset in datasets(run).values():
        build_tokens(student, dataset)
    build_targets(run)


def open_start(run: Run) -> Student:
    """Open the untrained student with the recipe's training settings: dropout, frozen parameters, own losses."""
    student = load_student(run.folder.start)
    if run.recipe.train.dropout is not None:
        set_dropout(student, run.recipe.train.dropout)
    student.begin_training(run.recipe.trained_student)
    return student


def _make_start(run: Run) -> None:
    """Build and save the untrained student, unless it exists."""
    output = Output(run.folder.start, lambda: start_fields(run))
    if output.finished() is not None:
        if run.recipe.verify_inputs and (damaged := verify(run.folder.start)):
            raise StorageError(
                f"{run.folder.start / damaged[0].name}: missing or damaged since it was written; remove the folder "
                f"{run.folder.start} and start training again"
            )
        return
    passages = TextStore.open(run.folder.passages)
    student_cfg = run.recipe.trained_student
    size = min(getattr(student_cfg, "calibration", config.CalibratedStart()).passages, passages.collection_size)
    rows = np.random.default_rng(run.recipe.seed).choice(passages.collection_size, size, replace=False)

    def document_frequencies(tokenizer: Any, max_length: int) -> tuple[np.ndarray, int]:
        tokens = build_token_store(passages, tokenizer, run.folder.tokens(token_key(tokenizer), "passages"), max_length)
        size = passages.collection_size
        return tokens.document_frequencies(len(tokenizer.get_vocab()), size, max_length), size

    torch.manual_seed(run.recipe.seed)  # a new autoencoder has random weights
    texts = passages.texts(np.sort(rows))
    cfg = getattr(student_cfg, "lexical_start", None)
    lexical = None if cfg is None else _lexical_vectors(run, texts)
    stand_ins = None if lexical is None else torch.from_numpy(lexical.stand_ins)
    student = start_student(student_cfg, texts, document_frequencies, stand_ins)
    if lexical is not None:
        assert cfg is not None and isinstance(student, SpladeStudent)
        learn_lexical_vectors(student.to(default_device()), lexical, passages, cfg, run.recipe.seed)
        student.to("cpu")
    save_student(student, run.folder.start)
    output.finish([Shard.of(file, run.folder.start) for file in model_files(run.folder.start)])


def _lexical_vectors(run: Run, sample: list[str]) -> LexicalVectors | None:
    """BM25 vectors for `student.lexical_start`; None for scripts in which BM25 counts pairs of characters."""
    if 2 * unspaced_texts(sample) > len(sample):
        log.warning(
            "student.lexical_start is left out: most passages are in a script without blanks between words, in which "
            "BM25 counts pairs of characters, and the student's vocabulary has no terms for them; the student starts "
            "from its MLM head alone"
        )
        return None
    student = run.recipe.trained_student
    tokenizer = load_tokenizer(student.model, student.revision, getattr(student, "lower_case", False))
    return LexicalVectors.of(run_index(run), tokenizer, sample)
