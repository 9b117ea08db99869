"""The records in tests/golden/: fingerprint inputs, and the bytes and first losses of two whole runs.

`python -m tests.helpers.golden_records` writes new records, after an intended change that CHANGELOG.md names;
`tests/test_golden.py` compares. Floating-point results repeat bit for bit on one kind of processor only: digests are
recorded per kind, and on any other kind the losses are compared within a tolerance.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from tests.helpers.stages import import_data

ROOT = Path(__file__).parents[2]
RECORDS = ROOT / "tests" / "golden"
CONFIGS = ROOT / "configs"
CONTENT = ("content", "checkpoint", "folds", "files", "python")  # depend on the machine that made the tiny models
VOLATILE = ("seconds", "host", "bytes")  # keys of JSON files, at any depth
LOSSES = 20


# ------------------------------------------------------------------------------- fingerprint inputs


def fingerprint_inputs(name: str, tiny: dict[str, Path], root: Path) -> dict[str, Any]:
    """Return round -> stage -> output folder -> fingerprint inputs, for a shipped recipe over tiny data.

    Only the import runs: the manifests of other stages are written with the inputs that they must have. Hashes are
    replaced by a description of what was hashed.
    """
    import yaml

    from distill.pipeline.registry import stages_of
    from distill.pipeline.resolve import resolve
    from distill.recipe.expand import open_runs
    from distill.recipe.load import dump_recipe, load_recipe, parse_recipe
    from tests.test_recipes import shrunk

    root.mkdir(parents=True, exist_ok=True)
    recipe = parse_recipe(shrunk(yaml.safe_load(dump_recipe(load_recipe(CONFIGS / f"{name}.yaml"))), tiny, root))
    names: dict[str, str] = {}  # fingerprint -> its folder
    inputs: dict[str, Any] = {}
    for number, run in enumerate(open_runs(recipe), start=1):
        folder = run.folder
        for stage in stages_of(run):
            if stage.name == "import":
                import_data(run.recipe, folder)
            for teacher, cfg in run.recipe.teachers.items():
                if stage.name == "score" and cfg.fine_tune is not None:
                    for fold in range(cfg.fine_tune.folds):
                        _copy(tiny["cross-encoder"], folder.teacher_fold(teacher, fold))
            if stage.name == "evaluate":
                for path in (folder.start, folder.model):
                    _copy(tiny["splade"], path)
            for output in stage.outputs(resolve(run) if stage.needs else run):
                output.finish()
                place = str(output.folder.relative_to(root / "run"))
                names[output.fingerprint] = f"<fingerprint of {place}>"
                readable = _readable(output.fields, names)
                inputs.setdefault(f"round {number}", {}).setdefault(stage.name, {})[place] = readable
    return inputs


def _copy(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.is_file() and not (target / file.name).exists():
            (target / file.name).symlink_to(file)


def _readable(value: Any, names: dict[str, str], key: str = "") -> Any:
    if isinstance(value, dict):
        return {name: _readable(inner, names, name) for name, inner in value.items()}
    if isinstance(value, list | tuple):
        return ["<content>" for _ in value] if key in CONTENT else [_readable(inner, names) for inner in value]
    if value in names:
        return names[value]
    if key in CONTENT or (key in ("model", "start", "previous") and _is_hash(value)):
        return f"<{key}>"
    return f"<{Path(value).name}>" if isinstance(value, str) and Path(value).is_absolute() else value


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{16}|[0-9a-f]{32}", value) is not None


# ----------------------------------------------------------------------------------------- whole runs


def whole_run(kind: str, root: Path) -> dict[str, Any]:
    """Run a tiny recipe from import to evaluation in a new process; returns digests of its files, and its losses."""
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(
        [sys.executable, "-m", "tests.helpers.golden_records", kind, str(root)], check=True, env=environment, cwd=ROOT
    )
    return json.loads((root / "record.json").read_text())


def processor() -> str:
    """Return the kind of processor and arithmetic on which bits depend: torch's products differ by maker, too."""
    import platform

    import torch

    facts = Path("/proc/cpuinfo").read_text(encoding="utf-8") if Path("/proc/cpuinfo").exists() else ""
    maker = re.search(r"^vendor_id\s*:\s*(\w+)", facts, re.MULTILINE)
    parts = (
        platform.machine(),
        maker and maker[1],
        torch.backends.cpu.get_cpu_capability(),
        f"torch-{torch.__version__}",
    )
    return " ".join(filter(None, parts))


def _run_whole(kind: str, root: Path) -> None:
    import torch

    from distill.pipeline.run import run_pipeline
    from distill.recipe.expand import all_rounds
    from distill.run.layout import RunFolder

    torch.set_num_threads(2)
    recipe = (splade_recipe if kind == "splade" else inference_free_recipe)(root)
    run_pipeline(recipe)
    losses = [
        [
            json.loads(line)["loss"]
            for line in RunFolder.of(round_recipe).train_log.read_text().splitlines()
            if "loss" in json.loads(line)
        ][:LOSSES]
        for round_recipe in all_rounds(recipe)
    ]
    record = {"losses": losses, "digests": digests(RunFolder.of(recipe).root)}
    (root / "record.json").write_text(json.dumps(record))


