"""The batch of one step on one rank: its slice of the global batch, as the cached step and the losses take it."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from distill.losses.objective import GlobalSlice, Supervision
from distill.run.run import Run
from distill.student.base import Student
from distill.training.datasets import Dataset, datasets, open_sampler, open_tokens
from distill.training.step import SIDES, TokenBatch
from distill.training.targets import DatasetTargets
from distill.training.world import World


@dataclass(frozen=True)
class LocalBatch:
    """This rank's slice of a global batch: texts, and the supervision of the losses."""

    dataset: Dataset
    name: str  # of the dataset
    query_rows: np.ndarray  # int64 [B], of the whole global batch, for messages
    sides: tuple[TokenBatch, TokenBatch]  # queries, passages
    supervision: Supervision


class TrainingSets:
    """The labelled queries of all datasets, in training order. `queries`: their number."""

    def __init__(self, run: Run, student: Student):
        self.sampler, self.queries = open_sampler(run)
        self._student, self._batch_size = student, run.recipe.train.batch_size
        self._datasets = datasets(run)
        self._tokens = {name: open_tokens(student, dataset) for name, dataset in self._datasets.items()}
        self._targets = {name: DatasetTargets(dataset, student.vocab_size) for name, dataset in self._datasets.items()}

    def next_batch(self, world: World) -> LocalBatch:
        """Return this rank's slice of the next global batch."""
        name, batch = self.sampler.next_batch(self._batch_size)
        first, last = batch.bounds(world.rank, world.size)
        local = batch.rows(first, last)
        rows_by_side = local.query_rows, local.passage_rows.reshape(-1)  # int64 [b], [b * (1+n)]
        queries, passages = (
            TokenBatch(tokens.take(rows), self._student.max_length(side), self._student.special_tokens(side))
            for side, tokens, rows in zip(SIDES, self._tokens[name], rows_by_side, strict=True)
        )
        supervision = Supervision(
            torch.from_numpy(local.labels).to(world.device),
            GlobalSlice(first, len(batch)),
            torch.from_numpy(batch.known_positives(first, last)).to(world.device),
            self._targets[name].take(*rows_by_side, world.device),
        )
        return LocalBatch(self._datasets[name], name, batch.query_rows, (queries, passages), supervision)
