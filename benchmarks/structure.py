"""Count properties of the code's structure from its syntax trees: `python benchmarks/structure.py [CHECKOUT]`."""

from __future__ import annotations

import ast
import json
import sys
from pathlib import Path

PACKAGES = ("distill", "teachers", "ray_jobs")
STAGES = {"import", "mine", "teach", "score", "label", "train", "evaluate"}
PROTOCOL = {"check_same", "claim", "claimed"}  # functions that a hand-written "is it done?" calls


def main() -> None:
    root = Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parents[1])
    files = {path: path.read_text(encoding="utf-8") for package in PACKAGES for path in (root / package).rglob("*.py")}
    trees = {path: ast.parse(text) for path, text in files.items()}
    functions = [
        (path, node)
        for path, tree in trees.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    ]
    longest = max(functions, key=lambda item: item[1].end_lineno - item[1].lineno)
    longest_file = max(files, key=lambda path: len(files[path].splitlines()))
    print(
        json.dumps(
            {
                "product lines": sum(len(text.splitlines()) for text in files.values()),
                "files that name a stage": sum(bool(_strings(tree) & STAGES) for tree in trees.values()),
                "files that name three stages or more": sum(
                    len(_strings(tree) & STAGES) > 2 for tree in trees.values()
                ),
                "done-protocols": len({path for path, tree in trees.items() if _calls(tree) & PROTOCOL}),
                "loose files at the top of distill": len([path for path in files if path.parent == root / "distill"]),
                "rooms": len({path.parent for path in files}),
                "longest file": f"{len(files[longest_file].splitlines())} {longest_file.relative_to(root)}",
                "longest function": f"{longest[1].end_lineno - longest[1].lineno + 1} {longest[1].name}",
                "functions": len(functions),
                "functions with more than six parameters": sum(_parameters(node) > 6 for _, node in functions),
                "functions that take (recipe, folder)": sum(
                    {"recipe", "folder"} <= _names(node) for _, node in functions
                ),
                "imports inside functions": sum(
                    isinstance(inner, ast.Import | ast.ImportFrom) for _, node in functions for inner in ast.walk(node)
                ),
            },
            indent=2,
        )
    )


def _strings(tree: ast.AST) -> set[str]:
    """String constants of a module (docstrings included, which equal no name of a stage)."""
    return {node.value for node in ast.walk(tree) if isinstance(node, ast.Constant) and isinstance(node.value, str)}


def _calls(tree: ast.AST) -> set[str]:
    return {
        node.func.id if isinstance(node.func, ast.Name) else getattr(node.func, "attr", "")
        for node in ast.walk(tree)
        if isinstance(node, ast.Call)
    }


def _names(node: ast.FunctionDef | ast.AsyncFunctionDef) -> set[str]:
    return {argument.arg for argument in (*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs)}


def _parameters(node: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    return len(_names(node) - {"self", "cls"})


if __name__ == "__main__":
    main()
