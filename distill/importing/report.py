"""What an import tells about its counts."""

from __future__ import annotations

import logging
from typing import Any

from distill.config import AUTO, Data
from distill.config.languages import NO_LANGUAGE
from distill.importing.query_log import report_log
from distill.importing.querygen import WITHOUT_QUERY
from distill.importing.readers.base import unread_unit
from distill.run.layout import SPLITS

log = logging.getLogger(__name__)


def report(counts: dict[str, Any], data: Data) -> None:
    """Log the counts of an import; what a user should look at is a warning."""
    sizes = {name: value for name, value in counts.items() if value and isinstance(value, int)}
    log.info("imported %s", ", ".join(f"{value:,} {name}" for name, value in sizes.items()))
    if data.language == AUTO:
        log.info("language of the passages: %s; data.language sets another one for BM25", counts["language"])
    elif not counts["language"].startswith(data.language) and data.language != NO_LANGUAGE:
        log.warning("data.language is %s, but the passages look like this: %s", data.language, counts["language"])
    for what, count in counts.get("unread", {}).items():
        log.warning("not read: %s (%s %s)", what, f"{count:,}", unread_unit(what))
    if copies := counts["passages.copies"]:
        log.info(
            "%d of %d passages have the text of an earlier one; a copy of a positive is never a negative",
            copies,
            counts["passages"],
        )
    if equal := counts.get("queries.train.equal"):
        log.warning(
            "%d of %d training queries have the text of another one; a positive of one of them is a negative of none",
            equal,
            counts["queries.train"],
        )
    if without := counts.get("queries.train.without_text"):
        log.warning("%d training queries have no text and are left out", without)
    if without := counts.get("judgements.train.without_text"):
        log.warning("%d positives of training queries have no text and are left out", without)
    without = {reason: counts.get(f"passages.without_query.{reason}", 0) for reason in WITHOUT_QUERY}
    if any(without.values()):
        log.info(
            "%d of %d passages give no query: %s",
            sum(without.values()),
            counts.get("passages.examined", counts["passages"]),
            ", ".join(f"{count} {WITHOUT_QUERY[reason]}" for reason, count in without.items() if count),
        )
    if left_out := counts.get("queries.train.left_out"):
        available = counts["queries.train"] - counts.get("queries.train.logged", 0) + left_out
        log.info(
            "%d of %d judged and generated training queries are imported (data.train_queries, data.limit)",
            available - left_out,
            available,
        )
    for split in SPLITS:
        if own := counts.get(f"queries.{split}.own_documents"):
            log.warning(
                "%d of %d %s queries are passages themselves (text and id); each is left out of its query's "
                "rankings and negatives (data.own_document)",
                own,
                counts[f"queries.{split}"],
                split,
            )
        if shared := counts.get(f"queries.{split}.in_training"):
            log.warning(
                "%d of %d %s queries are training queries, too (the same text): figures on them say little about "
                "unseen queries",
                shared,
                counts[f"queries.{split}"],
                split,
            )
        if split == "test" and (shared := counts.get("queries.test.in_development")):
            log.warning(
                "%d of %d test queries are development queries, too (the same text)", shared, counts["queries.test"]
            )
        if dropped := counts.get(f"judgements.{split}.dropped"):
            log.warning("%d judgements of the %s split name what the source does not have; left out", dropped, split)
    if "query_log.rows" in counts:
        report_log(counts)
    for name in ("passages", *(f"queries.{split}" for split in SPLITS)):
        if repeated := counts.get(f"{name}.repeated"):
            log.warning("%d lines of %s repeat an earlier one, id and text; each is kept once", repeated, name)
        if empty := counts.get(f"{name}.empty"):
            log.warning("%d of %d %s have no text; they are kept", empty, counts[name], name)
        if unjudged := counts.get(f"{name}.unjudged"):
            log.warning(
                "%d %s have no %s and are left out",
                unjudged,
                name,
                "positive" if name == "queries.train" else "judgement",
            )
    if not counts.get("queries.train"):
        log.warning(
            "there are no training queries: %s",
            "none could be generated"
            if data.generate
            else "the source has no judgements for training; data.generate makes queries from the passages, and "
            "data.query_log takes queries without judgements",
        )
