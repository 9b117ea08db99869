"""The `distill` command. A `DistillError` is printed as one message and ends with its exit status (2: bad input, 75:
preempted, should be started again).

Commands parse their arguments, call one function and print; they hold no logic. They import heavy libraries inside the
function, so that `distill --help` is instant.
"""

from __future__ import annotations

import codecs
import io
import logging
import os
import sys
from typing import Annotated, NoReturn

import typer

from distill import __version__
from distill.cli import benchmark, cluster, data, doctor, results, stages
from distill.cli.text import printable
from distill.errors import DistillError, Stop
from distill.run import signals

app = typer.Typer(
    name="distill",
    help="Distil rankers into learned sparse retrievers (SPLADE): from raw text to an evaluated checkpoint.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def main() -> None:
    """Entry point of the `distill` command."""
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "true")
    if not sys.stderr.isatty():
        os.environ.setdefault("HF_HUB_DISABLE_PROGRESS_BARS", "1")  # transformers' as well; ours are plain lines there
    logging.basicConfig(level=logging.INFO, format="%(message)s", stream=sys.stderr)
    for name in ("httpx", "urllib3", "filelock", "sentence_transformers", "transformers", "DeepSpeed", "bm25s"):
        logging.getLogger(name).setLevel(logging.WARNING)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="plain")
    signals.install()  # training installs its own handlers
    try:
        app()
    except Exception as error:
        # foreign code may turn the exception of a stop signal into one of its own
        known = signals.stopping() or error
        if not isinstance(known, DistillError | Stop):
            raise
        _end(known)
    except Stop as stop:
        _end(stop)
    finally:
        signals.ignore()  # the work is done or given up: a signal during the interpreter's end must not change that


def _end(error: DistillError | Stop) -> NoReturn:
    print(f"distill: {printable(str(error))}", file=sys.stderr)
    raise SystemExit(error.exit_status) from None


def _plain(error: UnicodeError) -> tuple[str, int]:
    """Replace characters that an output in Latin-1 or ASCII lacks: ours by similar ones, others by a question mark."""
    assert isinstance(error, UnicodeEncodeError)
    lacking = error.object[error.start : error.end]
    return "".join(_SIMILAR.get(character, "?") for character in lacking), error.end


_SIMILAR = {"–": "-", "−": "-", "—": "-", "…": "...", "×": "x", "→": "->", "≥": ">=", "≤": "<=", "·": "*", "─": "-"}
codecs.register_error("plain", _plain)


@app.callback(invoke_without_command=True)
def _root(version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False) -> None:
    if version:
        print(__version__)
        raise typer.Exit()


for group in (stages, data, results, benchmark, cluster, doctor):
    group.add_commands(app)
