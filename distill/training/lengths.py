"""The student's maximum lengths: chosen from the data where the recipe says `auto`, and what they cut."""

from __future__ import annotations

from functools import partial
from typing import Any

from distill.config import IdfQuery, Student, max_length
from distill.errors import StudentError
from distill.run.manifest import read_manifest
from distill.run.resolved import AutoField, Choice
from distill.run.run import Run
from distill.run.stage import Reader
from distill.run.truncation import Truncation
from distill.store.token_counts import Side, TokenCounts, count_sides, rounded_up

QUERIES_KEPT, PASSAGES_KEPT = 0.99, 0.95  # shares of the texts to be read whole
PASSAGE_BUDGET = 256  # tokens; training and encoding cost grows with the length
SHORTEST = 16  # tokens


def choose_length(side: Side, run: Run) -> Choice | None:
    """Choose the maximum length of a side from the token counts of the imported texts; None before the import."""
    if read_manifest(run.folder.data) is None:
        return None
    tokenizer, window = student_window(run)
    kept = QUERIES_KEPT if side == "query" else PASSAGES_KEPT
    counts = student_counts(run, tokenizer)[side]
    texts, longest = max(((name, part.percentile(kept)) for name, part in counts.items()), key=lambda item: item[1])
    needed = max(SHORTEST, rounded_up(longest))
    limits = {"the budget": PASSAGE_BUDGET if side == "passage" else None, "the model's limit": window}
    limit, value = min(
        ((name, limit) for name, limit in limits.items() if limit is not None),
        key=lambda item: item[1],
        default=("", needed),
    )
    reason = f"{kept:.0%} of the {texts} have at most {longest} tokens ({counts[texts].basis})"
    return Choice(needed, reason) if needed <= value else Choice(value, f"{limit}, although {reason}")


def student_window(run: Run) -> tuple[Any, int | None]:
    """Return the student's tokenizer and the maximum number of tokens that its model takes, None if not known.

    Raises `StudentError` for a model that cannot be loaded.
    """
    from distill.student.model import load_tokenizer, model_window  # imports torch
    from distill.student.text_reader import longest_dense_input

    student = run.recipe.trained_student
    model = run.model(student.model, student.revision)
    if isinstance(student, Student):
        return model_window(student)
    try:
        tokenizer = load_tokenizer(model.location, model.revision)
    except StudentError as error:
        raise StudentError(f"student.query_max_length, passage_max_length: {error}; set numbers for them") from None
    return tokenizer, longest_dense_input(model)


def student_counts(run: Run, tokenizer: Any) -> dict[Side, dict[str, TokenCounts]]:
    """Count the tokens of the texts as the student reads them, see `count_sides`."""
    from distill.student.base import special_tokens  # imports torch

    student = run.recipe.trained_student
    special = sum(map(len, special_tokens(tokenizer)))
    # queries without a model are read without special tokens
    of_queries = 0 if student.query.kind == "binary" or isinstance(student.query, IdfQuery) else special
    prompts = {"query": student.prompts.query, "passage": student.prompts.document}
    return count_sides(run.folder, tokenizer, run.recipe.seed, prompts, {"query": of_queries, "passage": special})


def readers(run: Run) -> dict[str, Reader]:
    """What the student does not read."""
    return {"student": partial(_truncation, run)}


def _truncation(run: Run) -> list[Truncation]:
    tokenizer, window = student_window(run)
    return [
        counts.truncation(
            "student", texts, f"student.{side}_max_length", max_length(run.recipe.trained_student, side), window
        )
        for side, kinds in student_counts(run, tokenizer).items()
        for texts, counts in kinds.items()
    ]


_READ = ("seed", *(f"student.{field}" for field in ("kind", "model", "revision", "lower_case", "prompts", "query")))
LENGTHS = (
    AutoField("student.query_max_length", partial(choose_length, "query"), _READ, assumed=lambda run: 64),
    AutoField(
        "student.passage_max_length", partial(choose_length, "passage"), _READ, assumed=lambda run: PASSAGE_BUDGET
    ),
)
