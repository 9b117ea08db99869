"""Our training compared with sentence-transformers' `SparseEncoderTrainer`: quality, active terms, time and memory.

It runs configs/beir.yaml on a judged collection. Both start from one calibrated checkpoint and train on the same
queries, passages and labels (those that our sampler draws), with the same losses, regularisers, learning rate and
number of steps, each in its own process. Three variants of ours follow: batches of 24 queries instead of 16, which
spends some of the time saved; an additional self-mining round; and inference-free queries. Our evaluate stage and
sentence-transformers' own evaluator measure all checkpoints. Finished steps are not repeated.
Usage: python benchmarks/quality.py COLLECTION --work FOLDER [--set PATH=VALUE ...] [--only STEP ...]
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import multiprocessing
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
from measuring import device_name, peak_above_idle
from torch import nn
from transformers import TrainerCallback

from distill.config import Recipe
from distill.pipeline.run import run_part, run_pipeline
from distill.recipe.expand import open_run
from distill.recipe.load import load_recipe
from distill.run.files import read_json
from distill.run.layout import RunFolder
from distill.run.manifest import require_manifest
from distill.run.run import Run
from distill.store.texts import TextStore
from distill.student.dropout import set_dropout
from distill.training.batches import Sampler, TrainingData

RECIPE = Path(__file__).parents[1] / "configs" / "beir.yaml"
OURS = {"ours, float32": "fp32", "ours, bfloat16": "bf16"}
PEERS = {"SparseEncoderTrainer, float32": False, "SparseEncoderTrainer, bfloat16": True}
FREE, SECOND = "ours, inference-free queries", "ours, self-mining round on top"
LARGER = "ours, bfloat16, batches of 24"
SCORED = ("data", "candidates", "teachers", "scores")  # outputs that labels are made from
BASE = "ours, bfloat16"  # the first round of the self-mining run
STEPS = ("labels", *OURS, *PEERS, LARGER, SECOND, FREE)
SELF_MINING = (
    "{mine: {miners: {student: {kind: splade, model: round:previous, top: 5, sample: 5, depth: 50}}}, "
    "student: {model: round:previous}, score: {rerank: false}, train: {steps: %d, lr: 1.0e-4, "
    "query_regularizers: [{kind: l1, weight: 0.005, ramp: constant}], "
    "passage_regularizers: [{kind: flops, weight: 0.01, ramp: constant}]}}"
)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("collection", type=Path, help="a judged collection in BEIR's layout")
    parser.add_argument("--work", type=Path, required=True, help="folder for run folders and finished steps")
    parser.add_argument("--set", nargs="+", default=[], metavar="PATH=VALUE", help="changes to configs/beir.yaml")
    parser.add_argument("--threads", type=int, default=torch.get_num_threads())
    parser.add_argument("--only", nargs="+", choices=STEPS, default=STEPS)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    for name in args.only:
        done = args.work / f"{name}.json"
        if not done.exists():
            with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as process:
                figures = process.submit(step, name, args).result()
            done.write_text(json.dumps({"system": name, **figures}) + "\n", encoding="utf-8")
        print(done.read_text(encoding="utf-8"), end="", flush=True)


def step(name: str, args: argparse.Namespace) -> dict[str, Any]:
    """Prepare, train (measured) and evaluate one system; the step "labels" prepares the labels that all train on."""
    logging.disable(logging.WARNING)
    torch.set_num_threads(args.threads)
    first = recipe_of(args, "labels")
    if name == "labels":
        from distill.training.prepare import prepare
        from distill.training.stage import outputs

        label(first, "import", "mine", "teach")
        run_of_labels = Run.of(first)
        prepare(run_of_labels, *outputs(run_of_labels))  # includes the checkpoint that all start from
        link(RunFolder.of(first).root, args.work / "start", (*SCORED, "labels"))
        (args.work / "start" / "model").symlink_to((RunFolder.of(first).start).resolve())
        return quality(recipe_of(args, "start"))
    recipe = recipe_of(args, BASE if name == SECOND else name, *changes(name, first))
    if name == FREE:  # needs labels on another scale, and another start
        link(RunFolder.of(first).root, recipe.folder, SCORED)
        run_pipeline(recipe, only="label")
    else:
        link(RunFolder.of(first).root, recipe.folder, (*SCORED, "labels", "start"))
    if name == SECOND:
        recipe = open_run(recipe, round=2).recipe
        label(recipe, "mine")
    cost: dict[str, float] = {}
    train = (lambda: train_peer(recipe, cost, PEERS[name])) if name in PEERS else (lambda: train_ours(recipe, cost))
    measure(train, cost)
    return {**cost, **quality(recipe), "steps": recipe.train.steps, "device": device_name(args.threads)}


def changes(name: str, first: Recipe) -> list[str]:
    """The overrides of a system, given the recipe of the labels."""
    if name == FREE:  # the differences of configs/quickstart-inference-free.yaml from configs/quickstart.yaml
        return [
            "train.precision=bf16",
            "student.query.kind=idf",
            "train.query_regularizers=[]",
            "label.scale=30",
            "train.losses=[{kind: kl, student_temperature: 4, teacher_temperature: 4}, "
            "{kind: margin-mse, weight: 0.005}]",
            "train.passage_regularizers.0.weight=0.002",
        ]
    if name == LARGER:
        return ["train.precision=bf16", f"train.batch_size={first.train.batch_size * 3 // 2}"]
    if name == SECOND:
        return ["train.precision=bf16", f"rounds=[{SELF_MINING % (first.train.steps // 2)}]"]
    return [f"train.precision={OURS[name]}"] if name in OURS else []


def recipe_of(args: argparse.Namespace, name: str, *more: str) -> Recipe:
    return load_recipe(
        RECIPE,
        [
            f"data.source.path={args.collection.resolve()}",
            "train.steps=120",  # the same for every collection; `--set` changes it
            f"run_dir={(args.work / name).resolve()}",
            "evaluate.baselines=false",
            "evaluate.evaluators=[{kind: information-retrieval}]",
            *args.set,
            *more,
        ],
    )


def link(labelled: Path, folder: Path, parts: Iterable[str]) -> None:
    """Create a run folder with links to these parts of another one."""
    folder.mkdir(exist_ok=True)
    for part in parts:
        if not (folder / part).exists():
            (folder / part).symlink_to((labelled / part).resolve())


def label(recipe: Recipe, *before: str) -> None:
    """Run the stages before training; scoring runs in this process."""
    for stage in before:
        run_pipeline(recipe, only=stage)
    run_part(Run.of(recipe), "score", (0, 1))
    run_pipeline(recipe, only="label")


def measure(train: Callable[[], None], cost: dict[str, float]) -> None:
    """Measure wall and CPU seconds from loading the start to the saved model, and peak gigabytes above idle."""

    def timed() -> None:
        wall, cpu = time.perf_counter(), time.process_time()
        train()
        cost.update(wall_s=round(time.perf_counter() - wall, 1), cpu_s=round(time.process_time() - cpu, 1))

    cost["peak_gb"] = round(peak_above_idle(timed), 3)


def train_ours(recipe: Recipe, cost: dict[str, float]) -> None:
    run_pipeline(recipe, only="train")
    cost["steps_s"] = require_manifest(RunFolder.of(recipe).model, "train").counts["seconds"]


def quality(recipe: Recipe) -> dict[str, float]:
    """The evaluate stage's figures for the checkpoint in the run folder, and nDCG@10 by sentence-transformers."""
    folder = RunFolder.of(recipe)
    run_pipeline(recipe, only="evaluate")
    result = read_json(folder.evaluation)
    (row,) = result["rows"]
    (theirs,) = result["evaluators"]
    costs = {name: round(row[name], 2) for name in ("query_terms", "passage_terms", "flops")}
    return {
        **{name: round(value, 4) for name, value in row["metrics"].items()},
        **costs,
        "sentence_transformers": {
            name: round(value, 4) for name, value in theirs["metrics"].items() if name.endswith(("ndcg@10", "mrr@10"))
        },
    }


