"""`distill submit`: the stages as Slurm jobs with dependencies, on the scripts in slurm/.

Submission fixes what the jobs run: the stages that are not done, and the recipe, whose resolved copy lies with the
record of the jobs in a numbered folder under the run's jobs/. Consecutive stages on one machine with the same resources
share a job.
"""

from __future__ import annotations

import os
import shlex
import shutil
import sys
import sysconfig
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from distill.config import Recipe, SlurmJob
from distill.errors import DistillError, FingerprintError, SlurmError
from distill.pipeline import slurm
from distill.pipeline.preflight import check_recipe
from distill.pipeline.registry import stage_of, stages_of
from distill.pipeline.status import stage_states
from distill.recipe.expand import number_of, open_runs, rehearsal
from distill.recipe.load import dump_recipe
from distill.run.files import locked, write_atomic
from distill.run.layout import RunFolder
from distill.run.manifest import read_manifest
from distill.run.run import Run
from distill.run.stage import BatchJob, Stage


@dataclass(frozen=True)
class Plan:
    """A job to submit: its script in slurm/, sbatch's options, and the script's arguments before the recipe."""

    stages: tuple[str, ...]
    script: str
    options: tuple[str, ...]
    log: str  # file name pattern
    arguments: tuple[str, ...] = ()


def submit_jobs(
    recipe: Recipe,
    *,
    only: str | None = None,
    round: int | None = None,
    limit: int | None = None,
    redo: bool = False,
    dry_run: bool = False,
) -> list[slurm.Job]:
    """Submit the stages of all rounds that are not done, or stage `only` of one round; returns the jobs.

    `dry_run` only prints them. Raises `SlurmError` if Slurm refuses a job (after cancelling those that this call has
    submitted), or if a job for one of the stages is still waiting or running.
    """
    recipe = rehearsal(recipe, limit)
    recipe = recipe.model_copy(update={"run_dir": recipe.folder.resolve()})
    runs = open_runs(recipe)
    if only is not None:
        runs = [runs[number_of(runs, round) - 1]]
        stage_of(runs[0], only)
    pending = _pending_stages(runs, redo, only)
    for run in runs if not recipe.slurm.python else ():  # the packages of another Python are not known here
        check_recipe(run)
    plans = [(run, plan_jobs(run, stages)) for run, stages in zip(runs, pending, strict=True) if stages]
    if not plans:
        print("everything was done already" if only is None else f"{only} is done already")
        return []
    if dry_run:
        _print_plans(plans, redo)
        return []
    slurm.ask(["sbatch", "--version"])
    with locked(runs[0].folder.jobs):
        live = [_live_jobs(run.folder) for run in runs]
        for jobs, stages in zip(live, pending, strict=True):
            if busy := [job for job in jobs if {*job.stages} & {stage.name for stage in stages}]:
                raise SlurmError(
                    f"job {busy[0].id} ({', '.join(busy[0].stages)}) of this run is still waiting or running; "
                    "see `distill status`, or end it with `distill cancel`"
                )
        before = [job for jobs in live for job in jobs]
        if only is not None:
            before = _previous_rounds_jobs(runs[0]) + live[0]
            _refuse_gaps(runs[0], only, before)
        return _submit(plans, [job.id for job in before], redo)


def cancel_jobs(recipe: Recipe, *, limit: int | None = None) -> list[slurm.Job]:
    """Cancel a run's waiting and running jobs, of all rounds; returns them."""
    jobs = [job for run in open_runs(recipe, limit) for job in _live_jobs(run.folder)]
    if jobs:
        slurm.ask(["scancel", *(job.id for job in reversed(jobs))])
    print(f"cancelled: {', '.join(job.id for job in jobs)}" if jobs else "no job of this run is waiting or running")
    return jobs


def plan_jobs(run: Run, stages: Sequence[Stage]) -> list[Plan]:
    """The jobs for these stages, in order."""
    shared = BatchJob().script
    plans: list[Plan] = []
    for stage in stages:
        request = _request(run.recipe, stage.name)
        job = stage.job(run, request)
        options = _options(request, job)
        if job.script != shared:
            plans.append(Plan((stage.name,), job.script, options, job.log.format(stage=stage.name)))
            continue
        earlier: tuple[str, ...] = ()
        if plans and plans[-1].script == shared and plans[-1].options == options:
            earlier = plans.pop().stages
        names = (*earlier, stage.name)
        plans.append(Plan(names, shared, options, job.log.format(stage="-".join(names)), (",".join(names),)))
    return plans


def has_nothing_to_do(stage: Stage, run: Run) -> bool:
    """Whether a stage writes nothing for this recipe; False if that is not known before earlier stages have run."""
    try:
        return not stage.outputs(run)
    except (DistillError, OSError):
        return False


def _request(recipe: Recipe, stage: str) -> SlurmJob:
    """Resources of a stage's job: the fields set in its own section, null included, over those of `slurm`."""
    sections: dict[str, SlurmJob] = {str(name): section for name, section in recipe.slurm.stages.items()}
    section = sections.get(stage, SlurmJob())
    fields = {
        name: getattr(section if name in section.model_fields_set else recipe.slurm, name)
        for name in SlurmJob.model_fields
    }
    return SlurmJob.model_validate(fields)


def _options(request: SlurmJob, job: BatchJob) -> tuple[str, ...]:
    flags = {
        "--partition": request.partition,
        "--account": request.account,
        "--time": request.time,
        "--gpus-per-node": request.gpus,
        "--cpus-per-task": request.cpus,
        "--mem": request.memory,
        "--signal": request.warn and f"USR1@{request.warn}",
    }
    return (
        *([f"--array={job.array}"] if job.array else []),
        f"--nodes={job.nodes}",
        f"--ntasks-per-node={job.tasks}",
        *(f"{name}={value}" for name, value in flags.items() if value is not None),
        *request.options,
    )


