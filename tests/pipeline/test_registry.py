"""The registry is the only list of stages: an eighth one is a `Stage` and one entry."""

from __future__ import annotations

import shutil
from typing import get_args

import pytest
import typer
from typer.testing import CliRunner

from distill.cli import cluster, stages
from distill.config import StageName
from distill.pipeline import registry
from distill.planning.case import Case, Cost, StageCost
from distill.recipe.load import dump_recipe
from distill.run.files import write_json
from distill.run.manifest import require_manifest
from distill.run.output import Output
from distill.run.run import Run
from distill.run.stage import Stage

EIGHT = ["import", "mine", "teach", "score", "label", "relabel", "train", "evaluate"]


def relabel_outputs(run: Run) -> list[Output]:
    labels = require_manifest(run.folder.labels(), "label").fingerprint
    return [Output(run.folder.root / "relabelled", lambda: {"stage": "relabel", "labels": labels})]


def relabel(run: Run, outputs: list[Output]) -> None:
    write_json(outputs[0].folder / "labels.json", {"mended": 0})
    outputs[0].finish(counts={"mended": 0})


def cost(case: Case) -> StageCost:
    return StageCost(
        f"{case.counts.train_pairs:,} labels looked at again", 8.0, [Cost("", "assumed", wall_seconds=1.0)]
    )


RELABEL = Stage(
    "relabel", help="Mend labels.", outputs=relabel_outputs, execute=relabel, cost=cost, needs=("import", "label")
)


@pytest.fixture
def distill(finished, tmp_path):
    """Run commands on the finished run while an eighth stage is registered."""
    registry.STAGES.insert(EIGHT.index("relabel"), RELABEL)
    recipe = tmp_path / "recipe.yaml"
    recipe.write_text(dump_recipe(finished), encoding="utf-8")
    app = typer.Typer()
    stages.add_commands(app)
    cluster.add_commands(app)

    def invoke(*arguments: str) -> list[list[str]]:
        """The words of each line that the command prints."""
        arguments = tuple(str(recipe) if argument == "RECIPE" else argument for argument in arguments)
        result = CliRunner().invoke(app, arguments, env={"COLUMNS": "200"}, catch_exceptions=False)
        assert result.exit_code == 0, result.output
        return [line.split() for line in result.output.splitlines() if line.strip()]

    yield invoke
    registry.STAGES.remove(RELABEL)


def test_an_eighth_stage_is_found_by_every_command(distill, finished):
    assert any(words[1:4] == ["relabel", "Mend", "labels."] for words in distill("--help"))
    planned = distill("run", "RECIPE", "--dry-run")
    assert planned[1][0] == "data.language:"  # chosen at the import
    assert [words[0] for words in planned[2:10]] == EIGHT and "labels looked at again" in " ".join(planned[7])
    assert "relabel" in [words[0] for words in distill("plan", "RECIPE", "--gpu-type", "h100")]
    assert any("--job-name=distill-relabel" in words for words in distill("submit", "RECIPE", "--all", "--dry-run"))
    before = [words[:2] for words in distill("status", "RECIPE")]
    assert before[5:7] == [["relabel", "pending"], ["train", "pending"]]
    distill("relabel", "RECIPE")
    home = finished.folder / "relabelled"
    assert (home / "labels.json").is_file() and (home / "manifest.json").is_file()
    assert [words[:2] for words in distill("status", "RECIPE")][:8] == [[name, "done"] for name in EIGHT]
    distill("run", "RECIPE")
    shutil.rmtree(home)


def test_the_schema_names_the_stages_of_the_registry():
    assert list(get_args(StageName)) == [stage.name for stage in registry.STAGES]
