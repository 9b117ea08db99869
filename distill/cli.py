"""The command line: `distill <stage> RECIPE [dotted.path=value ...]`.

Parses, calls one function, prints; no logic. Heavy libraries are imported inside the commands, so that
`distill --help` answers at once. A `DistillError` becomes one message and its exit status (2 for bad
input, 75 for a run that was preempted and should be started again).
"""

from __future__ import annotations

import json
import logging
import os
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from distill import __version__
from distill.config import Recipe
from distill.errors import DistillError, Preempted, RecipeError
from distill.recipe_file import dump_recipe, load_recipe

app = typer.Typer(
    name="distill",
    help="Distil rankers into learned sparse retrievers (SPLADE): from raw text to an evaluated checkpoint.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

RecipeFile = Annotated[Path, typer.Argument(metavar="RECIPE", help="Recipe file (YAML), e.g. configs/quickstart.yaml.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(metavar="[PATH=VALUE]...", help="Overrides, e.g. train.lr=1e-5 run_dir=/scratch/run."),
]
Limit = Annotated[
    int | None,
    typer.Option(min=1, help="Rehearse on N queries of every split, in a run folder of its own (<run>-limit-N)."),
]
Redo = Annotated[
    bool,
    typer.Option(
        "--redo",
        help="Where an earlier output was made by another recipe, set it aside and make it again, instead of stopping.",
    ),
]

Round = Annotated[
    int | None, typer.Option("--round", min=1, help="Of a recipe with rounds: which one. Without it the first.")
]


def main() -> None:
    """Entry point of the `distill` command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' bars too: ours are plain lines there
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("httpx", "urllib3", "filelock", "sentence_transformers", "transformers", "DeepSpeed", "bm25s"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for number in (signal.SIGTERM, signal.SIGUSR1):  # training handles them in its own way
        signal.signal(number, _asked_to_stop)
    try:
        app()
    except DistillError as error:
        print(f"distill: {error}", file=sys.stderr)
        raise SystemExit(error.exit_status) from None
    except KeyboardInterrupt:
        print("distill: interrupted; the same command goes on from what is finished", file=sys.stderr)
        raise SystemExit(130) from None


def _asked_to_stop(_number: int, _frame: object) -> None:
    for number in (signal.SIGTERM, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)  # what this one sets off must not be cut short by the next
    raise Preempted("asked to stop; the same command goes on from what is finished")


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit()


def _load(recipe: Path, overrides: list[str] | None, limit: int | None, round: int | None) -> Recipe:
    """The recipe of one round, on as many queries as asked for."""
    from distill.pipeline import rehearsal
    from distill.rounds import round_of

    return round_of(rehearsal(load_recipe(recipe, overrides or ()), limit), round)


def _stage_command(stage: str, about: str) -> None:
    def command(
        recipe: RecipeFile, overrides: Overrides = None, limit: Limit = None, round: Round = None, redo: Redo = False
    ) -> None:
        from distill.pipeline import run

        run(load_recipe(recipe, overrides or ()), only=stage, round=round, limit=limit, redo=redo)

    app.command(stage, help=about)(command)


for _name, _about in {
    "import": "Read the source into text stores; check it; make queries where the recipe asks.",
    "mine": "Find hard negatives for the training queries, and candidates for the others.",
    "teach": "Fine-tune the teachers that the recipe says to fine-tune.",
    "train": "Distil the labels into the student.",
    "evaluate": "Evaluate the saved student beside its teachers and BM25.",
}.items():
    _stage_command(_name, _about)


@app.command()
def score(
    recipe: RecipeFile,
    overrides: Overrides = None,
    limit: Limit = None,
    round: Round = None,
    redo: Redo = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="I/N",
            help="Without Ray, as one of N tasks of a job array: task "
            "I, from 0, scores its share; the last to end finishes.",
        ),
    ] = None,
) -> None:
    """Let every teacher score the candidates, in Ray, into Arrow shards."""
    from distill.pipeline import run, score_part

    if shard is None:
        run(load_recipe(recipe, overrides or ()), only="score", round=round, limit=limit, redo=redo)
    else:
        from ray_jobs.score import parse_part

        score_part(_load(recipe, overrides, limit, round), parse_part(shard), redo=redo)


@app.command()
def label(
    recipe: RecipeFile,
    overrides: Overrides = None,
    limit: Limit = None,
    round: Round = None,
    redo: Redo = False,
    stats: Annotated[
        bool,
        typer.Option(
            "--stats",
            help="Show each teacher's scores, how far teachers agree, and how often a negative outscores the positive.",
        ),
    ] = False,
) -> None:
    """Make training labels of the teachers' scores."""
    from distill.pipeline import run

    folder = run(load_recipe(recipe, overrides or ()), only="label", round=round, limit=limit, redo=redo)
    if stats:
        from distill.data.label_stats import label_stats
        from distill.reporting.table import print_label_stats

        print_label_stats(label_stats(_load(recipe, overrides, limit, round), folder))


@app.command("run")
def run_command(
    recipe: RecipeFile,
    overrides: Overrides = None,
    limit: Limit = None,
    redo: Redo = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what each stage would do.")] = False,
) -> None:
    """Run every stage that is not done yet, and print the final table."""
    loaded = load_recipe(recipe, overrides or ())
    if dry_run:
        from distill.plan import print_plan

        print_plan(loaded, limit=limit)
    else:
        from distill.pipeline import run

        run(loaded, limit=limit, redo=redo)


@app.command()
def status(
    recipe: RecipeFile,
    overrides: Overrides = None,
    limit: Limit = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    verify: Annotated[bool, typer.Option("--verify", help="Read every shard and compare its checksum.")] = False,
) -> None:
    """Say which stages of a recipe are done, why others must run (again), and where jobs of Slurm stand."""
    from distill.pipeline import stage_states
    from distill.status import print_status

    states = stage_states(load_recipe(recipe, overrides or ()), limit=limit, verify=verify)
    if as_json:
        print(json.dumps([state.as_dict() for state in states], indent=2))
    else:
        print_status(states)
    if any(state.damaged for state in states):
        raise typer.Exit(2)


@app.command()
def export(
    recipe: RecipeFile,
    overrides: Overrides = None,
    limit: Limit = None,
    round: Round = None,
    *,
    output: Annotated[
        Path,
        typer.Option(
            "--output",
            "-o",
            help="What to write: .jsonl, .jsonl.gz, .parquet, or a name "
            "without an ending for a folder of `datasets`; naver: .json, .json.gz; trec: "
            ".run, .run.gz.",
        ),
    ],
    format: Annotated[
        str,
        typer.Option(
            "--format",
            "-f",
            help="lists (a row a query, everything in it); triplet, "
            "n-tuple, labeled-list (sentence-transformers); flagembedding; naver; trec.",
        ),
    ] = "lists",
    teacher: Annotated[
        str | None, typer.Option("--teacher", "-t", help="Whose raw scores. Without it: the labels.")
    ] = None,
    split: Annotated[str, typer.Option("--split", help="train, dev or test.")] = "train",
    negatives: Annotated[
        int | None,
        typer.Option(
            "--negatives", "-n", min=1, help="Only the first N negatives of each query, and no query with fewer."
        ),
    ] = None,
    ids: Annotated[
        bool,
        typer.Option(
            "--ids",
            help="Columns of ids in the layouts of sentence-transformers, too; drop "
            "them before training, or they are taken for texts.",
        ),
    ] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an earlier export.")] = False,
) -> None:
    """Write scores or labels, with texts and ids, in a format that others read."""
    from distill.data.export import export_scores

    print(
        export_scores(
            _load(recipe, overrides, limit, round),
            output,
            format=format,
            teacher=teacher,
            split=split,
            negatives=negatives,
            ids=ids,
            force=force,
        )
    )


@app.command("export-index")
def export_index_command(
    checkpoint: Annotated[str, typer.Argument(help="A SPLADE checkpoint: a folder, or a name on the hub.")],
    data: Annotated[Path, typer.Argument(help="A run folder, or a BEIR folder: its passages are encoded.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="Folder to write.")],
    format: Annotated[str, typer.Option("--format", "-f", help="anserini, opensearch, qdrant, seismic.")] = "anserini",
    queries: Annotated[str | None, typer.Option("--queries", help="Queries to encode, too: train, dev, test.")] = None,
) -> None:
    """Encode a collection into the files that a search engine reads."""
    from distill.evaluation.index_files import export_index

    print(export_index(checkpoint, data, output, format=format, split=queries))


@app.command()
def plan(
    recipe: RecipeFile,
    overrides: Overrides = None,
    limit: Limit = None,
    *,
    gpus: Annotated[int, typer.Option("--gpus", "-g", min=1, help="How many devices (cpu: machines like this).")] = 1,
    gpu_type: Annotated[str, typer.Option("--gpu-type", "-t", help="h100, a100, l4, ...; cpu: this machine.")] = "h100",
    probe: Annotated[
        bool,
        typer.Option(
            "--probe/--no-probe", help="Go by the rates of a rehearsal or an earlier run, where there is one."
        ),
    ] = True,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Say what a recipe would cost: tokens, FLOPs, device-hours, wall time, disk, memory, jobs."""
    from distill.estimate.show import print_estimate
    from distill.pipeline import rehearsal

    print_estimate(
        rehearsal(load_recipe(recipe, overrides or ()), limit), gpus, gpu_type, use_probe=probe, as_json=as_json
    )


@app.command()
def submit(
    recipe: RecipeFile,
    overrides: Overrides = None,
    limit: Limit = None,
    round: Round = None,
    redo: Redo = False,
    stage: Annotated[str | None, typer.Option("--stage", "-s", help="Only this stage.")] = None,
    everything: Annotated[
        bool, typer.Option("--all", help="Every stage that is not done yet, one after the other.")
    ] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print what would be submitted.")] = False,
) -> None:
    """Submit stages to Slurm, with dependencies, as the recipe's `slurm:` section says."""
    from distill.submit import submit_jobs

    if everything == (stage is not None):
        raise RecipeError("distill submit: say --stage NAME, or --all")
    if everything and round is None:
        submit_jobs(load_recipe(recipe, overrides or ()), limit=limit, redo=redo, dry_run=dry_run)
    elif everything:
        raise RecipeError("distill submit: --all means the stages of every round; --round goes with --stage")
    else:
        submit_jobs(_load(recipe, overrides, limit, round), only=stage, redo=redo, dry_run=dry_run)


@app.command()
def cancel(recipe: RecipeFile, overrides: Overrides = None, limit: Limit = None) -> None:
    """Cancel the Slurm jobs of a recipe's run; what they have finished stays."""
    from distill.submit import cancel_jobs

    cancel_jobs(load_recipe(recipe, overrides or ()), limit=limit)


@app.command()
def show(
    recipe: RecipeFile,
    overrides: Overrides = None,
    folder: Annotated[bool, typer.Option("--folder", help="Print the run folder alone, for scripts.")] = False,
) -> None:
    """Print the recipe with every default written out."""
    loaded = load_recipe(recipe, overrides or ())
    print(loaded.folder if folder else dump_recipe(loaded), end="\n" if folder else "")


@app.command()
def init(
    data: Annotated[
        Path,
        typer.Argument(
            help="A BEIR or MS MARCO folder, a dataset saved by `datasets`, or a JSONL, CSV, TSV or Parquet file."
        ),
    ],
    output: Annotated[Path | None, typer.Option("--output", "-o", help="Where to write the recipe.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite an existing recipe.")] = False,
) -> None:
    """Look at a folder or file, say what it holds, and write a recipe for it."""
    from distill.initialise import write_recipe_for

    print(write_recipe_for(data, output, force=force))


@app.command()
def inspect(
    path: Annotated[
        str, typer.Argument(help="A checkpoint (a folder, or a name on the hub), a shard (.arrow), or a store.")
    ],
    text: Annotated[str | None, typer.Argument(help="With a checkpoint: the text to encode.")] = None,
    rows: Annotated[int, typer.Option("--rows", "-n", min=1, help="Terms, or rows of a shard, to show.")] = 20,
    query: Annotated[bool, typer.Option("--query", help="Encode the text as a query, not as a passage.")] = False,
) -> None:
    """Show a checkpoint's strongest terms for a text, or a shard's rows with their texts."""
    from distill.inspection import inspect_path

    inspect_path(path, text, rows=rows, as_query=query)


@app.command()
def search(
    checkpoint: Annotated[str, typer.Argument(help="A SPLADE checkpoint: a folder, or a name on the hub.")],
    data: Annotated[Path, typer.Argument(help="A run folder, or a BEIR folder.")],
    query: Annotated[str, typer.Argument(help="What to search for.")],
    beside: Annotated[str | None, typer.Option("--beside", help="Another checkpoint to show beside it.")] = None,
    top: Annotated[int, typer.Option("--top", "-k", min=1, help="How many passages.")] = 5,
) -> None:
    """Search passages with a checkpoint; show which terms matched."""
    from distill.inspection import search_and_print

    search_and_print(checkpoint, data, query, beside=beside, top=top)


@app.command()
def compare(
    run_a: Annotated[Path, typer.Argument(help="A run folder, or a TREC run file.")],
    run_b: Annotated[Path, typer.Argument(help="Another, judged on the same queries.")],
    metric: Annotated[
        list[str] | None,
        typer.Option("--metric", "-m", help="A measure of ir-measures, nDCG@10 where none is given; may be repeated."),
    ] = None,
    qrels: Annotated[
        Path | None, typer.Option("--qrels", help="Judgements for runs outside run folders: BEIR's or TREC's format.")
    ] = None,
    queries: Annotated[
        int, typer.Option("--queries", "-n", min=0, help="How many of the queries that differ most to show.")
    ] = 10,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Test whether one run is better than another: means, paired t-test and randomisation test, wins and losses."""
    from distill.evaluation.compare import compare as compare_runs
    from distill.reporting.comparison import print_comparison

    comparison = compare_runs(run_a, run_b, metric or ("nDCG@10",), qrels=qrels, most=queries)
    if as_json:
        print(json.dumps(comparison, indent=2, ensure_ascii=False))
    else:
        print_comparison(comparison)


@app.command()
def push(
    recipe: RecipeFile,
    overrides: Overrides = None,
    limit: Limit = None,
    *,
    repo: Annotated[str, typer.Option("--repo", help="Name on the hub, organisation/model; made if missing.")],
    private: Annotated[bool, typer.Option("--private", help="Make it visible to its owners alone.")] = False,
    revision: Annotated[
        str | None, typer.Option("--revision", help="A branch instead of main; made if missing.")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Only print the files, with their bytes.")] = False,
) -> None:
    """Share a finished run's last model on the Hugging Face hub, with its card, recipe and evaluation."""
    from distill.data.layout import RunFolder
    from distill.pipeline import rehearsal
    from distill.reporting.hub import push as push_run
    from distill.rounds import all_rounds

    last = all_rounds(rehearsal(load_recipe(recipe, overrides or ()), limit))[-1]
    print(push_run(last, RunFolder.of(last), repo, private=private, revision=revision, dry_run=dry_run))


@app.command()
def doctor() -> None:
    """Check torch and CUDA, DeepSpeed, Ray, memory, shared memory, disk, ports and the model hub."""
    from distill.doctor import examine, print_findings

    findings = examine()
    print_findings(findings)
    if any(finding.level == "fail" for finding in findings):
        raise typer.Exit(1)


if __name__ == "__main__":
    main()