def _pending_stages(runs: Sequence[Run], redo: bool, only: str | None = None) -> list[list[Stage]]:
    """The stages of each round that are not done and have something to do, or only stage `only` of those."""
    pending: list[list[Stage]] = [[] for _ in runs]
    for state in stage_states(runs):
        number = (state.round or 1) - 1
        stage = stage_of(runs[number], state.stage)
        if only not in (None, stage.name):
            continue
        if state.state == "stale" and not redo:
            raise FingerprintError(
                f"stage {state.stage!r} must run again: {state.reason}\n"
                "Choose another run_dir (or name), or add --redo to set the old output aside"
            )
        if state.state != "done" and not has_nothing_to_do(stage, runs[number]):
            pending[number].append(stage)
    return pending


def _refuse_gaps(run: Run, only: str, before: Sequence[slurm.Job]) -> None:
    """Raise `SlurmError` unless the stages before `only` are done or submitted."""
    submitted = {stage for job in before for stage in job.stages}
    order = [stage.name for stage in stages_of(run)]
    pending = _pending_stages([run], redo=True)[0]
    missing = [stage.name for stage in pending if order.index(stage.name) < order.index(only)]
    if run.recipe.follows is not None and read_manifest(run.recipe.follows.checkpoint) is None:
        missing.insert(0, "train")  # of the previous round
    if gaps := [stage for stage in missing if stage not in submitted]:
        raise SlurmError(f"{only} needs {gaps[0]}, which is neither done nor submitted; submit it first, or use --all")


def _previous_rounds_jobs(run: Run) -> list[slurm.Job]:
    """The waiting and running jobs of the previous round."""
    follows = run.recipe.follows
    return [] if follows is None else _live_jobs(RunFolder(follows.checkpoint.parent))


def _live_jobs(folder: RunFolder) -> list[slurm.Job]:
    jobs = slurm.recorded_jobs(folder)
    states = slurm.job_states({job.id for job in jobs}) if jobs else {}
    return [job for job in jobs if slurm.live(states[job.id])]


def _new_launch(run: Run) -> Path:
    """Create a numbered folder with the jobs' inputs: the recipe, and the shell lines they start with."""
    number = 1 + max((int(path.name) for path in run.folder.jobs.glob("[0-9]*")), default=0)
    launch = run.folder.jobs / str(number)
    with write_atomic(launch / "recipe.yaml") as temporary:
        temporary.write_text(dump_recipe(run.recipe), encoding="utf-8")
    with write_atomic(launch / "setup.sh") as temporary:
        temporary.write_text(_setup(run.recipe), encoding="utf-8")
    return launch


def _setup(recipe: Recipe) -> str:
    python = recipe.slurm.python or (sys.executable,)
    return "\n".join((*recipe.slurm.setup, f"python=({shlex.join(python)})", ""))


def _submit(plans: Sequence[tuple[Run, list[Plan]]], before: list[str], redo: bool) -> list[slurm.Job]:
    """Submit the jobs of all rounds, each dependent on the one before it."""
    jobs: list[slurm.Job] = []
    for run, jobs_of_round in plans:
        launch = _new_launch(run)
        # the submitting shell may itself belong to a job, whose variables the new jobs must not inherit
        environment = {
            name: value for name, value in os.environ.items() if name == "SLURM_CONF" or not name.startswith("SLURM_")
        }
        environment |= {"DISTILL_SETUP": str(launch / "setup.sh"), "DISTILL_RUN": str(run.folder.root)}
        for index, plan in enumerate(jobs_of_round):
            command = _command(plan, launch, [jobs[-1].id] if jobs else before, redo)
            try:
                number = slurm.ask(command, environment).split(";")[0]  # a federation appends its cluster's name
            except SlurmError as error:
                if index == 0:
                    shutil.rmtree(launch)
                if not jobs:
                    raise
                earlier = [job.id for job in jobs]
                slurm.ask(["scancel", *earlier])
                raise SlurmError(f"{error}\nThe jobs before it ({', '.join(earlier)}) were cancelled") from None
            jobs.append(slurm.Job(number, plan.stages, str(launch / plan.log), tuple(command)))
            slurm.record_jobs(launch, jobs[-index - 1 :])
            print(f"job {number}: {', '.join(plan.stages)}" + (f" ({run.recipe.name})" if run.recipe.follows else ""))
        print(f"logs: {launch}")
    return jobs


def _command(plan: Plan, launch: Path, after: Sequence[str], redo: bool) -> list[str]:
    name = f"distill-{'-'.join(plan.stages)}"
    log = str(launch).replace("%", "%%") + f"/{plan.log}"
    dependency = [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
    return [
        "sbatch",
        "--parsable",
        f"--job-name={name}",
        "--export=ALL",
        f"--output={log}",
        *dependency,
        *plan.options,
        str(_scripts() / plan.script),
        *plan.arguments,
        str(launch / "recipe.yaml"),
        *(["--redo"] if redo else []),
    ]


def _scripts() -> Path:
    """The slurm/ folder of the source tree, or of an installed wheel."""
    source = Path(__file__).resolve().parents[2] / "slurm"
    return source if source.is_dir() else Path(sysconfig.get_path("data")) / "share" / "splade-distill" / "slurm"


def _print_plans(plans: Sequence[tuple[Run, list[Plan]]], redo: bool) -> None:
    print(f"# every job starts with\n{_setup(plans[0][0].recipe)}")
    after: list[str] = []
    for run, jobs in plans:
        for plan in jobs:
            print(shlex.join(_command(plan, run.folder.jobs / "<number>", after, redo)))
            after = [f"<job of {plan.stages[-1]}>"]
