"""`cluster` and `slurm`: the machines of a run."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_serializer, model_validator

from distill.config.base import Positive, Section


class Cluster(Section):
    """The Ray cluster that scoring and sharded mining use: a new one on this machine, or a running one."""

    address: str | None = None
    """Running cluster to join, e.g. 10.0.0.5:6379; its workers receive this program's code. `auto`: the cluster named
    by RAY_ADDRESS or running on this machine, where the program must be installed. null: start Ray on this machine."""
    nodes: Positive | None = None
    """With an address: the number of machines to wait for; fewer are an error. null: do not wait."""
    cpus: Positive | None = None
    """Without an address: the number of CPU cores that Ray uses. null: all cores of this machine."""
    object_store_gib: Annotated[float, Field(gt=0)] = 0.5
    """Ray's object store in GiB per machine, where this program starts Ray."""


class SlurmJob(Section):
    """Resources requested from Slurm; null leaves a resource to the cluster's default."""

    partition: str | None = None
    """Partition (`--partition`)."""
    account: str | None = None
    """Account to charge (`--account`)."""
    time: str | None = None
    """Time limit in sbatch's notation: minutes, HH:MM:SS or D-HH:MM:SS."""
    nodes: Positive | None = None
    """Number of machines; more than one for `score` (with Ray) and `train` only."""
    gpus: Positive | None = None
    """GPUs per machine; training runs one process on each."""
    cpus: Positive | None = None
    """CPU cores per process."""
    memory: str | None = None
    """Memory per machine, e.g. 64G."""
    warn: Positive | None = None
    """Seconds before the time limit at which Slurm signals the job to stop. null: as the job script says."""
    options: tuple[Annotated[str, Field(pattern=r"^-")], ...] = ()
    """Further options of sbatch, e.g. --constraint=h100."""


# the names in `distill.pipeline.registry`, for the recipe's schema; a test holds them equal
StageName = Literal["import", "mine", "teach", "score", "label", "train", "evaluate"]


class Slurm(SlurmJob):
    """What `distill submit` requests for its jobs, and how the jobs start this program."""

    stages: dict[StageName, SlurmJob] = {}
    """Requests per stage, which override those above; an explicit null (do not request) or [] overrides as well."""
    array: Positive | None = None
    """Number of tasks of the job array that scores. null: one job, with Ray on its machines."""
    max_parallel: Positive | None = None
    """Number of array tasks that may run at the same time. null: no limit."""
    setup: tuple[str, ...] = ()
    """Shell lines at the start of every job: modules, environments, variables."""
    python: tuple[str, ...] = ()
    """Command that runs Python, e.g. in a container. []: the interpreter that submits."""

    @model_validator(mode="after")
    def _max_parallel_needs_an_array(self) -> Slurm:
        if self.max_parallel is not None and self.array is None:
            raise ValueError("max_parallel has no effect without array")
        return self

    @model_validator(mode="after")
    def _stages_use_their_nodes(self) -> Slurm:
        for stage, job in self.stages.items():
            if (job.nodes or 1) > 1 and (stage not in ("score", "train") or (stage == "score" and self.array)):
                why = (
                    "each task of an `array` runs on one machine"
                    if stage == "score"
                    else "only score (without `array`) and train run on several machines"
                )
                raise ValueError(f"stages.{stage}.nodes is {job.nodes}, but {why}; leave it out")
        return self

    @field_serializer("stages")
    def _only_set_fields(self, stages: dict[StageName, SlurmJob]) -> dict[str, Any]:
        """Leave out fields that a stage does not set: a written null would override."""
        return {stage: job.model_dump(mode="json", exclude_unset=True) for stage, job in stages.items()}
