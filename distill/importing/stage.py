"""Stage 1, import: a source becomes text stores and judgements, with every line checked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from distill.config import AUTO, Recipe
from distill.importing.import_data import import_data
from distill.importing.lists import imported_teacher, list_fields
from distill.importing.readers import source_fields
from distill.importing.readers.query_log import query_log_fields
from distill.planning.case import Case, StageCost, on_processors
from distill.planning.steps import queries_read
from distill.planning.volumes import CHARACTERS_PER_TOKEN
from distill.recipe.expand import all_rounds
from distill.run.manifest import FORMAT, read_manifest
from distill.run.output import Output
from distill.run.resolved import AutoField, Choice
from distill.run.run import Run
from distill.run.stage import Stage
from distill.store.candidates import are_imported
from distill.store.languages import imported_language

TEXTS_PER_SECOND = 100e3  # measured on two processor cores


def import_fields(recipe: Recipe) -> dict[str, Any]:
    """Fingerprint inputs of the stores. Reads the source's files completely, to hash them."""
    data = recipe.data
    assert data.train_queries != AUTO  # see `distill.pipeline.resolve.settle`
    return {
        "stage": "import",
        "format": FORMAT,
        "seed": recipe.seed,
        "source": source_fields(data.source),
        "generate": data.generate.model_dump(mode="json", exclude_none=True) if data.generate else None,
        "train_queries": data.train_queries,
        "limit": data.limit,
        "on_missing": data.on_missing,
        "quote_ids": data.quote_ids,
        "own_document": data.own_document,
        **({"query_log": query_log_fields(data)} if data.query_log else {}),
        "imported_teacher": imported_teacher(recipe),  # the owner of the source's own scores
    }


def outputs(run: Run) -> list[Output]:
    """The stores, and the candidates and scores of a source that brings its own."""
    data = Output(run.folder.data, lambda: import_fields(run.recipe))
    if not are_imported(run.folder.candidates("train")):
        return [data]
    written = [data, Output(run.folder.candidates("train"), lambda: list_fields(run.recipe, data.fields)[0])]
    teacher = imported_teacher(run.recipe)
    if teacher is not None:
        written.append(Output(run.folder.scores(teacher, "train"), lambda: list_fields(run.recipe, data.fields)[1]))
    return written


def execute(run: Run, outputs: Sequence[Output]) -> None:
    import_data(run, outputs[0])


def cost(case: Case) -> StageCost:
    """One process reads and checks the texts; the stores take the bytes of all texts."""
    size = case.size
    queries = ", ".join(f"{count:,} {split} queries" for split, count in size.queries.items() if count)
    rate = f"{TEXTS_PER_SECOND:,.0f} texts per second"
    read = on_processors(case, "import", size.texts / TEXTS_PER_SECOND, rate, lambda case: case.size.texts)
    disk = case.counts.text_tokens * CHARACTERS_PER_TOKEN
    return StageCost(f"{size.passages:,} passages, {queries}", disk, [read])


def choose_train_queries(run: Run) -> Choice:
    """Choose as many training queries as the longest of the recipe's rounds reads."""
    return Choice(*queries_read([recipe.train for recipe in all_rounds(run.recipe)]))


TRAIN_QUERIES = AutoField(
    "data.train_queries",
    choose_train_queries,
    ("train.steps", "train.batch_size"),
    assumed=lambda run: None,
    before_import=True,
)


def choose_language(run: Run) -> Choice | None:
    """Choose the language of the imported passages; None before the import."""
    if read_manifest(run.folder.data) is None:
        return None
    language = imported_language(run.folder)
    return Choice(language.name, language.reason)


LANGUAGE = AutoField("data.language", choose_language, (), assumed=lambda run: "english")

STAGE = Stage(
    "import",
    help="Read and check the source, write text stores, and generate queries if the recipe asks for them.",
    outputs=outputs,
    execute=execute,
    cost=cost,
    auto=(TRAIN_QUERIES, LANGUAGE),
    first_round_only=True,
    caches=lambda folder: folder.caches_of_data,
)
