"""`distill submit`: stages as Slurm jobs that wait for one another, on the scripts in slurm/.

What the jobs run is fixed when they are submitted: the stages that are left, and the recipe, a resolved copy of which
lies with the jobs' record in a folder of its own under the run's jobs/. Stages that follow each other on one machine
with the same resources share a job.
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

from distill import slurm
from distill.config import Recipe, SlurmJob
from distill.data.files import locked, write_atomic
from distill.data.layout import RunFolder
from distill.data.manifest import read_manifest
from distill.early import check_recipe
from distill.errors import FingerprintError, RecipeError, SlurmError
from distill.pipeline import rehearsal, stage_states
from distill.recipe_file import dump_recipe
from distill.rounds import all_rounds
from distill.stages import stages_of


@dataclass(frozen=True)
class Plan:
    """One job to submit: `script` of slurm/, sbatch's options, and what stands before the recipe in its arguments."""

    stages: tuple[str, ...]
    script: str
    options: tuple[str, ...]
    log: str  # file name pattern
    arguments: tuple[str, ...] = ()


def submit_jobs(
    recipe: Recipe, *, only: str | None = None, limit: int | None = None, redo: bool = False, dry_run: bool = False
) -> list[slurm.Job]:
    """Submit the stages that are not done, of all rounds (or the one called `only`, of the first); returns the jobs.

    With `dry_run` they are only printed. Raises `SlurmError`, after cancelling what this call has submitted, where
    Slurm refuses a job, and where a job for one of the stages is still waiting or running.
    """
    recipe = rehearsal(recipe, limit)
    recipe = recipe.model_copy(update={"run_dir": recipe.folder.resolve()})
    rounds, left = all_rounds(recipe), _stages_left(recipe, only, redo)
    for one in rounds if not recipe.slurm.python else ():  # else what the jobs can import is not known here
        check_recipe(one)
    plans = [(one, plan_jobs(one, stages)) for one, stages in zip(rounds, left, strict=True) if stages]
    if not plans:
        print("everything was done already" if only is None else f"{only} is done already")
        return []
    if dry_run:
        _print_plans(plans, redo)
        return []
    slurm.ask(["sbatch", "--version"])
    with locked(RunFolder.of(rounds[0]).jobs):
        live = [_live_jobs(RunFolder.of(one)) for one in rounds]
        for jobs, stages in zip(live, left, strict=True):
            if busy := [job for job in jobs if {*job.stages} & {*stages}]:
                raise SlurmError(
                    f"job {busy[0].id} ({', '.join(busy[0].stages)}) of this run still waits or runs; "
                    "`distill status` shows it, `distill cancel` ends it"
                )
        before = [job for jobs in live for job in jobs]
        if only is not None:
            before = _round_before(rounds[0]) + live[0]
            _refuse_gaps(rounds[0], only, before)
        return _submit(plans, [job.id for job in before], redo)


def cancel_jobs(recipe: Recipe, *, limit: int | None = None) -> list[slurm.Job]:
    """Cancel what waits or runs of a run's jobs, of all rounds; returns those jobs."""
    jobs = [job for one in all_rounds(rehearsal(recipe, limit)) for job in _live_jobs(RunFolder.of(one))]
    if jobs:
        slurm.ask(["scancel", *(job.id for job in reversed(jobs))])
    print(f"cancelled: {', '.join(job.id for job in jobs)}" if jobs else "no job of this run waits or runs")
    return jobs


def plan_jobs(recipe: Recipe, stages: Sequence[str]) -> list[Plan]:
    """The jobs that run these stages, in order."""
    plans: list[Plan] = []
    for stage in stages:
        request = _request(recipe, stage)
        if stage == "score":
            plans.append(_score_plan(recipe, request))
        elif stage == "train":
            ranks = request.gpus or recipe.train.processes or 1
            plans.append(Plan((stage,), "train.sbatch", _options(request, request.nodes or 1, ranks), "train-%j.out"))
        else:
            options = _options(request, 1, 1)
            together = (
                plans.pop().stages
                if plans and plans[-1].script == "pipeline.sbatch" and plans[-1].options == options
                else ()
            )
            names = ",".join((*together, stage))
            plans.append(
                Plan((*together, stage), "pipeline.sbatch", options, f"{names.replace(',', '-')}-%j.out", (names,))
            )
    return plans


