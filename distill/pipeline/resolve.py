"""Choose the values of fields that the recipe leaves to the program (`auto`), and fill them in."""

from __future__ import annotations

import logging

from distill.errors import DistillError
from distill.pipeline.registry import STAGES
from distill.run.files import locked
from distill.run.manifest import read_manifest
from distill.run.resolved import (
    AutoField,
    Resolved,
    filled,
    is_auto,
    made_from,
    read_record,
    valid_record,
    with_recorded,
    write_record,
)
from distill.run.run import Run
from distill.run.stage import Stage

log = logging.getLogger(__name__)


def resolve(run: Run, stage: Stage | None = None) -> Run:
    """Return the run with every value filled in that is recorded or can be chosen now; record the new ones.

    Raises what a rule raises, such as `StudentError` for a model that cannot be loaded. With `stage`, that is only for
    the fields of this stage and of those that it needs: others stay open.
    """
    optional = set() if stage is None else _fields_beyond(run, {stage.name, *stage.needs})
    failed: set[str] = set()
    run, settled = _settle(run)
    if read_manifest(run.folder.data) is None:  # all other values are chosen from the data
        return run
    if not left_open(run := with_recorded(run)) and not _unrecorded(settled, run):
        return run
    with locked(run.folder.resolved):  # the ranks of a launcher and the tasks of an array choose once
        run, chosen = with_recorded(run), _unrecorded(settled, run)
        # of one pass, none sees the others' values: the teachers' weights are chosen together
        while entries := [
            entry
            for auto in left_open(run)
            if (entry := _try(auto, run, failed) if auto.field in optional else _choose(auto, run)) is not None
        ]:
            for entry in entries:
                log.info("%s: %s (%s)", entry.field, entry.value, entry.reason)
                run = filled(run, entry.field, entry.value)
            chosen += entries
        if chosen:
            write_record(run.folder, {**read_record(run.folder), **{entry.field: entry for entry in chosen}})
    return run


def settle(run: Run) -> Run:
    """Return the run with every value filled in that the import needs: they follow from the recipe alone."""
    return _settle(run)[0]


def known_values(run: Run) -> tuple[Run, dict[str, str]]:
    """Return the run with every value filled in that can be known, and these values in words, by field.

    For displays: nothing is written, and a rule that fails leaves its field open.
    """
    words: dict[str, str] = {}
    recorded, failed = valid_record(run), set[str]()
    while True:
        entries = []
        for auto in left_open(run):
            known = None if auto.before_import else recorded.get(auto.field)
            if (entry := known or _try(auto, run, failed)) is not None:
                entries.append(entry)
        if not entries:
            return run, words
        for entry in entries:
            run = filled(run, entry.field, entry.value)
            words[entry.field] = f"{'null' if entry.value is None else entry.value} ({entry.reason})"


def planned_values(run: Run) -> tuple[Run, dict[str, str]]:
    """Return the run with every value filled in, assumed where it is not known, and these values in words."""
    run, words = known_values(run)
    for auto in left_open(run):
        assumed = auto.assumed(run)
        run = filled(run, auto.field, assumed)
        words[auto.field] = f"auto, chosen after the import ({assumed} assumed here)"
    return run, words


def left_open(run: Run) -> list[AutoField]:
    """List the fields that the recipe leaves to the program."""
    fields = [auto for stage in STAGES for auto in (*stage.auto, *stage.auto_of(run.recipe))]
    return [auto for auto in fields if is_auto(run.recipe, auto.field)]


def _settle(run: Run) -> tuple[Run, list[Resolved]]:
    """Fill in the fields that follow from the recipe alone, before any other, since the others are read as written."""
    entries = []
    for auto in left_open(run):
        if auto.before_import and (entry := _choose(auto, run)) is not None:
            entries.append(entry)
            run = filled(run, entry.field, entry.value)
    return run, entries


def _unrecorded(entries: list[Resolved], run: Run) -> list[Resolved]:
    recorded = read_record(run.folder)
    return [entry for entry in entries if entry.value is not None and recorded.get(entry.field) != entry]


def _choose(auto: AutoField, run: Run) -> Resolved | None:
    choice = auto.choose(run)
    return None if choice is None else Resolved(auto.field, choice.value, choice.reason, made_from(run, auto))


def _try(auto: AutoField, run: Run, failed: set[str]) -> Resolved | None:
    """Choose a value; None, and a note among the `failed` fields, if the rule fails. Those are not tried again."""
    if auto.field in failed:
        return None
    try:
        return _choose(auto, run)
    except (DistillError, OSError) as error:
        log.debug("%s cannot be chosen here: %s", auto.field, error)
        failed.add(auto.field)
        return None


def _fields_beyond(run: Run, names: set[str]) -> set[str]:
    """The fields of stages with other names than these."""
    return {
        auto.field for stage in STAGES if stage.name not in names for auto in (*stage.auto, *stage.auto_of(run.recipe))
    }
