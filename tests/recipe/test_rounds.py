"""Rounds: the real pipeline, with a second round from the first round's student; and what a recipe may declare."""

import json
import shlex
import shutil

import pytest
import torch

from distill.cli.inspect import inspect_path
from distill.errors import FingerprintError, RecipeError
from distill.evaluation.compare import compare
from distill.pipeline.run import run_pipeline
from distill.pipeline.status import stage_states
from distill.pipeline.submit import submit_jobs
from distill.recipe.expand import all_rounds, open_run, open_runs
from distill.recipe.load import dump_recipe, load_recipe, parse_recipe
from distill.run.layout import RunFolder, run_at
from distill.run.manifest import read_manifest
from distill.run.model_ref import content_hash
from distill.store.candidates import iterate_candidates
from distill.student.checkpoint import load_student
from tests.helpers.small_run import small_recipe

SECOND = {
    "mine": {"miners": {"student": {"kind": "splade", "model": "round:previous", "top": 4}}},
    "score": {"rerank": False},
    "student": {"model": "round:previous"},
    # without evaluation, which keeps the start where no step is better
    "train": {"lr": 5e-4, "steps": 3, "evaluate_every": None},
}


def with_rounds(recipe, *rounds):
    return parse_recipe({**recipe.model_dump(mode="json"), "rounds": list(rounds)})


def parameters(path) -> torch.Tensor:
    return torch.cat([p.flatten() for p in load_student(path).parameters()])


def files(folder) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory, finished):
    """A finished run to which a second round was added, as if it had been killed between the two rounds.

    Returns the recipe, and the modification times of the first round's files.
    """
    root = tmp_path_factory.mktemp("rounds") / "run"
    shutil.copytree(finished.folder, root)
    before = files(root)
    recipe = with_rounds(finished.model_copy(update={"run_dir": root}), SECOND)
    run_pipeline(recipe)
    return recipe, before


def test_a_run_killed_between_rounds_resumes_without_touching_the_first_round(two_rounds):
    recipe, before = two_rounds
    assert before.items() <= files(recipe.folder).items()
    second = RunFolder.of(all_rounds(recipe)[1])
    assert second.root == recipe.folder / "round-2" and second.evaluation.is_file() and second.report.is_file()
    assert not (second.root / "data").exists() and not (second.root / "teachers").exists()


def test_the_second_round_mines_with_and_starts_from_the_first_rounds_student(two_rounds):
    recipe, _ = two_rounds
    first, second = map(RunFolder.of, all_rounds(recipe))
    assert torch.equal(parameters(second.start), parameters(first.model))
    assert not torch.equal(parameters(second.model), parameters(first.model))
    shards = [candidates for _, candidates in iterate_candidates(second.candidates("train"))]
    assert shards[0].sources == ("judgement", "bm25", "student")
    assert sum(int((candidates.source == 2).sum()) for candidates in shards) > 0
    digest = {"content": content_hash(first.model)}
    assert read_manifest(second.candidates("train")).fields["miners"]["student"]["model"] == digest
    assert read_manifest(second.model).fields["student"]["model"] == digest
    rows = {row["name"]: row for row in json.loads(second.evaluation.read_text())["rows"]}
    assert list(rows) == ["BM25", "previous", "student"]
    first_rows = {row["name"]: row for row in json.loads(first.evaluation.read_text())["rows"]}
    assert rows["previous"]["metrics"] == first_rows["student"]["metrics"]


def test_a_finished_run_with_rounds_is_not_repeated_and_shows_both_rounds(two_rounds, caplog, capsys):
    recipe, _ = two_rounds
    before = files(recipe.folder)
    with caplog.at_level("INFO"):
        run_pipeline(recipe)
    assert "everything was done already" in caplog.text and files(recipe.folder) == before
    shown = capsys.readouterr().out
    assert "round 1" in shown and "round 2" in shown and f"{recipe.folder}/round-2/model" in shown
    states = stage_states(open_runs(recipe), verify=True)
    assert {state.state for state in states} == {"done"}
    assert [state.stage for state in states if state.round == 2] == ["mine", "score", "label", "train", "evaluate"]


def test_a_changed_entry_of_the_second_round_makes_only_that_round_stale(two_rounds):
    recipe, _ = two_rounds
    states = stage_states(open_runs(with_rounds(recipe, {**SECOND, "train": {"lr": 1e-4, "steps": 3}})))
    assert {(state.round, state.stage): state.state for state in states if state.state != "done"} == {
        (2, "train"): "stale",
        (2, "evaluate"): "pending",
    }
    with pytest.raises(FingerprintError, match=r"round-2/model was made from .*train\.lr 0\.0005 -> 0\.0001"):
        run_pipeline(with_rounds(recipe, {**SECOND, "train": {"lr": 1e-4, "steps": 3}}))


def test_a_changed_student_of_the_first_round_makes_the_second_round_stale(two_rounds):
    recipe, _ = two_rounds
    extra = RunFolder.of(recipe).model / "note.txt"
    extra.write_text("another checkpoint")
    try:
        state = next(state for state in stage_states([open_run(recipe, round=2)]) if state.stage == "mine")
        assert state.state == "stale" and "miners.student.model.content" in state.reason
    finally:
        extra.unlink()