def _score_plan(recipe: Recipe, request: SlurmJob) -> Plan:
    tasks, at_once = recipe.slurm.array, recipe.slurm.at_once
    if tasks is None:
        return Plan(("score",), "score_ray.sbatch", _options(request, request.nodes or 1, 1), "score-%j.out")
    array = f"--array=0-{tasks - 1}" + (f"%{at_once}" if at_once else "")
    return Plan(("score",), "score_array.sbatch", (array, *_options(request, 1, 1)), "score-%A_%a.out")


def _request(recipe: Recipe, stage: str) -> SlurmJob:
    """What the stage's job asks for: what its own section gives, null included, over what the whole section gives."""
    own = recipe.slurm.stages.get(stage, SlurmJob())
    fields = {
        name: getattr(own if name in own.model_fields_set else recipe.slurm, name) for name in SlurmJob.model_fields
    }
    return SlurmJob.model_validate(fields)


def _options(request: SlurmJob, nodes: int, tasks: int) -> tuple[str, ...]:
    asked = {
        "--partition": request.partition,
        "--account": request.account,
        "--time": request.time,
        "--gpus-per-node": request.gpus,
        "--cpus-per-task": request.cpus,
        "--mem": request.memory,
        "--signal": request.warn and f"USR1@{request.warn}",
    }
    return (
        f"--nodes={nodes}",
        f"--ntasks-per-node={tasks}",
        *(f"{name}={value}" for name, value in asked.items() if value is not None),
        *request.options,
    )


def _stages_left(recipe: Recipe, only: str | None, redo: bool) -> list[list[str]]:
    """For each round, the stages that are not done; with `only`, whether that one of the first is."""
    if only is not None and only not in (names := [stage.name for stage in stages_of(recipe)]):
        raise RecipeError(f"no stage {only!r}; stages: {', '.join(names)}")
    rounds = all_rounds(recipe)
    left: list[list[str]] = [[] for _ in rounds]
    for state in stage_states(recipe):
        number = state.round or 1
        if state.state == "done" or only not in (None, state.stage) or (only is not None and number > 1):
            continue
        if state.state == "stale" and not redo:
            raise FingerprintError(
                f"stage {state.stage!r} must run again: {state.reason}\n"
                "Choose another run_dir (or name), or add --redo to set the old output aside"
            )
        if state.stage not in _idle(rounds[number - 1]):
            left[number - 1].append(state.stage)
    return left


def _idle(recipe: Recipe) -> set[str]:
    """Stages that have nothing to do."""
    idle = {"teach"} if not any(teacher.fine_tune for teacher in recipe.teachers.values()) else set()
    return idle | ({"score"} if all(teacher.kind == "imported" for teacher in recipe.teachers.values()) else set())


def _refuse_gaps(recipe: Recipe, only: str, before: Sequence[slurm.Job]) -> None:
    """A stage alone needs those before it to be done, or on their way."""
    coming = {stage for job in before for stage in job.stages}
    order = [stage.name for stage in stages_of(recipe)]
    missing = [stage for stage in _stages_left(recipe, None, redo=True)[0] if order.index(stage) < order.index(only)]
    if recipe.follows is not None and read_manifest(recipe.follows.checkpoint) is None:
        missing.insert(0, "train")  # of the round before
    if gaps := [stage for stage in missing if stage not in coming]:
        raise SlurmError(f"{only} needs {gaps[0]}, which is neither done nor submitted: submit it first, or --all")


def _round_before(recipe: Recipe) -> list[slurm.Job]:
    """What waits or runs of the round that a further round comes after."""
    return [] if recipe.follows is None else _live_jobs(RunFolder(recipe.follows.checkpoint.parent))