def digests(root: Path) -> dict[str, str]:
    """Return file below `root` -> hash of its bytes without times and fingerprints; logs and pages are left out."""
    import pyarrow.ipc as ipc
    import xxhash

    hashes = {}
    for path in sorted(root.rglob("*")):
        place = str(path.relative_to(root))
        if (
            path.is_dir()
            or any(part.startswith(".") for part in path.relative_to(root).parts)
            or path.suffix in (".html", ".md", ".jsonl", ".pt")
            or path.name == "recipe.yaml"
        ):
            continue
        content = path.read_bytes()
        if path.suffix == ".json":
            content = json.dumps(_steady(json.loads(content)), sort_keys=True).encode()
        elif path.suffix == ".arrow":
            fingerprint = (ipc.open_file(path).schema.metadata or {}).get(b"fingerprint", b"-" * 16)
            content = content.replace(fingerprint, b"-" * len(fingerprint))
        hashes[place] = xxhash.xxh3_64_hexdigest(content)
    return hashes


def _steady(value: Any) -> Any:
    """Return a JSON value without times, hashes (their files are compared) and folders."""
    if isinstance(value, dict):
        return {key: _steady(inner) for key, inner in value.items() if key not in VOLATILE}
    if isinstance(value, list):
        return [_steady(inner) for inner in value]
    if isinstance(value, str) and (re.fullmatch("[0-9a-f]{16}|[0-9a-f]{32}", value) or Path(value).is_absolute()):
        return "-"
    return value


def models(root: Path) -> dict[str, Path]:
    """Save tiny seeded models of every kind of teacher and student."""
    import torch
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import (
        BertForMaskedLM,
        BertForSequenceClassification,
        BertModel,
        LlamaConfig,
        LlamaForCausalLM,
    )

    from tests.helpers.small_run import save_checkpoint
    from tests.helpers.tiny_models import tiny_config, tiny_tokenizer
    from tests.test_recipes import save_rank_t5

    tokenizer = tiny_tokenizer()
    llama = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        pad_token_id=0,
    )
    paths: dict[str, Path] = {}
    for seed, (name, model) in enumerate(
        {
            "mlm": lambda: BertForMaskedLM(tiny_config(tokenizer)),
            "classifier": lambda: BertForSequenceClassification(tiny_config(tokenizer, num_labels=1)),
            "body": lambda: BertModel(tiny_config(tokenizer), add_pooling_layer=False),
            "llama": lambda: LlamaForCausalLM(llama),
        }.items()
    ):
        torch.manual_seed(seed)
        paths[name] = root / name
        network = model()
        if name == "mlm":
            with torch.no_grad():
                network.get_output_embeddings().bias.normal_(-1.0, 1.0)
        network.save_pretrained(paths[name])
        tokenizer.save_pretrained(paths[name])
    paths["sentence"] = root / "sentence"
    SentenceTransformer(modules=[Transformer(str(paths["body"])), Pooling(32)], device="cpu").save(
        str(paths["sentence"])
    )
    paths["splade"] = save_checkpoint(paths["mlm"], root / "splade")
    paths["rank-t5"] = save_rank_t5(paths["mlm"], root / "rank-t5")
    return paths


