"""What would be pushed, and what is refused in words; no hub is needed."""

import os
import subprocess
import sys

import pytest
from huggingface_hub import ModelCard

from distill.data.layout import RunFolder
from distill.errors import HubError
from distill.recipe_file import dump_recipe
from distill.reporting.hub import files_to_push, push


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


def test_a_dry_run_lists_the_whole_model_its_recipe_and_its_evaluation(finished):
    folder = RunFolder.of(finished)
    listed = [line.split()[1] for line in push(finished, folder, "org/model", dry_run=True).splitlines()]
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


def test_a_run_that_is_not_finished_is_refused(finished, tmp_path):
    recipe = finished.model_copy(update={"run_dir": tmp_path / "elsewhere"})
    result = distill_push(recipe, tmp_path)
    assert result.returncode == 2 and "run `distill train` first" in result.stderr


def test_without_a_token_it_says_how_to_log_in(finished, tmp_path):
    result = distill_push(finished, tmp_path)
    assert result.returncode == 2 and "hf auth login" in result.stderr and "HF_TOKEN" in result.stderr


def test_a_hub_that_cannot_be_reached_is_named(finished, tmp_path):
    result = distill_push(finished, tmp_path, HF_TOKEN="hf_none", HF_ENDPOINT="http://127.0.0.1:1")
    assert result.returncode == 2 and "could not be pushed to http://127.0.0.1:1" in result.stderr
    assert "Traceback" not in result.stderr


def test_a_name_that_the_hub_would_not_take_is_refused(finished):
    with pytest.raises(HubError, match="--repo"):
        push(finished, RunFolder.of(finished), "a/b/c", dry_run=True)