def _live_jobs(folder: RunFolder) -> list[slurm.Job]:
    jobs = slurm.recorded_jobs(folder)
    states = slurm.job_states({job.id for job in jobs}) if jobs else {}
    return [job for job in jobs if slurm.live(states[job.id])]


def _new_launch(recipe: Recipe, folder: RunFolder) -> Path:
    """A numbered folder with what the jobs read: the recipe, and the shell lines that they begin with."""
    number = 1 + max((int(path.name) for path in folder.jobs.glob("[0-9]*")), default=0)
    launch = folder.jobs / str(number)
    with write_atomic(launch / "recipe.yaml") as temporary:
        temporary.write_text(dump_recipe(recipe), encoding="utf-8")
    with write_atomic(launch / "setup.sh") as temporary:
        temporary.write_text(_setup(recipe), encoding="utf-8")
    return launch


def _setup(recipe: Recipe) -> str:
    python = recipe.slurm.python or (sys.executable,)
    return "\n".join((*recipe.slurm.setup, f"python=({shlex.join(python)})", ""))


def _submit(plans: Sequence[tuple[Recipe, list[Plan]]], before: list[str], redo: bool) -> list[slurm.Job]:
    """Submit the jobs of all rounds, each after the one before it."""
    jobs: list[slurm.Job] = []
    for recipe, jobs_of_round in plans:
        folder = RunFolder.of(recipe)
        launch = _new_launch(recipe, folder)
        # what the submitting shell got from a job that it may itself be part of, the new jobs must not take for theirs
        environment = {
            name: value for name, value in os.environ.items() if name == "SLURM_CONF" or not name.startswith("SLURM_")
        }
        environment |= {"DISTILL_SETUP": str(launch / "setup.sh"), "DISTILL_RUN": str(folder.root)}
        for place, plan in enumerate(jobs_of_round):
            command = _command(plan, launch, [jobs[-1].id] if jobs else before, redo)
            try:
                number = slurm.ask(command, environment).split(";")[0]  # a federation adds its cluster's name
            except SlurmError as error:
                if place == 0:
                    shutil.rmtree(launch)
                if not jobs:
                    raise
                earlier = [job.id for job in jobs]
                slurm.ask(["scancel", *earlier])
                raise SlurmError(f"{error}\nThe jobs before it ({', '.join(earlier)}) were cancelled") from None
            jobs.append(slurm.Job(number, plan.stages, str(launch / plan.log), tuple(command)))
            slurm.record_jobs(launch, jobs[-place - 1 :])
            print(f"job {number}: {', '.join(plan.stages)}" + (f" ({recipe.name})" if recipe.follows else ""))
        print(f"logs: {launch}")
    return jobs


def _command(plan: Plan, launch: Path, after: Sequence[str], redo: bool) -> list[str]:
    name = f"distill-{'-'.join(plan.stages)}"
    log = str(launch).replace("%", "%%") + f"/{plan.log}"
    waits = [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
    return [
        "sbatch",
        "--parsable",
        f"--job-name={name}",
        "--export=ALL",
        f"--output={log}",
        *waits,
        *plan.options,
        str(_scripts() / plan.script),
        *plan.arguments,
        str(launch / "recipe.yaml"),
        *(["--redo"] if redo else []),
    ]


def _scripts() -> Path:
    """slurm/ of the source tree, or where an installed wheel has put it."""
    beside = Path(__file__).resolve().parent.parent / "slurm"
    return beside if beside.is_dir() else Path(sysconfig.get_path("data")) / "share" / "splade-distill" / "slurm"


def _print_plans(plans: Sequence[tuple[Recipe, list[Plan]]], redo: bool) -> None:
    print(f"# every job begins with\n{_setup(plans[0][0])}")
    after: list[str] = []
    for recipe, jobs in plans:
        for plan in jobs:
            print(shlex.join(_command(plan, RunFolder.of(recipe).jobs / "<number>", after, redo)))
            after = [f"<job of {plan.stages[-1]}>"]
