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
from distill.errors import FingerprintError, RecipeError, SlurmError
from distill.pipeline import STAGES, rehearsal, stage_states
from distill.recipe_file import dump_recipe


@dataclass(frozen=True)
class Plan:
    """One job to submit: `script` of slurm/, sbatch's options, and what stands before the recipe in its arguments."""

    stages: tuple[str, ...]
    script: str
    options: tuple[str, ...]
    log: str  # file name pattern
    arguments: tuple[str, ...] = ()


def submit_jobs(recipe: Recipe, *, only: str | None = None, limit: int | None = None, redo: bool = False,
                dry_run: bool = False) -> list[slurm.Job]:
    """Submit the stages that are not done (or the one called `only`); returns the jobs, none if all is done.

    With `dry_run` they are only printed. Raises `SlurmError`, after cancelling what this call has submitted, where
    Slurm refuses a job, and where a job for one of the stages is still waiting or running.
    """
    recipe = rehearsal(recipe, limit)
    folder = RunFolder(recipe.folder.resolve())
    recipe = recipe.model_copy(update={"run_dir": folder.root})
    plans = plan_jobs(recipe, _stages_left(recipe, only, redo))
    if not plans:
        print("everything was done already" if only is None else f"{only} is done already")
        return []
    if dry_run:
        _print_plans(recipe, folder, plans, redo)
        return []
    slurm.ask(["sbatch", "--version"])
    with locked(folder.jobs):
        before = _live_jobs(folder)
        if busy := [job for job in before if {*job.stages} & {stage for plan in plans for stage in plan.stages}]:
            raise SlurmError(f"job {busy[0].id} ({', '.join(busy[0].stages)}) of this run still waits or runs; "
                             "`distill status` shows it, `distill cancel` ends it")
        if only is not None:
            _refuse_gaps(recipe, only, before)
        launch = _new_launch(recipe, folder)
        return _submit(plans, launch, folder, [job.id for job in before], redo)


def cancel_jobs(recipe: Recipe, *, limit: int | None = None) -> list[slurm.Job]:
    """Cancel what waits or runs of a run's jobs; returns those jobs."""
    jobs = _live_jobs(RunFolder(rehearsal(recipe, limit).folder))
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
            together = plans.pop().stages if plans and plans[-1].script == "pipeline.sbatch" and \
                plans[-1].options == options else ()
            names = ",".join((*together, stage))
            plans.append(Plan((*together, stage), "pipeline.sbatch", options, f"{names.replace(',', '-')}-%j.out",
                              (names,)))
    return plans


def _score_plan(recipe: Recipe, request: SlurmJob) -> Plan:
    tasks, at_once = recipe.slurm.array, recipe.slurm.at_once
    if tasks is None:
        return Plan(("score",), "score_ray.sbatch", _options(request, request.nodes or 1, 1), "score-%j.out")
    array = f"--array=0-{tasks - 1}" + (f"%{at_once}" if at_once else "")
    return Plan(("score",), "score_array.sbatch", (array, *_options(request, 1, 1)), "score-%A_%a.out")


def _request(recipe: Recipe, stage: str) -> SlurmJob:
    """What the stage's job asks for: its own values over those of the whole section."""
    own = recipe.slurm.stages.get(stage, SlurmJob())
    fields = {name: getattr(own, name) or getattr(recipe.slurm, name) for name in SlurmJob.model_fields}
    return SlurmJob.model_validate(fields)


def _options(request: SlurmJob, nodes: int, tasks: int) -> tuple[str, ...]:
    asked = {"--partition": request.partition, "--account": request.account, "--time": request.time,
             "--gpus-per-node": request.gpus, "--cpus-per-task": request.cpus, "--mem": request.memory,
             "--signal": request.warn and f"USR1@{request.warn}"}
    return (f"--nodes={nodes}", f"--ntasks-per-node={tasks}",
            *(f"{name}={value}" for name, value in asked.items() if value is not None), *request.options)