def splade_recipe(root: Path):
    """Return a recipe with a SPLADE student and every kind of teacher but `imported`."""
    from distill.recipe.load import parse_recipe
    from tests.helpers.whole_run import write_beir

    tiny = models(root / "models")
    write_beir(root / "data")
    short = {"max_length": 32, "dtype": "float32"}
    return parse_recipe(
        {
            "name": "golden",
            "run_dir": str(root / "run"),
            "data": {"source": {"kind": "beir", "path": str(root / "data")}},
            "mine": {
                "miners": {
                    "bm25": {"kind": "bm25", "top": 5, "sample": 2, "depth": 20},
                    "dense": {"kind": "dense", "model": str(tiny["sentence"]), "top": 2},
                    "splade": {"kind": "splade", "model": str(tiny["splade"]), "top": 2},
                },
                "rerank_depth": 5,
                "shard_queries": 10,
            },
            "teachers": {
                "tuned": {
                    "kind": "cross-encoder",
                    "model": str(tiny["sentence"]),
                    **short,
                    "fine_tune": {"folds": 2, "negatives": 2, "batch_size": 16, "lr": 1e-3},
                },
                "cross-encoder": {"kind": "cross-encoder", "model": str(tiny["classifier"]), **short},
                "llm": {
                    "kind": "llm",
                    "model": str(tiny["llama"]),
                    **short,
                    "template": "{query} ? {passage}",
                    "options": {"yes": "a", "no": "b"},
                },
                "bi-encoder": {"kind": "bi-encoder", "model": str(tiny["sentence"]), "dtype": "float32"},
                "splade": {"kind": "splade", "model": str(tiny["splade"]), **short},
                "rank-t5": {
                    "kind": "custom",
                    "cls": "teachers.rank_t5:RankT5",
                    "options": {"model": str(tiny["rank-t5"]), "backbone": str(tiny["rank-t5"])},
                },
                "bm25": {"kind": "bm25"},
            },
            "label": {"map_to": "tuned"},
            "student": {"model": str(tiny["mlm"]), "query_max_length": 16, "passage_max_length": 24},
            "train": {
                "batch_size": 8,
                "negatives": 3,
                "steps": 24,
                "lr": 1e-3,
                "precision": "fp32",
                "evaluate_every": 12,
                "chunk_tokens": 256,
                "losses": [{"kind": "kl"}, {"kind": "margin-mse", "weight": 0.05}],
                "passage_regularizers": [{"kind": "flops", "weight": 1e-3, "ramp_steps": 4}],
            },
            "evaluate": {"precision": "float32"},
            "tracking": {"log_every": 1},
        }
    )


def inference_free_recipe(root: Path):
    """Return a recipe with inference-free queries, a calibrated start, generated queries and a self-mining round."""
    from distill.recipe.load import parse_recipe
    from tests.helpers.whole_run import write_beir

    tiny = models(root / "models")
    write_beir(root / "data")
    return parse_recipe(
        {
            "name": "golden",
            "run_dir": str(root / "run"),
            "data": {
                "source": {"kind": "beir", "path": str(root / "data")},
                "generate": {"min_words": 2, "min_passage_words": 5},
            },
            "mine": {
                "miners": {"bm25": {"kind": "bm25", "top": 5, "sample": 2, "depth": 20}},
                "rerank_depth": 5,
                "shard_queries": 40,
            },
            "teachers": {
                "bi-encoder": {"kind": "bi-encoder", "model": str(tiny["sentence"]), "dtype": "float32"},
                "bm25": {"kind": "bm25", "weight": 0.3},
            },
            "label": {"normalise": "min-max", "scale": 30},
            "student": {
                "model": str(tiny["sentence"]),
                "query": {"kind": "idf"},
                "calibration": {"passages": 50},
                "query_max_length": 16,
                "passage_max_length": 24,
            },
            "train": {
                "batch_size": 8,
                "negatives": 3,
                "steps": 20,
                "lr": 1e-3,
                "precision": "fp32",
                "chunk_tokens": 256,
                "losses": [{"kind": "kl", "student_temperature": 4, "teacher_temperature": 4}],
                "passage_regularizers": [{"kind": "flops", "weight": 1e-3, "ramp_steps": 4}],
            },
            "evaluate": {"precision": "float32"},
            "tracking": {"log_every": 1},
            "rounds": [
                {
                    "mine": {
                        "miners": {
                            "student": {"kind": "splade", "model": "round:previous", "top": 5, "sample": 5, "depth": 50}
                        }
                    },
                    "student": {"model": "round:previous"},
                    "train": {"steps": 10},
                }
            ],
        }
    )


def main() -> None:
    if len(sys.argv) == 3:
        _run_whole(sys.argv[1], Path(sys.argv[2]))
        return
    RECORDS.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        tiny = recipe_models(root / "models")
        fields = {
            path.stem: fingerprint_inputs(path.stem, tiny, root / path.stem) for path in sorted(CONFIGS.glob("*.yaml"))
        }
        (RECORDS / "fingerprints.json").write_text(json.dumps(fields, indent=1) + "\n")
        for kind in ("splade", "inference-free"):
            path = RECORDS / f"{kind}.json"
            record = whole_run(kind, root / f"whole-{kind}")
            old = json.loads(path.read_text())["digests"] if path.exists() else {}
            merged = {**(old if os.environ.get("KEEP_OTHER_PROCESSORS") else {}), processor(): record["digests"]}
            path.write_text(json.dumps({"losses": record["losses"], "digests": merged}, indent=1) + "\n")


def recipe_models(root: Path) -> dict[str, Path]:
    """Save the models and the data that `test_recipes.shrunk` needs; returns them by its names."""
    from tests.helpers.whole_run import write_beir

    tiny = models(root)
    write_beir(root / "data")
    return {
        "data": root / "data",
        "mlm": tiny["mlm"],
        "bi-encoder": tiny["sentence"],
        "dense": tiny["sentence"],
        "cross-encoder": tiny["classifier"],
        "splade": tiny["splade"],
        "rank-t5": tiny["rank-t5"],
    }


if __name__ == "__main__":
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    main()
