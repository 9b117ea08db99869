"""Table, report, card and trackers of one run folder, read back with the tools that users read them with."""

import io
import json
import re
import time
from html.parser import HTMLParser

import pytest
import yaml
from huggingface_hub import ModelCard
from rich.console import Console
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from distill.errors import RecipeError
from distill.reporting import run_facts
from distill.reporting.curves import training_curves
from distill.reporting.emissions import emissions_of, measure_emissions
from distill.reporting.model_card import card_data, write_model_card
from distill.reporting.report import write_report
from distill.reporting.table import markdown_table, metric_title, print_table
from distill.reporting.tracking import follow
from distill.run.files import write_json
from distill.run.layout import RunFolder
from distill.run.manifest import Manifest, write_manifest
from distill.run.run import Run
from tests.helpers.small_run import small_recipe


def system(name: str, title: str, *values: float, **costs: float) -> dict:
    return {"name": name, "title": title, "metrics": dict(zip(["nDCG@10", "RR@10"], values, strict=True)), **costs}


EVALUATION = {
    "split": "test",
    "queries": 1200,
    "passages": 9000,
    "reranked": {"miner": "bm25", "depth": 100},
    "metrics": ["nDCG@10", "RR@10"],
    "seconds": 1.0,
    "rows": [
        system("BM25", "BM25", 0.5, 0.4, query_terms=6.2, passage_terms=38.0, flops=0.314),
        system("rerank-a|b", "a|b, reranking", 0.6, 0.55),
        system("student", "student", 0.58, 0.5, query_terms=31.0, passage_terms=180.5, flops=3.9),
    ],
    "tests": [
        {
            "metric": metric,
            "ours": "student",
            "theirs": "BM25",
            "difference": 0.08,
            "p": 0.00001,
            "wins": 700,
            "losses": 300,
            "queries": 1200,
        }
        for metric in ("nDCG@10", "RR@10")
    ],
}
LOG = [
    {"step": step, "loss": 5 / step, "lr": 1e-4, "alarms": ["words"], "grad_norm": float("nan")}
    for step in range(10, 500, 10)
]
EVALUATIONS = [{"step": step, "event": "evaluation", "nDCG@10": 0.5} for step in (200, 400)]


@pytest.fixture
def run(tmp_path):
    folder = RunFolder(tmp_path / "run")
    recipe = small_recipe(
        folder.root,
        tracking={"wandb": {"project": "tests"}},
        student={"model": "naver/splade-cocondenser-selfdistil", "top_k": 64},
        data={"source": {"kind": "beir", "path": "/private/folder/animals & plants"}},
    )
    write_json(folder.evaluation, EVALUATION)
    folder.logs.mkdir(exist_ok=True)
    folder.train_log.write_text("".join(json.dumps(line) + "\n" for line in LOG + EVALUATIONS) + '{"step": 5')
    write_manifest(folder.data, Manifest({"stage": "import"}, (), {"passages": 9000, "queries": {"test": 1200}}))
    folder.model.mkdir()
    return recipe, folder


def test_the_printed_table_fits_eighty_columns():
    console = Console(file=io.StringIO(), width=80)
    print_table(EVALUATION, console)
    lines = console.file.getvalue().splitlines()
    student = next(line for line in lines if line.startswith("student "))
    assert student.split() == ["student", "0.580", "0.500", "31", "180", "3.90"]
    assert max(map(len, lines)) <= 80 and "…" not in console.file.getvalue()
    assert "student − BM25: +0.080 nDCG@10, p < 0.0001" in console.file.getvalue()


def test_every_row_of_the_markdown_table_has_the_same_number_of_cells():
    lines = markdown_table(EVALUATION).splitlines()
    assert [len(re.findall(r"(?<!\\)\|", line)) for line in lines] == [7] * 5
    assert lines[2] == "| BM25 | 0.500 | 0.400 | 6 | 38 | 0.31 |"
    assert lines[3].endswith("| – | – | – |") and lines[4].startswith("| **student** | **0.580**")


def test_metric_titles_are_the_fields_names():
    assert [metric_title(name) for name in ("RR@10", "R@100", "RR", "nDCG@10", "Rprec", "AP")] == [
        "MRR@10",
        "recall@100",
        "MRR",
        "nDCG@10",
        "Rprec",
        "AP",
    ]


def test_every_number_logged_more_than_once_gets_a_curve():
    assert [name for name, _ in training_curves(LOG + EVALUATIONS)] == ["loss", "lr", "dev/nDCG@10"]
    assert training_curves(LOG[:1]) == [] and training_curves(LOG) == training_curves(LOG)


class Page(HTMLParser):
    def __init__(self, text: str):
        super().__init__()
        self.sources, self.open, self.words = [], [], []
        self.feed(text)
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        self.sources += [value for key, value in attributes if key in ("src", "href")]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.words.append(data)


def test_the_report_is_self_contained_and_complete(run):
    recipe, folder = run
    text = write_report(Run(recipe, folder), {}).read_text()
    page = Page(text)
    assert len(page.sources) == 3 and all(source.startswith("data:image/svg+xml;base64,") for source in page.sources)
    words = " ".join(page.words)
    for expected in ("0.580", "a|b, reranking", "p < 0.0001", "9,000", "animals & plants", "naver/splade"):
        assert expected in words
    assert "/private/folder/animals" not in words.split("kind: beir")[0]  # only in the recipe


def test_a_run_without_results_has_a_report(tmp_path):
    folder = RunFolder(tmp_path)
    assert "Not evaluated yet" in write_report(Run(small_recipe(tmp_path), folder), {}).read_text()


