"""Upload a finished run's model to the Hugging Face hub, with its card, recipe and evaluation (`distill push`)."""

from __future__ import annotations

from pathlib import Path

from huggingface_hub import CommitOperationAdd, HfApi, constants, get_token
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, HTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import validate_repo_id

from distill.errors import HubError
from distill.reporting.model_card import write_model_card
from distill.reporting.run_facts import recipe_yaml
from distill.run.layout import RunFolder
from distill.run.manifest import read_manifest
from distill.run.resolved import with_recorded
from distill.run.run import Run


def require_finished(folder: RunFolder) -> None:
    """Raise `HubError` if training or evaluation is not finished."""
    for stage, path in (("train", folder.model), ("evaluate", folder.metrics)):
        if read_manifest(path) is None:
            raise HubError(f"{path}: not finished, so it cannot be pushed yet; run `distill {stage}` first")


def files_to_push(folder: RunFolder) -> dict[str, Path]:
    """Files of a finished run by their name on the hub: the saved model with its card, the recipe, the evaluation."""
    files = {
        path.relative_to(folder.model).as_posix(): path
        for path in sorted(folder.model.rglob("*"))
        if path.is_file() and path.name != "manifest.json" and not path.name.startswith(".")
    }
    return {**files, "recipe.yaml": folder.recipe, "evaluation.json": folder.evaluation}


def push(
    run: Run,
    repo: str,
    *,
    private: bool = False,
    revision: str | None = None,
    dry_run: bool = False,
) -> str:
    """Upload the run's model to `repo` (created if missing) in one commit on the branch `revision`; return its URL.

    With `dry_run` nothing is sent; the list of files is returned instead, one per line. Raises `HubError` for an
    unfinished run, a missing token, and errors of the hub.
    """
    try:
        validate_repo_id(repo)
    except HFValidationError as error:
        raise HubError(f"--repo {repo!r}: {error}") from None
    if run.recipe.student is None:
        raise HubError(f"recipe {run.recipe.name!r} trains no student, so there is no model to push")
    require_finished(run.folder)
    write_model_card(with_recorded(run))
    files = files_to_push(run.folder)
    if dry_run:
        return "\n".join(f"{path.stat().st_size:>14,}  {name}" for name, path in files.items())
    if get_token() is None:
        raise HubError(
            "not logged in to the hub: run `hf auth login`, or set HF_TOKEN to a token with write access "
            "(https://huggingface.co/settings/tokens)"
        )
    api = HfApi()
    try:
        url = api.create_repo(repo, private=private, exist_ok=True)
        if revision is not None:
            api.create_branch(repo, branch=revision, exist_ok=True)
        api.create_commit(
            repo,
            [
                CommitOperationAdd(name, recipe_yaml(run.recipe).encode() if path == run.folder.recipe else str(path))
                for name, path in files.items()
            ],
            commit_message=f"{run.recipe.name}, distilled with splade-distill",
            revision=revision,
        )
    except (HTTPError, HfHubHTTPError, OfflineModeIsEnabled) as error:
        raise HubError(f"{repo} could not be pushed to {constants.ENDPOINT}: {error}") from None
    return str(url)