def test_the_recipe_file_of_a_round_suffices_for_its_stages(two_rounds):
    recipe, _ = two_rounds
    second = load_recipe(recipe.folder / "round-2" / "recipe.yaml")
    assert second == all_rounds(recipe)[1]
    assert {state.state for state in stage_states(open_runs(second))} == {"done"}
    with pytest.raises(RecipeError, match="stage 'import' runs in the first round only"):
        run_pipeline(second, only="import")


def test_tools_that_take_a_run_folder_accept_that_of_a_round(two_rounds, capsys):
    recipe, _ = two_rounds
    second = recipe.folder / "round-2"
    assert run_at(second).passages == RunFolder.of(recipe).passages and run_at(recipe.folder).first is None
    shown = compare(second, recipe.folder)
    assert shown["queries"] == 10 and len(shown["comparisons"]) == 1
    inspect_path(second / "scores" / "bm25" / "train" / "part-00000.arrow", None, rows=2, as_query=False)
    assert "where is" in capsys.readouterr().out


def test_an_entry_of_rounds_is_a_merge_patch_on_the_recipe(tmp_path):
    base = small_recipe(
        tmp_path,
        mine={"miners": {"bm25": {"kind": "bm25", "top": 9, "skip": 2}}},
        train={"losses": [{"kind": "kl"}, {"kind": "infonce"}], "lr": 1e-3},
    )
    first, second, third = all_rounds(
        with_rounds(
            base,
            {"mine": {"miners": {"bm25": {"top": 3}}}, "train": {"losses": [{"kind": "margin-mse"}]}},
            {"mine": {"miners": {"bm25": None, "own": {"kind": "splade", "model": "round:previous"}}}},
        )
    )
    assert first.train == base.train and first.folder == tmp_path
    assert (second.mine.miners["bm25"].top, second.mine.miners["bm25"].skip) == (3, 2)
    assert [loss.kind for loss in second.train.losses] == ["margin-mse"] and second.train.lr == 1e-3
    assert list(third.mine.miners) == ["own"] and third.train == base.train  # not from the round before
    assert third.mine.miners["own"].model == str(tmp_path / "round-2" / "model")
    assert parse_recipe(json.loads(third.model_dump_json())) == third and "rounds: []" in dump_recipe(third)


def test_a_round_on_the_previous_student_does_not_learn_bm25_again(tmp_path):
    base = small_recipe(tmp_path, student={"model": "m", "lexical_start": {"epochs": 2}})
    anew, further, asked = (
        all_rounds(with_rounds(base, {"student": student}))[1].student.lexical_start
        for student in (
            {"query_max_length": 32},
            {"model": "round:previous"},
            {"model": "round:previous", "lexical_start": {"epochs": 1}},
        )
    )
    assert (anew.epochs, further, asked.epochs) == (2, None, 1)


def test_only_a_round_that_starts_anew_has_a_calibrated_start(tmp_path):
    base = small_recipe(tmp_path, student={"model": "m", "revision": "v1", "start": "calibrated"})
    _, anew, further = all_rounds(with_rounds(base, {}, {"student": {"model": "round:previous"}}))
    assert (anew.student.start, anew.student.revision) == ("calibrated", "v1")
    assert (further.student.start, further.student.revision) == ("mlm", None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data": {"limit": 3}}, "round 2 cannot have its own 'data'"),
        ({"train": {"lrr": 1}}, "rounds.0: unknown field 'train.lrr'; did you mean 'lr'"),
        ({"teachers": {"new": {"kind": "cross-encoder", "model": "m", "fine_tune": {}}}}, "in the first round only"),
        ({"teachers": {"given": {"kind": "imported"}}}, r"teachers: \{given: null\}"),
        ({"student": None}, "rounds.0: a further round trains a student"),
    ],
)
def test_what_a_round_cannot_change_is_refused_with_a_remedy(tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        all_rounds(with_rounds(small_recipe(tmp_path), changes))


def test_a_first_round_from_the_previous_round_and_an_unknown_round_are_refused(tmp_path):
    with pytest.raises(RecipeError, match=r"student\.model is 'round:previous', but no round precedes the first"):
        small_recipe(tmp_path, student={"model": "round:previous"})
    with pytest.raises(RecipeError, match="there is no round 2: the recipe has 1"):
        open_run(small_recipe(tmp_path), round=2)


def test_the_jobs_of_all_rounds_depend_on_one_another_in_order(tmp_path, capsys):
    submit_jobs(with_rounds(small_recipe(tmp_path / "run", slurm={"array": 2}), SECOND), dry_run=True)
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("sbatch ")]
    names = [word.removeprefix("--job-name=distill-") for command in commands for word in command if "job-name" in word]
    rest = ["score", "label", "train", "evaluate"]
    assert names == ["import-mine", *rest, "mine", *rest]
    waits = [word.rpartition(" of ")[2].rstrip(">") for command in commands for word in command if "afterok" in word]
    assert waits == ["mine", *rest, "mine", *rest[:-1]]
    recipes = [str(tmp_path / "run" / place / "jobs" / "<number>" / "recipe.yaml") for place in ("", "round-2")]
    assert [command[-1] for command in commands] == [path for path in recipes for _ in range(5)]
