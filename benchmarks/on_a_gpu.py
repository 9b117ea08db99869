"""Everything that is to be known of a GPU, in one command of ten minutes: facts, tests, speed, a whole run.

Each part runs in a process of its own, with a limit of its own, in the order of their worth. The JSON lines that they
print are written at once to benchmarks/results/<device>/<part>.jsonl, what fails is named with its last words, and so
is what is left when the time is up. Where DeepSpeed or Ray is missing, the parts that need them fail and the others
run. `python benchmarks/tables.py FOLDER` makes tables of the results.
Usage: python benchmarks/on_a_gpu.py [--minutes 10] [--out FOLDER] [--parts NAME ...] [--device cpu]

`--device cpu` rehearses the command with small shapes: its figures mean nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
ROOT = HERE.parent
TAIL = 2000  # characters of a failed part's output


@dataclass(frozen=True)
class Part:
    """Commands of a part, for a GPU and for the rehearsal; `seconds`: the limit of them all."""

    name: str
    seconds: float
    commands: list[list[str]]
    rehearsal: list[list[str]]


def script(name: str, *arguments: object) -> list[str]:
    return [sys.executable, str(HERE / f"{name}.py"), *map(str, arguments)]


def parts(work: Path) -> list[Part]:
    """All parts; `work`: a folder for runs."""
    here = script("on_a_gpu", "--only")
    quickstart = [
        [sys.executable, "-m", "distill.cli", "run", str(ROOT / "configs/quickstart.yaml"), f"run_dir={work / name}"]
        for name in ("first", "second")
    ]
    head = [(512, 128, 768, 30522), (4096, 128, 384, 30522), (6000, 10, 768, 30522), (64, 512, 1024, 250002)]
    tiny = ("--repeats", 1, "--active", 20, "--dtypes", "float32")
    return [
        Part("facts", 40, [[*here, "facts"]], [[*here, "facts"]]),
        Part(
            "tests",
            150,
            [[sys.executable, "-m", "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", str(ROOT / "tests")]],
            [[sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(ROOT / "tests/run/test_device.py")]],
        ),
        Part(
            "head",
            90,
            [
                script("head", "--texts", t, "--tokens", n, "--hidden", h, "--vocabulary", v, "--active", 250)
                for t, n, h, v in head
            ],
            [script("head", "--texts", 2, "--tokens", 8, "--hidden", 16, "--vocabulary", 200, *tiny)],
        ),
        Part(
            "step",
            120,
            [
                script("cached_step", "--queries", 80, "--passages", 9, "--tokens", 78, *shape, "--precision", "bf16")
                for shape in (
                    ("--layers", 12, "--hidden", 768, "--chunk-tokens", 65536),
                    ("--layers", 12, "--hidden", 768, "--chunk-tokens", 8192),
                    ("--layers", 6, "--hidden", 384, "--chunk-tokens", 65536),
                )
            ],
            [
                script(
                    *("cached_step", "--queries", 2, "--passages", 2, "--tokens", 8, "--layers", 1, "--hidden", 64),
                    *("--vocabulary", 300, "--active", 20, "--repeats", 1, "--chunk-tokens", 64),
                    *("--precision", "fp32"),
                )
            ],
        ),
        Part(
            "scoring",
            120,
            [script("scoring", "--pairs", 50_000, "--only", "predict")],
            [script("scoring", "--pairs", 8, "--rounds", 1, "--only", "predict")],
        ),
        Part("encoding", 60, [[*here, "encoding"]], [[*here, "encoding", "--device", "cpu"]]),
        Part("search", 100, [[*here, "search"]], [[*here, "search", "--device", "cpu"]]),
        Part("quickstart", 180, [*quickstart, [*here, "bits", "--work", str(work)]], []),
    ]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--out", type=Path, help="folder for the results; default: benchmarks/results/<device>")
    parser.add_argument("--parts", nargs="+", help="only these")
    parser.add_argument("--only", choices=["facts", "encoding", "search", "bits"], help=argparse.SUPPRESS)
    parser.add_argument("--work", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.only:
        for line in {"facts": facts, "encoding": encoding, "search": search, "bits": bits}[args.only](args):
            print(json.dumps(line), flush=True)
        return
    sys.exit(run_all(args))


def run_all(args: argparse.Namespace) -> int:
    """Run the parts while there is time; returns 0 if all that could run did, else 1."""
    import tempfile

    import torch

    if args.device == "cuda" and not torch.cuda.is_available():
        print("torch finds no GPU: `distill doctor` says why; --device cpu rehearses this command", file=sys.stderr)
        return 2
    name = torch.cuda.get_device_name() if args.device == "cuda" else "rehearsal on a CPU"
    out = args.out or HERE / "results" / re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    out.mkdir(parents=True, exist_ok=True)
    end, states = time.monotonic() + 60 * args.minutes, {}
    with tempfile.TemporaryDirectory() as work:
        for part in parts(Path(work)):
            if args.parts and part.name not in args.parts:
                continue
            commands = part.commands if args.device == "cuda" else part.rehearsal
            left = end - time.monotonic()
            if not commands:
                states[part.name] = "left out of the rehearsal"
            elif left < 5:
                states[part.name] = "not started: the time is up"
            else:
                states[part.name] = run_part(part.name, commands, min(part.seconds, left), out, args.device)
            print(f"{part.name:10} {states[part.name]}", file=sys.stderr, flush=True)
    summary = {"device": name, "minutes": args.minutes, "parts": states}
    (out / "summary.json").write_text(json.dumps(summary, indent=1) + "\n", encoding="utf-8")
    return 0 if all(state.startswith(("done", "left out")) for state in states.values()) else 1


def run_part(name: str, commands: list[list[str]], seconds: float, out: Path, device: str) -> str:
    """Run a part's commands, and write their JSON lines as they come; returns how it ended."""
    began, lines = time.monotonic(), 0
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(HERE)])}
    environment |= {"DISTILL_TEST_GPU": "1"} if device == "cuda" else {"CUDA_VISIBLE_DEVICES": ""}
    with open(out / f"{name}.jsonl", "w", encoding="utf-8") as results:
        for command in commands:
            process = subprocess.Popen(
                command,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                env=environment,
                cwd=HERE,
                start_new_session=True,
            )
            overdue = threading.Event()

            def stop(process: subprocess.Popen[str] = process, overdue: threading.Event = overdue) -> None:
                overdue.set()
                os.killpg(process.pid, signal.SIGKILL)

            timer = threading.Timer(max(0.0, began + seconds - time.monotonic()), stop)
            timer.start()
            tail = ""
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("{"):
                    results.write(line)
                    results.flush()
                    lines += 1
                else:
                    tail = (tail + line)[-TAIL:]
            status = process.wait()
            timer.cancel()
            if overdue.is_set():
                return f"stopped after its {seconds:.0f} s, with {lines} lines"
            if name == "tests":
                results.write(
                    json.dumps({"figure": "tests", "status": status, "summary": tail.splitlines()[-1:]}) + "\n"
                )
                lines += 1
            if status:
                (out / f"{name}.log").write_text(tail, encoding="utf-8")
                return f"failed with status {status} ({name}.log): {tail.strip().splitlines()[-1:]}"
    return f"done in {time.monotonic() - began:.0f} s, {lines} lines"