def _stages_left(recipe: Recipe, only: str | None, redo: bool) -> list[str]:
    if only is not None and only not in (names := [stage.name for stage in STAGES]):
        raise RecipeError(f"no stage {only!r}; stages: {', '.join(names)}")
    states = [state for state in stage_states(recipe) if only in (None, state.stage) and state.state != "done"]
    for state in states:
        if state.state == "stale" and not redo:
            raise FingerprintError(f"stage {state.stage!r} must run again: {state.reason}\n"
                                   "Choose another run_dir (or name), or add --redo to set the old output aside")
    idle = {"teach"} if not any(teacher.fine_tune for teacher in recipe.teachers.values()) else set()
    if all(teacher.kind == "imported" for teacher in recipe.teachers.values()):
        idle.add("score")
    return [state.stage for state in states if state.stage not in idle]


def _refuse_gaps(recipe: Recipe, only: str, before: Sequence[slurm.Job]) -> None:
    """A stage alone needs those before it to be done, or on their way."""
    coming = {stage for job in before for stage in job.stages}
    order = [stage.name for stage in STAGES]
    for stage in _stages_left(recipe, None, redo=True):
        if order.index(stage) < order.index(only) and stage not in coming:
            raise SlurmError(f"{only} needs {stage}, which is neither done nor submitted: submit it first, or --all")


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


def _submit(plans: Sequence[Plan], launch: Path, folder: RunFolder, before: list[str], redo: bool) -> list[slurm.Job]:
    # what the submitting shell got from a job that it may itself be part of, the new jobs must not take for theirs
    environment = {name: value for name, value in os.environ.items()
                   if name == "SLURM_CONF" or not name.startswith("SLURM_")}
    environment |= {"DISTILL_SETUP": str(launch / "setup.sh"), "DISTILL_RUN": str(folder.root)}
    jobs: list[slurm.Job] = []
    for plan in plans:
        command = _command(plan, launch, [jobs[-1].id] if jobs else before, redo)
        try:
            number = slurm.ask(command, environment).split(";")[0]  # a federation adds its cluster's name
        except SlurmError as error:
            if not jobs:
                shutil.rmtree(launch)
                raise
            earlier = [job.id for job in jobs]
            slurm.ask(["scancel", *earlier])
            raise SlurmError(f"{error}\nThe jobs before it ({', '.join(earlier)}) were cancelled") from None
        jobs.append(slurm.Job(number, plan.stages, str(launch / plan.log), tuple(command)))
        slurm.record_jobs(launch, jobs)
        print(f"job {number}: {', '.join(plan.stages)}")
    print(f"logs: {launch}")
    return jobs


def _command(plan: Plan, launch: Path, after: Sequence[str], redo: bool) -> list[str]:
    name = f"distill-{'-'.join(plan.stages)}"
    log = str(launch).replace("%", "%%") + f"/{plan.log}"
    waits = [f"--dependency=afterok:{':'.join(after)}", "--kill-on-invalid-dep=yes"] if after else []
    return ["sbatch", "--parsable", f"--job-name={name}", "--export=ALL", f"--output={log}", *waits, *plan.options,
            str(_scripts() / plan.script), *plan.arguments, str(launch / "recipe.yaml"), *(["--redo"] if redo else [])]


def _scripts() -> Path:
    """slurm/ of the source tree, or where an installed wheel has put it."""
    beside = Path(__file__).resolve().parent.parent / "slurm"
    return beside if beside.is_dir() else Path(sysconfig.get_path("data")) / "share" / "splade-distill" / "slurm"


def _print_plans(recipe: Recipe, folder: RunFolder, plans: Sequence[Plan], redo: bool) -> None:
    print(f"# every job begins with\n{_setup(recipe)}")
    for number, plan in enumerate(plans):
        after = [f"<job of {plans[number - 1].stages[-1]}>"] if number else []
        print(shlex.join(_command(plan, folder.jobs / "<number>", after, redo)))
