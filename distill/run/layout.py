"""Paths inside a run folder; no other module spells them."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from distill.config import Recipe

SPLITS = ("train", "dev", "test")


@dataclass(frozen=True)
class RunFolder:
    """Paths of one run, or of one of its further rounds; the disk is never accessed.

    `first`: for a further round, the folder of the first round, whose data and fine-tuned teachers it uses.
    """

    root: Path
    first: Path | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "root", Path(self.root))

    @classmethod
    def of(cls, recipe: Recipe) -> RunFolder:
        return cls(recipe.folder, recipe.follows.run if recipe.follows else None)

    @property
    def _shared(self) -> Path:
        return self.root if self.first is None else self.first

    def round(self, number: int) -> Path:
        """Folder of a further round; `number` is at least 2."""
        return self.root / f"round-{number}"

    @property
    def recipe(self) -> Path:
        return self.root / "recipe.yaml"

    @property
    def resolved(self) -> Path:
        """Values chosen for fields that the recipe leaves to the program, see `distill.run.resolved`."""
        return self.root / "resolved.json"

    @property
    def truncation(self) -> Path:
        """Shares of texts that maximum lengths cut, see `distill.run.truncation`."""
        return self.root / "truncation.json"

    @property
    def data(self) -> Path:
        return self._shared / "data"

    @property
    def passages(self) -> Path:
        return self.data / "passages.arrow"

    def queries(self, split: str) -> Path:
        return self.data / f"queries.{split}.arrow"

    @property
    def query_counts(self) -> Path:
        """How often each training query was asked, of those from a query log; 0 for the others."""
        return self.data / "query-counts.arrow"

    def judgements(self, split: str) -> Path:
        return self.data / f"judgements.{split}.arrow"

    @property
    def copies(self) -> Path:
        """Passages with the text of an earlier one."""
        return self.data / "copies.arrow"

    def own_documents(self, split: str) -> Path:
        """Passages that are a query of the split themselves."""
        return self.data / f"own-documents.{split}.arrow"

    def tokens(self, key: str, store: str) -> Path:
        """`store`: "passages" or "queries.<split>"; `key`: `distill.store.tokens.token_key`."""
        return self.data / "tokens" / key / f"{store}.arrow"

    def index(self, key: str) -> Path:
        """Chunks of a miner's vectors (`key`: `distill.retrieval.chunks.index_key`), or BM25's index ("bm25")."""
        return self.data / "index" / key

    @property
    def caches_of_data(self) -> tuple[Path, ...]:
        """Folders of token stores and indexes, which can be made again."""
        return self.data / "tokens", self.data / "index"

    def candidates(self, split: str) -> Path:
        return self.root / "candidates" / split

    def scores(self, teacher: str, split: str) -> Path:
        return self.root / "scores" / teacher / split

    def execution(self, teacher: str) -> Path:
        """The frozen execution record of a teacher, see `teachers.execution`."""
        return self.root / "scores" / teacher / "execution.json"

    def vectors(self, teacher: str) -> Path:
        """Vectors of the texts that a teacher scores, for teachers that encode texts separately."""
        return self.root / "scores" / teacher / "vectors"

    @property
    def caches_of_scores(self) -> tuple[Path, ...]:
        """The folder of the teachers' scores, with their execution records, plans and vectors."""
        return (self.root / "scores",)

    def labels(self, split: str = "train") -> Path:
        return self.root / "labels" / split

    def teacher(self, name: str) -> Path:
        return self._shared / "teachers" / name

    def teacher_fold(self, name: str, fold: int) -> Path:
        return self.teacher(name) / f"fold-{fold}"

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        return self.checkpoints / f"step-{step:08d}"

    def best(self, step: int) -> Path:
        """Parameters of the best step so far, by the development set."""
        return self.checkpoints / f"best-{step:08d}.pt"

    @property
    def preempted(self) -> Path:
        """Exists while training was asked to stop and has not been started again."""
        return self.root / "preempted.json"

    @property
    def replaced(self) -> Path:
        """What `--redo` moved away, one folder per time."""
        return self.root / "replaced"

    @property
    def start(self) -> Path:
        """The untrained student, saved as a checkpoint."""
        return self.root / "start"

    @property
    def model(self) -> Path:
        return self.root / "model"

    @property
    def metrics(self) -> Path:
        return self.root / "metrics"

    @property
    def train_log(self) -> Path:
        return self.logs / "train.jsonl"

    @property
    def lost_devices(self) -> Path:
        return self.logs / "lost-devices.jsonl"

    @property
    def stage_log(self) -> Path:
        return self.logs / "stages.jsonl"

    @property
    def evaluation(self) -> Path:
        return self.metrics / "evaluation.json"

    def trec_run(self, name: str) -> Path:
        return self.metrics / f"{name}.run"

    @property
    def report(self) -> Path:
        return self.root / "report.html"

    @property
    def logs(self) -> Path:
        return self.root / "logs"

    @property
    def jobs(self) -> Path:
        """One folder per launch of `distill submit`."""
        return self.root / "jobs"


def run_at(path: Path) -> RunFolder:
    """Return the run folder at a path; a further round is recognised, and uses the data of the enclosing run."""
    folder = RunFolder(path)
    outer = RunFolder(folder.root.resolve().parent)
    is_round = folder.root.resolve().name.startswith("round-") and not folder.data.exists() and outer.data.exists()
    return RunFolder(folder.root, outer.root) if is_round else folder
