"""Files to push and refusals of `distill push`; no hub is needed."""

import os
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard

from distill.errors import HubError
from distill.recipe.load import dump_recipe
from distill.reporting.hub import files_to_push, push
from distill.run.layout import RunFolder
from distill.run.run import Run


def distill_push(recipe, tmp_path, *options, **environment) -> subprocess.CompletedProcess:
    path = tmp_path / "recipe.yaml"
    path.write_text(dump_recipe(recipe))
    clean = {name: value for name, value in os.environ.items() if name not in ("HF_TOKEN", "HF_HUB_OFFLINE")}
    return subprocess.run(
        [sys.executable, "-m", "distill.cli", "push", str(path), "--repo", "org/model", *options],
        text=True,
        capture_output=True,
        timeout=300,
        env={**clean, "HF_HOME": str(tmp_path / "hf"), **environment},
    )


def test_push_dry_run_lists_model_recipe_and_evaluation(finished):
    folder = RunFolder.of(finished)
    listed = [line.split()[1] for line in push(Run(finished, folder), "org/model", dry_run=True).splitlines()]
    assert {
        "README.md",
        "modules.json",
        "model.safetensors",
        "tokenizer.json",
        "recipe.yaml",
        "evaluation.json",
    } <= set(listed)
    assert set(listed) == set(files_to_push(folder)) and "manifest.json" not in listed
    assert ModelCard.load(folder.model / "README.md").data.eval_results


def test_push_of_an_unfinished_run_is_refused(finished, tmp_path):
    recipe = finished.model_copy(update={"run_dir": tmp_path / "elsewhere"})
    result = distill_push(recipe, tmp_path)
    assert result.returncode == 2 and "run `distill train` first" in result.stderr


def test_push_without_a_token_names_the_ways_to_log_in(finished, tmp_path):
    result = distill_push(finished, tmp_path)
    assert result.returncode == 2 and "hf auth login" in result.stderr and "HF_TOKEN" in result.stderr


def test_push_names_a_hub_that_cannot_be_reached(finished, tmp_path):
    result = distill_push(finished, tmp_path, HF_TOKEN="hf_none", HF_ENDPOINT="http://127.0.0.1:1")
    assert result.returncode == 2 and "could not be pushed to http://127.0.0.1:1" in result.stderr
    assert "Traceback" not in result.stderr


def test_push_to_an_invalid_repository_name_is_refused(finished):
    with pytest.raises(HubError, match="--repo"):
        push(Run(finished, RunFolder.of(finished)), "a/b/c", dry_run=True)
