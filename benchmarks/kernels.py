"""Compile the Triton kernels of head and search ahead of time, for GPUs that need not be there: what each one takes.

Per kernel, architecture and dtype one JSON line: registers per thread, bytes of stack (spills), shared memory, and
numbers of machine instructions: all, of the matrix units, after the last of these (the epilogue), shuffles, barriers.
Usage: python benchmarks/kernels.py [--architectures 80 89 90 100 120]
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from distill.retrieval import cuda_search
from distill.student.kernels import cuda

ARCHITECTURES = (80, 89, 90, 100, 120)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
_PRODUCT = re.compile(r"\b(HGMMA|HMMA|UTC\w*MMA|FFMA2?)\b")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--architectures", type=int, nargs="+", default=ARCHITECTURES)
    for architecture in parser.parse_args().architectures:
        for name, dtype in DTYPES.items():
            for kernel, binary in compiled(architecture, dtype):
                line = {"kernel": kernel, "sm": architecture, "dtype": name, **usage(binary)}
                print(json.dumps(line), flush=True)
        for kernel, binary in compiled_search(architecture):
            print(json.dumps({"kernel": kernel, "sm": architecture, "dtype": "fp32", **usage(binary)}), flush=True)


def compiled(architecture: int, dtype: torch.dtype) -> Iterator[tuple[str, Any]]:
    """Compile every kernel as it is launched for operands of a dtype; yields its name and Triton's compiled kernel."""
    operand = next(name for name, each in DTYPES.items() if each == dtype)
    tiles = cuda.forward_tiles(dtype)
    options = {key: tiles.pop(key) for key in ("num_warps", "num_stages")}
    numbers = dict.fromkeys(("tokens", "vocabulary", "width", "size"), "i32")
    forward = {"hidden": operand, "rows": "i64", "text": "i32", "weight": operand, "bias": "fp32", "keys": "i64"}
    sums = dict.fromkeys(("coefficients", "out", "sums", "spare", "spare_sums"), "fp32")
    places = dict.fromkeys(("source", "starts", "first", "spare_first", "target", "split"), "i64")
    for kernel, pointers, constants, launch in (
        (cuda.max_tiles, forward, {"HAS_BIAS": True, **tiles}, options),
        (
            cuda.sum_pieces,
            {**sums, **places, "table": operand},
            {"COLUMNS": 512, "ENTRIES": 8, "LENGTH": cuda.PIECE},
            {"num_warps": 4},
        ),
        (cuda.join_pieces, {**sums, **places}, {"COLUMNS": 512}, {"num_warps": 4}),
    ):
        yield _compile(architecture, kernel, pointers, numbers, constants, launch)


def compiled_search(architecture: int) -> Iterator[tuple[str, Any]]:
    """Compile the kernel of the search as it is launched."""
    pointers = {
        **dict.fromkeys(("weight", "factors", "threshold", "sums"), "fp32"),
        **dict.fromkeys(("table", "skipped", "indptr", "terms", "counts"), "i32"),
        **dict.fromkeys(("posting", "part", "row", "hits"), "i64"),
        "place": "i16",
    }
    numbers = dict.fromkeys(("first", "items", "queries", "parts", "room"), "i32")
    constants = {"WINDOW": cuda_search.WINDOW, **cuda_search.TILES}
    yield _compile(architecture, cuda_search.score_windows, pointers, numbers, constants, cuda_search.OPTIONS)


def _compile(
    architecture: int,
    kernel: Any,
    pointers: dict[str, str],
    numbers: dict[str, str],
    constants: dict[str, Any],
    options: dict[str, Any],
) -> tuple[str, Any]:
    names = kernel.arg_names
    source = ASTSource(
        fn=kernel,
        signature={
            name: "constexpr" if name in constants else numbers.get(name) or f"*{pointers[name]}" for name in names
        },
        constexprs={(names.index(name),): value for name, value in constants.items()},
        # as at a launch: torch's memory is aligned, and widths of models are multiples of 16
        attrs={
            (place,): [["tt.divisibility", 16]]
            for place, name in enumerate(names)
            if name in pointers or name == "width"
        },
    )
    return kernel.fn.__name__, triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)


def usage(kernel: Any) -> dict[str, int]:
    """Resources and instructions of a compiled kernel, as NVIDIA's tools, which Triton brings, read them off it."""
    resources = _cuobjdump(kernel, "-res-usage")
    found = re.search(r"REG:(\d+) STACK:(\d+)", resources)
    assert found is not None, resources
    code = instructions(kernel)
    products = [place for place, name in enumerate(code) if _PRODUCT.match(name)]
    return {
        "registers": int(found[1]),
        "stack": int(found[2]),
        "shared": kernel.metadata.shared,
        "instructions": len(code),
        "products": len(products),
        "after_product": len(code) - 1 - products[-1] if products else 0,
        "shuffles": sum(name.startswith("SHFL") for name in code),
        "barriers": sum(name.startswith("BAR") for name in code),
    }


def instructions(kernel: Any) -> list[str]:
    """The names of a compiled kernel's machine instructions, in their order."""
    return re.findall(r"/\*[0-9a-f]{4,}\*/\s+(?:@!?\w+ )?([A-Z][\w.]*)", _cuobjdump(kernel, "-sass"))


def _cuobjdump(kernel: Any, option: str) -> str:
    tool = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(kernel.asm["cubin"])
        file.flush()
        return subprocess.run([tool, option, file.name], capture_output=True, text=True, check=True).stdout


if __name__ == "__main__":
    main()