# ------------------------------------------------------------------------------------------------------- the peer


class Both(nn.Module):
    """The sum of KL divergence and MarginMSE, with the interface that SpladeLoss needs."""

    def __init__(self, encoder: nn.Module, kl_weight: float, margin_weight: float):
        from sentence_transformers.sparse_encoder import losses

        super().__init__()
        self.parts = {
            "kl": (losses.SparseDistillKLDivLoss(encoder, student_temperature=1.0, teacher_temperature=1.0), kl_weight),
            "margin": (losses.SparseMarginMSELoss(encoder), margin_weight),
        }

    def compute_loss_from_embeddings(
        self, embeddings: list[torch.Tensor], labels: torch.Tensor
    ) -> dict[str, torch.Tensor]:
        return {
            name: loss.compute_loss_from_embeddings(embeddings, labels) * weight
            for name, (loss, weight) in self.parts.items()
        }


class L1(nn.Module):
    def compute_loss_from_embeddings(self, embeddings: torch.Tensor) -> torch.Tensor:
        return embeddings.sum(1).mean()


def drawn_rows(recipe: Recipe) -> dict[str, list[Any]]:
    """Texts and labels of every list that our sampler draws over the recipe's steps, as columns of a dataset."""
    folder, train = RunFolder(recipe.folder), recipe.train
    sampler = Sampler(TrainingData.open(folder), train.negatives, recipe.seed)
    batch = sampler.next_batch(train.batch_size * train.steps)
    passages = TextStore.open(folder.passages)
    columns = {"query": TextStore.open(folder.queries("train")).texts(batch.query_rows)}
    for i in range(1 + train.negatives):
        columns[f"passage_{i}"] = passages.texts(batch.passage_rows[:, i])
    return {**columns, "label": batch.labels.tolist()}