def test_the_model_card_is_read_back_by_the_hub_library(run):
    recipe, folder = run
    card = ModelCard.load(write_model_card(Run(recipe, folder)))
    assert card.data.library_name == "sentence-transformers" and "sparse-encoder" in card.data.tags
    assert card.data.base_model == "naver/splade-cocondenser-selfdistil" and card.data.license == "cc-by-nc-sa-4.0"
    results = {result.metric_type: result.metric_value for result in card.data.eval_results}
    assert results == {"ndcg_at_10": 0.58, "mrr_at_10": 0.5, "query_terms": 31.0, "passage_terms": 180.5}
    assert markdown_table(EVALUATION) in card.text and "cap of 64 active terms" in card.text
    assert "inherits those terms" in card.text
    recipe_in_card = yaml.safe_load(re.search(r"```yaml\n(.*?)```", card.text, re.DOTALL).group(1))
    assert recipe_in_card == recipe.model_dump(mode="json", exclude={"run_dir", "follows", "slurm", "cluster"})


def test_the_model_card_does_not_name_a_local_model_as_base_model(run, tiny_mlm):
    recipe, folder = run
    recipe = small_recipe(folder.root, student={"model": str(tiny_mlm)})
    card = ModelCard.load(write_model_card(Run(recipe, folder)))
    assert card.data.base_model is None and card.data.license is None
    assert str(tiny_mlm.parent) not in card.text.split("recipe.yaml</summary>")[0]


def test_wandb_records_log_and_results_offline(run, monkeypatch):
    recipe, folder = run
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    with follow(Run(recipe, folder)), folder.train_log.open("a") as file:
        file.write('}\n{"step": 500, "loss": 0.01}\n')
    state = json.loads((folder.logs / "wandb.json").read_text())
    assert state["lines"] == len(LOG + EVALUATIONS) + 2
    written = list(folder.logs.glob("wandb/offline-run-*/*.wandb"))
    assert len(written) == 1
    deadline = time.monotonic() + 30  # wandb's own process may still be writing when `finish` returns
    while any(key not in written[0].read_bytes() for key in (b"student/nDCG@10", b"dev/nDCG@10")):
        assert time.monotonic() < deadline, "results or development evaluations are missing"
        time.sleep(0.1)


def test_tensorboard_gets_every_log_line_once_and_the_results(run):
    recipe, folder = run
    recipe = small_recipe(folder.root, tracking={"tensorboard": True})
    with follow(Run(recipe, folder)):
        pass
    with follow(Run(recipe, folder)), folder.train_log.open("a") as file:  # resumed
        file.write('}\n{"step": 500, "loss": 0.01}\n')
    events = EventAccumulator(str(folder.logs / "tensorboard")).Reload()
    losses = [(event.step, event.value) for event in events.Scalars("loss")]
    assert losses == [(line["step"], pytest.approx(line["loss"])) for line in LOG] + [(500, pytest.approx(0.01))]
    assert [event.step for event in events.Scalars("dev/nDCG@10")] == [200, 400]
    assert events.Scalars("evaluation/student/nDCG@10")[-1].value == pytest.approx(0.58)


def test_emissions_of_all_attempts_at_a_stage_reach_the_model_card(run):
    recipe, folder = run
    recipe = small_recipe(folder.root, tracking={"codecarbon": "FRA"})
    with pytest.raises(KeyError), measure_emissions(Run(recipe, folder), "train"):
        raise KeyError
    with measure_emissions(Run(recipe, folder), "train"):
        sum(range(2_000_000))
    attempts = [json.loads(line) for line in (folder.logs / "emissions.jsonl").read_text().splitlines()]
    assert [line["country"] for line in attempts] == ["FRA", "FRA"] and attempts[1]["energy_kwh"] > 0
    (stage,) = emissions_of(folder)
    assert stage["energy_kwh"] == pytest.approx(sum(line["energy_kwh"] for line in attempts))
    card = ModelCard.load(write_model_card(Run(recipe, folder)))
    assert card.data.co2_eq_emissions["emissions"] == pytest.approx(1000 * stage["co2_kg"])
    assert f"| train | 0.00 | {stage['energy_kwh']:.3g} |" in card.text


def test_an_unknown_country_is_refused_for_emissions(tmp_path):
    recipe = small_recipe(tmp_path, tracking={"codecarbon": "XQX"})
    with pytest.raises(RecipeError, match="ISO 3166"), measure_emissions(Run(recipe, RunFolder(tmp_path)), "train"):
        pass


def test_without_trackers_no_logs_are_written(tmp_path):
    with follow(Run(small_recipe(tmp_path), RunFolder(tmp_path))):
        pass
    assert not (tmp_path / "logs").exists()


def test_a_student_inherits_the_non_commercial_licence_of_its_start(tmp_path):
    start = tmp_path / "model"
    start.mkdir()
    (start / "README.md").write_text("---\nlicense: cc-by-nc-sa-4.0\n---\n")
    recipe = small_recipe(tmp_path / "round-2", student={"model": str(start)})
    assert card_data(recipe, None).license == "cc-by-nc-sa-4.0"
    (start / "README.md").write_text("---\nlibrary_name: sentence-transformers\n---\n")
    assert card_data(recipe, None).license is None


def test_training_rows_name_query_table_and_caps(tmp_path):
    recipe = small_recipe(
        tmp_path,
        student={"model": "m", "query": {"kind": "learned"}},
        train={"table_lr": 0.01, "top_ks": [{"k": 64}, {"k": None, "weight": 2}]},
    )
    rows = dict(run_facts.training_rows(recipe))
    assert "inference-free queries (learned)" in rows["student"] and "query table 0.01" in rows["optimizer"]
    assert rows["losses"].endswith("averaged over caps on the terms per text: 64 (weight 1), all (weight 2)")
