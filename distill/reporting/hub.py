"""`distill push`: a finished run's model on the Hugging Face hub, with its card, its recipe and its evaluation."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from distill.config import Recipe
from distill.data.layout import RunFolder
from distill.data.manifest import read_manifest
from distill.errors import HubError
from distill.reporting.model_card import write_model_card
from distill.reporting.run_facts import recipe_yaml


def require_finished(folder: RunFolder) -> None:
    """Raises `HubError` where training or evaluation is not done."""
    for stage, path in (("train", folder.model), ("evaluate", folder.metrics)):
        if read_manifest(path) is None:
            raise HubError(f"{path}: not finished, so there is nothing to share yet; run `distill {stage}` first")


def files_to_push(folder: RunFolder) -> dict[str, Path]:
    """Name on the hub -> file, of a finished run: the saved model with its card, the recipe, the evaluation."""
    files = {
        path.relative_to(folder.model).as_posix(): path
        for path in sorted(folder.model.rglob("*"))
        if path.is_file() and path.name != "manifest.json" and not path.name.startswith(".")
    }
    return {**files, "recipe.yaml": folder.recipe, "evaluation.json": folder.evaluation}


def push(
    recipe: Recipe,
    folder: RunFolder,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
) -> str:
    """Upload the run's model to `repo` (made if missing) in one commit, on the branch `revision`; returns its address.

    With `dry_run` nothing is sent, and the files are returned, a line each. Raises `HubError` for a run that is not
    finished, without a token, and for what the hub answers.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise HubError(f"--repo {repo!r}: {error}") from None
    require_finished(folder)
    write_model_card(recipe, folder)
    files = files_to_push(folder)
    if dry_run:
        return "\n".join(f"{path.stat().st_size:>14,}  {name}" for name, path in files.items())
    if get_token() is None:
        raise HubError(
            "the hub needs to know who you are: run `hf auth login`, or set HF_TOKEN to a token that may "
            "write (https://huggingface.co/settings/tokens)"
        )
    api = HfApi()
    try:
        address = api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        api.create_commit(
            repo,
            [
                CommitOperationAdd(name, recipe_yaml(recipe).encode() if path == folder.recipe else str(path))
                for name, path in files.items()
            ],
            commit_message=f"{recipe.name}, distilled with splade-distill",
            revision=revision,
        )
    except (HTTPError, HfHubHTTPError, OfflineModeIsEnabled) as error:
        raise HubError(f"{repo} could not be pushed to {constants.ENDPOINT}: {error}") from None
    return str(address)