# -------------------------------------------------------------------------------------------------- parts of its own


def facts(_: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """The machine, and ceilings of its device: products, copies, launches."""
    import shutil

    import torch

    from distill.planning.devices import peak_flops

    versions = {"torch": torch.__version__, "cuda": torch.version.cuda}
    for package in ("triton", "transformers", "sentence_transformers", "deepspeed", "ray"):
        try:
            versions[package] = __import__(package).__version__
        except ImportError as error:
            versions[package] = f"missing: {error}"
    yield {"figure": "versions", **versions, "compiler": shutil.which("cc") or shutil.which("gcc")}
    cuda = torch.cuda.is_available()
    device = torch.device("cuda" if cuda else "cpu")
    if cuda:
        query = "name,driver_version,power.limit,clocks.max.sm,memory.total"
        shown = subprocess.run(["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"], capture_output=True)
        yield {"figure": "nvidia-smi", "fields": query, "values": shown.stdout.decode(errors="replace").strip()}
        yield {"figure": "capability", "value": torch.cuda.get_device_capability()}
    for dtype in (torch.float32, torch.bfloat16, torch.float16) if cuda else (torch.float32,):
        yield {"figure": "product", "dtype": str(dtype), "unit": "FLOP/s", "value": peak_flops(device, dtype)}
    if cuda:
        yield from copies(device)


def copies(device: Any) -> Iterator[dict[str, Any]]:
    """Bandwidth of copies, and the time of a launch."""
    import torch

    host = torch.empty(64 << 20, dtype=torch.uint8)
    pinned, there, other = host.pin_memory(), host.to(device), host.to(device)
    cases = {
        "host to device": lambda: there.copy_(host),
        "host to device, pinned": lambda: there.copy_(pinned, non_blocking=True),
        "on the device": lambda: other.copy_(there),
    }
    for name, copy in cases.items():
        yield {"figure": name, "unit": "B/s", "value": host.numel() / seconds_of(copy, 10)}
    small = torch.zeros(1, device=device)
    yield {"figure": "a launch", "unit": "s", "value": seconds_of(lambda: small.add_(1), 1000)}


def seconds_of(function: Any, repeats: int) -> float:
    import torch

    function()
    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(repeats):
        function()
    torch.cuda.synchronize()
    return (time.perf_counter() - began) / repeats


def encoding(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Texts per second of a student's encoding, for two shapes."""
    import tempfile

    import numpy as np
    import torch
    from steps import make_model
    from transformers import AutoTokenizer, BertForMaskedLM

    from distill.planning.devices import fastest_precision, peak_flops
    from distill.retrieval.encode import encode_texts
    from distill.student.model import SpladeStudent
    from distill.training.profiling import flops_per_token

    device = torch.device(args.device)
    small = device.type == "cpu"
    draw = np.random.default_rng(0)
    for layers, hidden in ((1, 64),) if small else ((12, 768), (6, 384)):
        vocabulary, texts = (300, 20) if small else (30522, 20_000)
        shape = argparse.Namespace(
            **{"layers": layers, "hidden": hidden, "vocabulary": vocabulary, "active": 20 if small else 250},
            **{"queries": 2, "passages": 2, "tokens": 20, "dropout": 0.0},
        )
        with tempfile.TemporaryDirectory() as folder:
            model = make_model(shape, Path(folder))
            student = SpladeStudent(
                BertForMaskedLM.from_pretrained(model),
                AutoTokenizer.from_pretrained(model),
                query_max_length=32,
                passage_max_length=128,
            ).to(device)
        lengths = draw.integers(20, 120, texts)
        passages = [" ".join(f"w{i}" for i in draw.integers(0, vocabulary - 5, n)) for n in lengths]
        precision = fastest_precision(device.type)
        encode_texts(student, passages[: texts // 10], "passage", precision=precision)
        began = time.perf_counter()
        encode_texts(student, passages, "passage", precision=precision)
        seconds = time.perf_counter() - began
        flops = flops_per_token(student) / 3 + 4 / 3 * student.forward_weights  # a forward alone
        yield {
            "figure": "encode texts",
            "shape": f"{layers} layers, hidden {hidden}, vocabulary {vocabulary}, {lengths.mean():.0f} tokens",
            "precision": precision,
            "unit": "texts/s",
            "value": texts / seconds,
            "mfu": flops * int(lengths.sum()) / seconds / peak_flops(device, getattr(torch, precision)),
        }


def search(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Queries per second of exact search, sparse and dense, beside all processor cores; what they find in common."""
    from concurrent.futures import ThreadPoolExecutor

    import numpy as np
    import torch
    from search import vectors

    from distill.retrieval.exact import search_dense
    from distill.retrieval.inverted import InvertedIndex
    from distill.retrieval.postings import Postings

    small = args.device == "cpu"
    if not small:
        from distill.retrieval.cuda_search import launch_kernels

        launch_kernels(args.device)  # raises where processor cores would search instead
    blocks, passages, queries, of_peer = (2, 500, 20, 5) if small else (8, 131_072, 2000, 100)
    with ThreadPoolExecutor() as pool:
        runs = list(pool.map(lambda seed: Postings.of(vectors(passages, 120, seed)), range(1, blocks + 1)))
    sparse_queries, cores = vectors(queries, 30, 0), os.cpu_count()
    draw = np.random.default_rng(0)
    dense_queries = draw.standard_normal((queries, 768), np.float32)
    embeddings = [draw.standard_normal((passages, 768), np.float32) for _ in runs]
    kept = [torch.tensor(block).to(args.device) for block in embeddings]
    indexes = {device: InvertedIndex(runs, device) for device in (args.device, "cpu")}
    searches = {
        "sparse search": lambda n, k, device: indexes[device].search(sparse_queries[:n], k, cores),
        "dense search": lambda n, k, device: search_dense(
            dense_queries[:n], kept if device == args.device else embeddings, k, device
        ),
    }
    for name, run in searches.items():
        run(of_peer, 10, args.device)  # copies the index, and compiles
        for k in (1000, 100):
            rates, rows = [], []
            for n, device in ((queries, args.device), (of_peer, "cpu")):
                began = time.perf_counter()
                rows.append(run(n, k, device)[0][:of_peer])
                rates.append(n / (time.perf_counter() - began))
            yield {
                "figure": name,
                "shape": f"{blocks * passages:,} passages, k = {k}; peer: {cores} cores",
                "precision": "float32",
                "unit": "queries/s",
                "ours": rates[0],
                "peer": rates[1],
                "peer/ours": rates[0] / rates[1],
                "rankings in common": float((rows[0] == rows[1]).mean()),
            }


def bits(args: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What two runs of the quickstart have in common."""
    from distill.run.files import read_json, xxh128_file
    from distill.run.layout import RunFolder

    runs = [RunFolder(args.work / name) for name in ("first", "second")]
    rows = [{row["title"]: row["metrics"] for row in read_json(run.evaluation)["rows"]} for run in runs]
    yield {"figure": "quickstart", "rows": rows[0], "same metrics": rows[0] == rows[1]}
    files = [run.model / "model.safetensors" for run in runs]
    yield {"figure": "same weights twice", "value": xxh128_file(files[0]) == xxh128_file(files[1])}


if __name__ == "__main__":
    main()
