"""`cluster` and `slurm`: the machines that a run gets."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field, field_serializer, model_validator

from distill.config.base import Positive, Section


class Cluster(Section):
    """Ray: one that is started on this machine (address None), or one that runs.

    `auto` is the one that RAY_ADDRESS names, or that runs on this machine; its machines must have this program
    installed. Those of any other address are sent its code.
    """

    address: str | None = None
    nodes: Positive | None = None  # with an address: machines to wait for; fewer are an error
    cpus: Positive | None = None  # without an address: None is all of this machine's
    object_store_gib: Annotated[float, Field(gt=0)] = 0.5  # per machine, where we start Ray


class SlurmJob(Section):
    """What a job asks Slurm for; None leaves it to the cluster's own default."""

    partition: str | None = None
    account: str | None = None
    time: str | None = None  # as sbatch takes it: minutes, HH:MM:SS, D-HH:MM:SS
    nodes: Positive | None = None  # more than one for `score` (Ray) and `train`
    gpus: Positive | None = None  # per machine; training runs a process on each
    cpus: Positive | None = None  # per process
    memory: str | None = None  # per machine, e.g. 64G
    warn: Positive | None = None  # seconds from the signal to stop to the time limit; None: as the script says
    options: tuple[Annotated[str, Field(pattern=r"^-")], ...] = ()  # more options of sbatch, e.g. --constraint=h100


Stage = Literal["import", "mine", "teach", "score", "label", "train", "evaluate"]


class Slurm(SlurmJob):
    """`distill submit`: what its jobs ask for, and how they find this program."""

    stages: dict[Stage, SlurmJob] = {}  # what the job of a stage asks for instead; null (not to ask) and [] count
    array: Positive | None = None  # score in so many tasks of a job array; None: in one job, with Ray on its machines
    at_once: Positive | None = None  # tasks of the array that may run together
    setup: tuple[str, ...] = ()  # shell lines that every job begins with: modules, environments, variables
    python: tuple[str, ...] = ()  # what runs Python, e.g. in a container; (): the interpreter that submits

    @model_validator(mode="after")
    def _tasks_are_of_an_array(self) -> Slurm:
        if self.at_once is not None and self.array is None:
            raise ValueError("at_once has no effect without array")
        return self

    @model_validator(mode="after")
    def _machines_are_of_use(self) -> Slurm:
        for stage, job in self.stages.items():
            if (job.nodes or 1) > 1 and (stage not in ("score", "train") or (stage == "score" and self.array)):
                why = (
                    "with `array` each task has one machine"
                    if stage == "score"
                    else "only score (without `array`) and train run on several machines"
                )
                raise ValueError(f"stages.{stage}.nodes is {job.nodes}, but {why}; leave it out")
        return self

    @field_serializer("stages")
    def _only_what_is_given(self, stages: dict[Stage, SlurmJob]) -> dict[str, Any]:
        """Without what a stage doesn't say: a null that is written out would count."""
        return {stage: job.model_dump(mode="json", exclude_unset=True) for stage, job in stages.items()}