class Clock(TrainerCallback):
    """Seconds from the beginning of the first step to the end of the last."""

    def on_step_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.global_step == 0:
            self.began = time.perf_counter()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self.seconds = time.perf_counter() - self.began


def train_peer(recipe: Recipe, cost: dict[str, float], bf16: bool) -> None:
    from datasets import Dataset
    from sentence_transformers import SparseEncoder, SparseEncoderTrainer, SparseEncoderTrainingArguments
    from sentence_transformers.sparse_encoder import losses
    from sentence_transformers.sparse_encoder.callbacks import SpladeRegularizerWeightSchedulerCallback

    train = recipe.train
    (kl, margin), (l1,), (flops,) = train.losses, train.query_regularizers, train.passage_regularizers
    folder = RunFolder.of(recipe)
    encoder = SparseEncoder(str(folder.start), device="cpu")
    set_dropout(encoder, train.dropout)
    loss = losses.SpladeLoss(
        encoder,
        Both(encoder, kl.weight, margin.weight),
        document_regularizer_weight=flops.weight,
        query_regularizer_weight=l1.weight,
        query_regularizer=L1(),
    )
    arguments = SparseEncoderTrainingArguments(
        output_dir=str(folder.root / "trainer"),
        max_steps=train.steps,
        per_device_train_batch_size=train.batch_size,
        learning_rate=train.lr,
        lr_scheduler_type=train.schedule,
        weight_decay=train.weight_decay,
        warmup_steps=math.ceil(train.warmup_ratio * train.steps),
        max_grad_norm=train.max_grad_norm,
        seed=recipe.seed,
        save_strategy="no",
        report_to="none",
        use_cpu=True,
        bf16=bf16,
        disable_tqdm=True,
        logging_strategy="no",
    )
    ramp = SpladeRegularizerWeightSchedulerCallback(loss, flops.ramp, flops.ramp_steps / train.steps)
    clock = Clock()
    SparseEncoderTrainer(
        encoder, arguments, train_dataset=Dataset.from_dict(drawn_rows(recipe)), loss=loss, callbacks=[ramp, clock]
    ).train()
    encoder.save_pretrained(str(folder.model))
    cost["steps_s"] = round(clock.seconds, 1)


if __name__ == "__main__":
    main()
