"""Fine-tuning a cross-encoder on the labelled training pairs: the "teach" stage, on CrossEncoderTrainer.

One model a fold, trained on the queries outside it, so that the margins a model gives the queries inside mean
something. Each positive of the judgements stands in a list with negatives, mined and random ones, and the model
learns to put it first: with few labels this listwise loss learns several times faster than one on single pairs. Batches
hold lists of like length: with the short and long texts of real collections that saves a third of the work.
"""

from __future__ import annotations

import logging
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

from distill.config import FineTune, Recipe, Teacher, resolve_model
from distill.data.candidates import iterate_candidates
from distill.data.files import read_json, storage_errors, sync, write_json, xxh128_file
from distill.data.fingerprint import check_same
from distill.data.layout import RunFolder
from distill.data.manifest import FORMAT, Manifest, Shard, claim, read_manifest, require_manifest, write_manifest
from distill.data.texts import TextStore
from distill.errors import TeacherError
from distill.progress import progress
from teachers.folds import query_folds
from teachers.identity import model_identity

if TYPE_CHECKING:
    from sentence_transformers import CrossEncoder

log = logging.getLogger(__name__)

_MARK = "fine_tune.json"  # in each fold's folder: what it was made from
# ListNet's target is the softmax of the labels: with this one it is the positive alone, and the loss cross-entropy
_POSITIVE = 20.0
_HEAD = r"\b(pooler|classifier|score|pre_classifier)\b"  # parameters that start from nothing


def fine_tune_fields(recipe: Recipe, folder: RunFolder, name: str) -> dict[str, Any]:
    """What the fine-tuned models depend on: the hashed part of their manifest."""
    cfg = recipe.teachers[name]
    assert cfg.fine_tune is not None
    return {
        "stage": "teach",
        "format": FORMAT,
        "seed": recipe.seed,
        "max_length": cfg.max_length,
        "candidates": require_manifest(folder.candidates("train"), "mine").fingerprint,
        "backbone": model_identity(name, cfg.model, cfg.revision),
        **cfg.fine_tune.model_dump(mode="json"),
    }


def fine_tune(recipe: Recipe, folder: RunFolder, name: str) -> Manifest:
    """Train the folds of teacher `name` that are not there yet.

    Each fold's folder appears whole, and is a sentence-transformers CrossEncoder. Raises `TeacherError` where the
    backbone cannot be loaded or there is nothing to train on, `FingerprintError` for models made from other inputs.
    """
    cfg = recipe.teachers[name]
    home, fields = folder.teacher(name), fine_tune_fields(recipe, folder, name)
    done = read_manifest(home)
    if done is not None:
        check_same(home, done.fields, fields)
        return done
    claim(home, fields)
    folds = query_folds(folder, cfg.fine_tune.folds)
    lists = training_lists(folder, cfg.fine_tune, recipe.seed)
    counts: dict[str, Any] = {}
    for fold in range(cfg.fine_tune.folds):
        path = folder.teacher_fold(name, fold)
        outside = [one for one in lists if cfg.fine_tune.folds == 1 or folds[one.query] != fold]
        counts[f"lists_fold_{fold}"] = len(outside)
        if path.exists():
            check_same(path, read_json(path / _MARK), fields)
            continue
        if not outside:
            raise TeacherError(
                f"teacher {name!r}: no training query with a positive and a negative lies outside fold "
                f"{fold}; use fewer folds, or more queries"
            )
        _train_fold(name, cfg, folder, outside, recipe.seed + fold, fields, path)
    files = [
        path
        for fold in range(cfg.fine_tune.folds)
        for path in sorted(folder.teacher_fold(name, fold).glob("*.safetensors"))
    ]
    shards = [Shard(str(path.relative_to(home)), 0, path.stat().st_size, xxh128_file(path)) for path in files]
    manifest = Manifest(fields, tuple(shards), counts)
    write_manifest(home, manifest)
    return manifest


@dataclass(frozen=True)
class TrainingList:
    """A query row and passage rows, the positive first."""

    query: int
    passages: tuple[int, ...]


def training_lists(folder: RunFolder, tuning: FineTune, seed: int) -> list[TrainingList]:
    """One list for every positive: `negatives` of its query's candidates (fewer where there are fewer), then
    `random_negatives` of the whole collection, without candidates."""
    rng, texts = np.random.default_rng(seed), TextStore.open(folder.passages)
    lists = []
    for _, candidates in iterate_candidates(folder.candidates("train")):
        for i, query in enumerate(candidates.query.tolist()):
            span = slice(candidates.offsets[i], candidates.offsets[i + 1])
            passages, positive = candidates.passages[span], candidates.positive[span]
            pool, known = passages[~positive], np.append(passages, texts.origin(passages))
            for own in passages[positive].tolist() if len(pool) else ():
                drawn = rng.choice(pool, min(len(pool), tuning.negatives), replace=False)
                random = rng.integers(texts.collection_size, size=tuning.random_negatives)
                random = random[~np.isin(random, known)]
                lists.append(TrainingList(query, (own, *drawn.tolist(), *random.tolist())))
    return lists


