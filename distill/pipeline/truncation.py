"""Count, before mining, the texts that the run's models do not read to their end."""

from __future__ import annotations

import logging

from distill.errors import DistillError
from distill.pipeline.registry import stages_of
from distill.run.files import locked
from distill.run.manifest import read_manifest
from distill.run.run import Run
from distill.run.truncation import (
    Truncation,
    TruncationRecord,
    read_truncation,
    truncation_inputs,
    write_truncation,
)

log = logging.getLogger(__name__)


def record_truncation(run: Run) -> None:
    """Count and record the figures of an imported run, unless the record is up to date; warn of high shares."""
    inputs = _inputs(run)
    if inputs is None or _is_current(run, inputs):
        return
    with locked(run.folder.truncation):  # the ranks of a launcher and the tasks of an array count once
        if _is_current(run, inputs):
            return
        record = _count(run, inputs)
        write_truncation(run.folder, record)
    for figure in record.figures:
        log.log(logging.WARNING if figure.alarming else logging.DEBUG, "%s", figure.sentence())
    for reader, reason in record.unknown.items():
        log.warning("not known what the %s cuts: %s", reader, reason)


def truncation_of(run: Run) -> TruncationRecord | None:
    """Return the figures of an imported run, counted anew if the record is not up to date; nothing is written."""
    inputs = _inputs(run)
    if inputs is None:
        return None
    return read_truncation(run.folder) if _is_current(run, inputs) else _count(run, inputs)


def _inputs(run: Run) -> dict[str, object] | None:
    data = read_manifest(run.folder.data)
    return None if data is None else truncation_inputs(run.recipe, data.fingerprint)


def _is_current(run: Run, inputs: dict[str, object]) -> bool:
    record = read_truncation(run.folder)
    return record is not None and record.made_from == inputs


def _count(run: Run, inputs: dict[str, object]) -> TruncationRecord:
    figures: list[Truncation] = []
    unknown = {}
    for stage in stages_of(run):
        try:
            readers = stage.readers(run)
        except DistillError as error:  # a model of a round before that is not trained yet
            unknown[stage.name] = str(error)
            continue
        for name, count in readers.items():
            try:
                figures += count()
            except (DistillError, OSError) as error:
                unknown[name] = str(error)
    return TruncationRecord(tuple(figures), unknown, inputs)
