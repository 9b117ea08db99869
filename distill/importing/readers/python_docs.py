"""The documentation of the Python standard library as a retrieval collection: real text that needs no download.

Docstrings are parsed by `ast` from the sources of the running interpreter; nothing is imported or run. The query is a
docstring's summary (its first paragraph), the passage is its body under the object's qualified name, so the answer must
be found without the words of the summary. All queries of a module are in one split, so nothing leaks.
"""

from __future__ import annotations

import ast
import random
import sysconfig
import warnings
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa

from distill import config
from distill.errors import DataError
from distill.importing.readers.base import Collection

# Programs and tests installed beside the library; the distribution decides which.
NOT_THE_LIBRARY = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "turtledemo"}
QUERY_WORDS = range(3, 41)  # shorter summaries are headings ("Constructor."), longer ones do not resemble queries
LARGEST_MODULE = 0.2  # greatest share of a split's queries from one module


@dataclass(frozen=True)
class Docstring:
    """`name`: qualified, e.g. `http.cookiejar.CookieJar.add_cookie_header`; `module`: the unit of splitting."""

    name: str
    module: str
    summary: str
    body: str


def python_docs(source: config.PythonDocs, seed: int) -> Collection:
    """Read the library: passages with a body of at least `source.min_words` words, and queries with one judgement each.

    Of passages with the same body (copied between classes) the first is kept. A summary of 3 to 40 words is a query if
    no other docstring has the same one, which would make its answer ambiguous. Passages without a query stay in the
    collection. A query has the id of its passage. With `source.documents_only` only the test split has queries, the
    same as without it.

    Raises `DataError` if the library's sources are missing, or the splits need more than half of the queries.
    """
    root = Path(sysconfig.get_path("stdlib"))
    docstrings = list(read_docstrings(root))
    passages = _without_copies([doc for doc in docstrings if len(doc.body.split()) >= source.min_words])
    uses = Counter(_key(doc.summary) for doc in docstrings)
    queries = [doc for doc in passages if len(doc.summary.split()) in QUERY_WORDS and uses[_key(doc.summary)] == 1]
    if source.test_queries + source.dev_queries > len(queries) // 2:
        raise DataError(
            f"the standard library gives {len(queries)} queries (bodies of at least {source.min_words} words), but "
            f"test_queries and dev_queries ask for {source.test_queries} + {source.dev_queries}, more than half of "
            "them. Lower both, or install the library's .py files if they are missing",
            path=root,
        )
    splits = split_by_module(queries, {"test": source.test_queries, "dev": source.dev_queries}, seed)
    if source.documents_only:
        splits = {"test": splits["test"]}
    return Collection(
        passages=iter(
            [
                _strings(
                    id=[doc.name for doc in passages],
                    title=[doc.name for doc in passages],
                    text=[doc.body for doc in passages],
                )
            ]
        ),
        queries={
            split: iter([_strings(id=[doc.name for doc in docs], text=[doc.summary for doc in docs])])
            for split, docs in splits.items()
        },
        judgements={split: iter([_judgements([doc.name for doc in docs])]) for split, docs in splits.items()},
    )


def read_docstrings(root: Path) -> Iterator[Docstring]:
    """Yield the docstrings below `root` that have a body, in the order of paths; repeated names end in `#2`, `#3`..."""
    uses: Counter[str] = Counter()
    for path in _sources(root):
        parts = path.relative_to(root).with_suffix("").parts
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # invalid escapes in old sources
                tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            continue  # templates and samples of bad syntax in some distributions
        name = ".".join(parts[:-1] if parts[-1] == "__init__" else parts)
        for qualified, docstring in _docstrings(tree, name):
            summary, _, body = docstring.partition("\n\n")
            if body.strip():
                uses[qualified] += 1
                number = uses[qualified]  # 2 for a property's setter, or the second branch of an `if`
                yield Docstring(
                    qualified if number == 1 else f"{qualified}#{number}",
                    _module(parts[0]),
                    " ".join(summary.split()),
                    body.strip(),
                )


def split_by_module(docs: list[Docstring], sizes: dict[str, int], seed: int) -> dict[str, list[Docstring]]:
    """Assign whole modules to splits: first to those of `sizes` (split -> number of queries), the rest to `train`.

    Modules are shuffled by `seed`. A module with more queries than a split has room for, or than a fifth of the split's
    size, goes to the next split, so that no single module decides a result.
    """
    modules: dict[str, list[Docstring]] = {}
    for doc in docs:
        modules.setdefault(doc.module, []).append(doc)
    order = sorted(modules)
    random.Random(seed).shuffle(order)
    splits: dict[str, list[Docstring]] = {"train": [], **{split: [] for split in sizes}}
    for module in order:
        group = modules[module]
        room = (
            split
            for split, size in sizes.items()
            if len(group) <= min(size - len(splits[split]), max(1, int(LARGEST_MODULE * size)))
        )
        splits[next(room, "train")].extend(group)
    return splits


def _sources(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.iterdir()):
        if path.is_dir() and path.name not in NOT_THE_LIBRARY:
            yield from _sources(path)
        elif path.suffix == ".py":
            yield path


def _docstrings(node: ast.AST, name: str) -> Iterator[tuple[str, str]]:
    if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
        docstring = ast.get_docstring(node)  # cleaned of its indentation
        if docstring:
            yield name, docstring
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            continue
        inner = (
            f"{name}.{child.name}" if isinstance(child, (ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) else name
        )
        yield from _docstrings(child, inner)


def _module(top: str) -> str:
    # `_pydecimal`, `_pyio` and `_strptime` share docstrings with `decimal`, `io` and `strptime`
    return top.removeprefix("_py").lstrip("_") or top


def _key(text: str) -> str:
    return " ".join(text.lower().split())


def _without_copies(docs: list[Docstring]) -> list[Docstring]:
    first: dict[str, Docstring] = {}
    for doc in docs:
        first.setdefault(_key(doc.body), doc)
    return list(first.values())


def _strings(**columns: list[str]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict({name: pa.array(column, pa.large_string()) for name, column in columns.items()})


def _judgements(ids: list[str]) -> pa.RecordBatch:
    return pa.RecordBatch.from_pydict(
        {
            "query_id": pa.array(ids, pa.large_string()),
            "passage_id": pa.array(ids, pa.large_string()),
            "grade": pa.array([1] * len(ids), pa.int32()),
        }
    )