@contextmanager
def _one_process() -> Iterator[None]:
    """Without LOCAL_RANK, which student training leaves behind: accelerate takes whoever has it for one of several."""
    rank = os.environ.pop("LOCAL_RANK", None)
    try:
        yield
    finally:
        if rank is not None:
            os.environ["LOCAL_RANK"] = rank


@_one_process()
def _train_fold(
    name: str, cfg: Teacher, folder: RunFolder, lists: list[TrainingList], seed: int, fields: dict[str, Any], path: Path
) -> None:
    # heavy imports: seconds, and the fields of a finished stage are read without them
    from datasets import Dataset
    from sentence_transformers.cross_encoder import CrossEncoderTrainer, CrossEncoderTrainingArguments
    from sentence_transformers.cross_encoder.losses import ListNetLoss
    from transformers import set_seed

    from teachers.execution import resolve_execution

    tuning, execution = cfg.fine_tune, resolve_execution(cfg)
    set_seed(seed)
    model = load_backbone(name, cfg, execution.device)
    queries = TextStore.open(folder.queries("train")).texts(np.array([one.query for one in lists]))
    flat = TextStore.open(folder.passages).texts(np.concatenate([one.passages for one in lists]))
    ends = np.cumsum([len(one.passages) for one in lists])
    passages = [flat[end - len(one.passages) : end] for one, end in zip(lists, ends.tolist(), strict=True)]
    dataset = Dataset.from_dict(
        {
            "query": queries,
            "passages": passages,
            "labels": [[_POSITIVE] + [0.0] * (len(texts) - 1) for texts in passages],
        }
    )
    # characters will do, to find lists of like length
    lengths = np.array([len(query) + max(map(len, texts)) for query, texts in zip(queries, passages, strict=True)])
    batch_lists = max(1, tuning.batch_size // (1 + tuning.negatives + tuning.random_negatives))
    steps = math.ceil(tuning.epochs * math.ceil(len(dataset) / batch_lists))
    partial_path = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    shutil.rmtree(partial_path, ignore_errors=True)
    try:
        arguments = CrossEncoderTrainingArguments(
            output_dir=str(partial_path / "trainer"),
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
        with storage_errors(path), progress(f"teach {path.parent.name}/{path.name}", steps, "steps") as advance:
            trainer = CrossEncoderTrainer(
                model=model,
                args=arguments,
                train_dataset=dataset,
                loss=ListNetLoss(model, mini_batch_size=-1),
                callbacks=[_progress_callback(advance)],
            )
            trainer.train()
            model.save(str(partial_path / "model"))
        write_json(partial_path / "model" / _MARK, fields)
        for file in (partial_path / "model").rglob("*"):
            sync(file)
        try:
            os.replace(partial_path / "model", path)
        except OSError:
            if not (path / _MARK).exists():
                raise
            check_same(path, read_json(path / _MARK), fields)  # another machine was first: its model is as good
        sync(path.parent)
    finally:
        shutil.rmtree(partial_path, ignore_errors=True)


def load_backbone(name: str, cfg: Teacher, device: str) -> CrossEncoder:
    """A CrossEncoder with one fresh label, on the backbone's lower `layers`. Raises `TeacherError`."""
    from sentence_transformers import CrossEncoder
    from sentence_transformers.base.modules import Transformer

    from teachers.models import load_config, loading

    settings: dict[str, Any] = {"num_labels": 1}
    if cfg.fine_tune.layers is not None:
        there = load_config(name, cfg.model, cfg.revision).num_hidden_layers
        if cfg.fine_tune.layers > there:
            raise TeacherError(
                f"teacher {name!r}: fine_tune.layers is {cfg.fine_tune.layers}, but {cfg.model!r} has {there}"
            )
        settings["num_hidden_layers"] = cfg.fine_tune.layers
    common = {"revision": cfg.revision}
    module = loading(
        name,
        cfg.model,
        lambda: Transformer(
            resolve_model(cfg.model),
            transformer_task="sequence-classification",
            model_kwargs=common,
            processor_kwargs=common | {"model_max_length": cfg.max_length},
            config_kwargs=common | settings,
        ),
    )
    return CrossEncoder(modules=[module], device=device)


def _batches_by_length(
    dataset: Any, *, lengths: np.ndarray, batch_size: int, drop_last: bool, seed: int = 0, **ignored: Any
) -> Any:
    """A sentence-transformers batch sampler: lists of like length together, batches in random order."""
    from sentence_transformers.base.sampler import DefaultBatchSampler

    class ByLength(DefaultBatchSampler):
        def __iter__(self) -> Iterator[list[int]]:
            rng = np.random.default_rng((seed, self.epoch))
            # lengths within ten per cent count as alike, so that batches differ from epoch to epoch
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
