"""Fine-tune a cross-encoder on the labelled training pairs: the "teach" stage, on CrossEncoderTrainer.

There is one model per fold, trained on the queries outside it, because margins on queries that a model was trained on
mean little. Each judged positive forms a list with mined and random negatives, and the model learns to rank it first:
with few labels this listwise loss learns several times faster than a pointwise one. A batch holds lists of similar
length, which saves a third of the work on real collections with their short and long texts.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from distill.config import FineTune
from distill.errors import TeacherError
from distill.progress import progress
from distill.run.files import read_json, storage_errors, sync, write_json
from distill.run.fingerprint import check_same
from distill.run.layout import RunFolder
from distill.run.manifest import Shard
from distill.run.model_ref import model_files
from distill.run.output import Output
from distill.store.candidates import iterate_candidates
from distill.store.texts import TextStore
from teachers.folds import query_folds
from teachers.spec import TeacherSpec

if TYPE_CHECKING:
    from datasets import Dataset
    from sentence_transformers import CrossEncoder

_MARK = "fine_tune.json"  # in each fold's folder: its fingerprint inputs
# ListNet's target is the softmax of the labels: this label puts all its mass on the positive (plain cross-entropy)
_POSITIVE = 20.0
_HEAD = r"\b(pooler|classifier|score|pre_classifier)\b"  # names of parameters that are freshly initialised


def fine_tune(spec: TeacherSpec, seed: int, output: Output) -> None:
    """Train the missing folds of a teacher.

    Each fold's folder, a sentence-transformers CrossEncoder, is committed as a whole. Raises `TeacherError` if the
    backbone cannot be loaded or there is nothing to train on, and `FingerprintError` for models of other inputs.
    """
    fields = output.fields
    output.claim()
    number = spec.fine_tune.folds
    folds = query_folds(spec.folder, number)
    lists = training_lists(spec.folder, spec.fine_tune, seed)
    paths = [spec.folder.teacher_fold(spec.name, fold) for fold in range(number)]
    counts: dict[str, Any] = {}
    for fold, path in enumerate(paths):
        outside = [each for each in lists if number == 1 or folds[each.query] != fold]
        counts[f"lists_fold_{fold}"] = len(outside)
        if path.exists():
            check_same(path, read_json(path / _MARK), fields)
            continue
        if not outside:
            raise TeacherError(
                f"teacher {spec.name!r}: no training query with a positive and a negative lies outside fold "
                f"{fold}; use fewer folds, or more queries"
            )
        _train_fold(spec, outside, seed + fold, fields, path)
    output.finish([Shard.of(file, output.folder) for path in paths for file in model_files(path)], counts)


@dataclass(frozen=True)
class TrainingList:
    """A query's row and its passages' rows, the positive first."""

    query: int
    passages: tuple[int, ...]


def training_lists(folder: RunFolder, tuning: FineTune, seed: int) -> list[TrainingList]:
    """One list per positive: `negatives` of its query's candidates (or all, if fewer), then `random_negatives` from the
    whole collection, candidates excluded."""
    rng, texts = np.random.default_rng(seed), TextStore.open(folder.passages)
    lists = []
    for _, candidates in iterate_candidates(folder.candidates("train")):
        for i, query in enumerate(candidates.query.tolist()):
            span = slice(candidates.offsets[i], candidates.offsets[i + 1])
            passages, positive = candidates.passages[span], candidates.positive[span]
            pool, known = passages[~positive], np.append(passages, texts.origin(passages))
            for relevant in passages[positive].tolist() if len(pool) else ():
                drawn = rng.choice(pool, min(len(pool), tuning.negatives), replace=False)
                random = rng.integers(texts.collection_size, size=tuning.random_negatives)
                random = random[~np.isin(random, known)]
                lists.append(TrainingList(query, (relevant, *drawn.tolist(), *random.tolist())))
    return lists


@contextmanager
def _one_process() -> Iterator[None]:
    """Hide LOCAL_RANK, which student training leaves behind: accelerate would see it as distributed training."""
    rank = os.environ.pop("LOCAL_RANK", None)
    try:
        yield
    finally:
        if rank is not None:
            os.environ["LOCAL_RANK"] = rank


@_one_process()
def _train_fold(spec: TeacherSpec, lists: list[TrainingList], seed: int, fields: dict[str, Any], path: Path) -> None:
    """Train one model on `lists` and commit its folder at `path`; `fields`: what it is made from."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(scratch, ignore_errors=True)
    try:
        _fit(spec, lists, seed, path, scratch)
        model = scratch / "model"
        write_json(model / _MARK, fields)
        for file in model.rglob("*"):
            sync(file)
        try:
            os.replace(model, path)
        except OSError:
            if not (path / _MARK).exists():
                raise
            check_same(path, read_json(path / _MARK), fields)  # another machine was first: its model is as good
        sync(path.parent)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _fit(spec: TeacherSpec, lists: list[TrainingList], seed: int, path: Path, scratch: Path) -> None:
    """Train one model and save it in `scratch`/model; `path`, its final place, is for messages."""
    # imported here: they take seconds, and the fields of a finished stage are read without them
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import ListNetLoss
    from transformers import set_seed

    from teachers.execution import resolve_execution

    tuning, execution = spec.fine_tune, resolve_execution(spec.config)
    set_seed(seed)
    model = load_backbone(spec, execution.device)
    dataset, lengths = _dataset(spec.folder, lists)
    batch_lists = max(1, tuning.batch_size // (1 + tuning.negatives + tuning.random_negatives))
    steps = math.ceil(tuning.epochs * math.ceil(len(dataset) / batch_lists))
    arguments = CrossEncoderTrainingArguments(
        output_dir=str(scratch / "trainer"),
        max_steps=steps,
        per_device_train_batch_size=batch_lists,
        learning_rate=tuning.lr,
        warmup_steps=tuning.warmup_ratio,
        learning_rate_mapping={_HEAD: tuning.head_lr} if tuning.head_lr else {},
        seed=seed,
        report_to=[],
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
        use_cpu=execution.device == "cpu",
        bf16=execution.precision == "bfloat16",
        fp16=execution.precision == "float16",
        batch_sampler=partial(_batches_by_length, lengths=lengths),
    )
    arguments._n_gpu = 1  # the Trainer would wrap the model in DataParallel, and multiply the batch by the GPUs
    with storage_errors(path), progress(f"teach {path.parent.name}/{path.name}", steps, "steps") as advance:
        trainer = CrossEncoderTrainer(
            model=model,
            args=arguments,
            train_dataset=dataset,
            loss=ListNetLoss(model, mini_batch_size=-1),
            callbacks=[_progress_callback(advance)],
        )
        trainer.train()
        model.save(str(scratch / "model"))


def _dataset(folder: RunFolder, lists: list[TrainingList]) -> tuple[Dataset, np.ndarray]:
    """The lists as the trainer reads them (query, passages, labels), and a measure of each one's length."""
    from datasets import Dataset

    queries = TextStore.open(folder.queries("train")).texts(np.array([each.query for each in lists]))
    flat = TextStore.open(folder.passages).texts(np.concatenate([each.passages for each in lists]))
    ends = np.cumsum([len(each.passages) for each in lists])
    passages = [flat[end - len(each.passages) : end] for each, end in zip(lists, ends.tolist(), strict=True)]
    labels = [[_POSITIVE] + [0.0] * (len(texts) - 1) for texts in passages]
    # characters are good enough to find lists of similar length
    lengths = np.array([len(query) + max(map(len, texts)) for query, texts in zip(queries, passages, strict=True)])
    return Dataset.from_dict({"query": queries, "passages": passages, "labels": labels}), lengths


def load_backbone(spec: TeacherSpec, device: str) -> CrossEncoder:
    """A CrossEncoder with a fresh one-label head on the backbone's lower `layers`. Raises `TeacherError`."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Transformer

    from teachers.models import load_config, loading

    settings: dict[str, Any] = {"num_labels": 1}
    model, layers = spec.model, spec.fine_tune.layers
    if layers is not None:
        available = load_config(spec.name, model).num_hidden_layers
        if layers > available:
            raise TeacherError(
                f"teacher {spec.name!r}: fine_tune.layers is {layers}, but {model.name!r} has {available} layers"
            )
        settings["num_hidden_layers"] = layers
    common: dict[str, Any] = {"revision": model.revision}
    module = loading(
        spec.name,
        model.name,
        lambda: Transformer(
            model.location,
            transformer_task="sequence-classification",
            model_kwargs=common,
            processor_kwargs=common | {"model_max_length": spec.config.max_length},
            config_kwargs=common | settings,
        ),
    )
    return CrossEncoder(modules=[module], device=device)


def _batches_by_length(
    dataset: Any, *, lengths: np.ndarray, batch_size: int, drop_last: bool, seed: int = 0, **ignored: Any
) -> Any:
    """A sentence-transformers batch sampler: batches of lists of similar length, in random order."""
    from sentence_transformers.base.sampler import DefaultBatchSampler

    class ByLength(DefaultBatchSampler):
        def __iter__(self) -> Iterator[list[int]]:
            rng = np.random.default_rng((seed, self.epoch))
            # lengths within ten per cent count as equal, so that batches differ from epoch to epoch
            order = np.argsort(lengths * rng.uniform(0.95, 1.05, len(lengths)), kind="stable")
            starts = np.arange(0, len(order), batch_size)
            for start in rng.permutation(starts):
                yield order[start : start + batch_size].tolist()

        def __len__(self) -> int:
            return math.ceil(len(lengths) / batch_size)

    return ByLength(dataset, batch_size=batch_size, drop_last=drop_last, seed=seed, **ignored)


def _progress_callback(advance: Any) -> Any:
    from transformers import TrainerCallback

    class Progress(TrainerCallback):
        def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
            advance(1)

    return Progress()
