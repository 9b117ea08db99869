"""Rounds: the real pipeline twice over, the second time from the student of the first; and what a recipe may say."""

import json
import shlex
import shutil

import pytest
import torch
from small_run import small_recipe

from distill.data.candidates import iterate_candidates
from distill.data.checkpoints import checkpoint_digest
from distill.data.layout import RunFolder, run_at
from distill.data.manifest import read_manifest
from distill.errors import FingerprintError, RecipeError
from distill.evaluation.compare import compare
from distill.inspection import inspect_path
from distill.pipeline import run, stage_states
from distill.recipe_file import dump_recipe, load_recipe, parse_recipe
from distill.rounds import all_rounds, round_of
from distill.student.checkpoint import load_checkpoint
from distill.submit import submit_jobs

SECOND = {
    "mine": {"miners": {"student": {"kind": "splade", "model": "round:previous", "top": 4}}},
    "score": {"rerank": False},
    "student": {"model": "round:previous"},
    "train": {"lr": 5e-4, "steps": 3},
}


def with_rounds(recipe, *rounds):
    return parse_recipe({**recipe.model_dump(mode="json"), "rounds": list(rounds)})


def parameters(path) -> torch.Tensor:
    return torch.cat([p.flatten() for p in load_checkpoint(path).parameters()])


def files(folder) -> dict:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def two_rounds(tmp_path_factory, finished):
    """A copy of a finished run that has got a second round since, as if it had been killed between the two.

    The recipe, and when the files of the first round were written.
    """
    root = tmp_path_factory.mktemp("rounds") / "run"
    shutil.copytree(finished.folder, root)
    before = files(root)
    recipe = with_rounds(finished.model_copy(update={"run_dir": root}), SECOND)
    run(recipe)
    return recipe, before


def test_a_run_killed_between_rounds_goes_on_and_leaves_the_first_as_it_was(two_rounds):
    recipe, before = two_rounds
    assert before.items() <= files(recipe.folder).items()
    second = RunFolder.of(all_rounds(recipe)[1])
    assert second.root == recipe.folder / "round-2" and second.evaluation.is_file() and second.report.is_file()
    assert not (second.root / "data").exists() and not (second.root / "teachers").exists()


def test_the_second_round_mines_with_the_first_rounds_student_and_starts_from_its_weights(two_rounds):
    recipe, _ = two_rounds
    first, second = map(RunFolder.of, all_rounds(recipe))
    assert torch.equal(parameters(second.start), parameters(first.model))
    assert not torch.equal(parameters(second.model), parameters(first.model))
    found = [candidates for _, candidates in iterate_candidates(second.candidates("train"))]
    assert found[0].sources == ("judgement", "bm25", "student")
    assert sum(int((candidates.source == 2).sum()) for candidates in found) > 0
    digest = {"checkpoint": checkpoint_digest(first.model)}
    assert read_manifest(second.candidates("train")).fields["miners"]["student"]["model"] == digest
    assert read_manifest(second.model).fields["student"]["model"] == digest
    rows = {row["name"]: row for row in json.loads(second.evaluation.read_text())["rows"]}
    assert list(rows) == ["BM25", "previous", "student"]
    theirs = {row["name"]: row for row in json.loads(first.evaluation.read_text())["rows"]}["student"]
    assert rows["previous"]["metrics"] == theirs["metrics"]


def test_started_again_everything_is_done_and_both_rounds_are_shown(two_rounds, caplog, capsys):
    recipe, _ = two_rounds
    before = files(recipe.folder)
    with caplog.at_level("INFO"):
        run(recipe)
    assert "everything was done already" in caplog.text and files(recipe.folder) == before
    shown = capsys.readouterr().out
    assert "round 1" in shown and "round 2" in shown and f"{recipe.folder}/round-2/model" in shown
    states = stage_states(recipe, verify=True)
    assert {state.state for state in states} == {"done"}
    assert [state.stage for state in states if state.round == 2] == ["mine", "score", "label", "train", "evaluate"]


def test_a_changed_override_of_the_second_round_makes_only_that_one_stale(two_rounds):
    recipe, _ = two_rounds
    states = stage_states(with_rounds(recipe, {**SECOND, "train": {"lr": 1e-4, "steps": 3}}))
    assert {(state.round, state.stage): state.state for state in states if state.state != "done"} == {
        (2, "train"): "stale",
        (2, "evaluate"): "pending",
    }
    with pytest.raises(FingerprintError, match=r"round-2/model was made from .*train\.lr 0\.0005 -> 0\.0001"):
        run(with_rounds(recipe, {**SECOND, "train": {"lr": 1e-4, "steps": 3}}))


def test_another_student_of_the_first_round_makes_the_second_stale(two_rounds):
    recipe, _ = two_rounds
    extra = RunFolder.of(recipe).model / "note.txt"
    extra.write_text("another checkpoint")
    try:
        state = next(state for state in stage_states(round_of(recipe, 2)) if state.stage == "mine")
        assert state.state == "stale" and "miners.student.model.checkpoint" in state.reason
    finally:
        extra.unlink()


def test_each_rounds_own_recipe_file_is_enough_for_its_stages(two_rounds):
    recipe, _ = two_rounds
    own = load_recipe(recipe.folder / "round-2" / "recipe.yaml")
    assert own == all_rounds(recipe)[1]
    assert {state.state for state in stage_states(own)} == {"done"}
    with pytest.raises(RecipeError, match="no stage 'import' of its own"):
        run(own, only="import")


def test_tools_that_take_a_folder_know_a_round_by_where_it_lies(two_rounds, capsys):
    recipe, _ = two_rounds
    second = recipe.folder / "round-2"
    assert run_at(second).passages == RunFolder.of(recipe).passages and run_at(recipe.folder).first is None
    shown = compare(second, recipe.folder)
    assert shown["queries"] == 10 and len(shown["comparisons"]) == 1
    inspect_path(second / "scores" / "bm25" / "train" / "part-00000.arrow", None, rows=2, as_query=False)
    assert "where is" in capsys.readouterr().out


def test_a_round_is_the_recipe_with_a_merge_patch(tmp_path):
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
    assert list(third.mine.miners) == ["own"] and third.train == base.train  # of the recipe, not of the round before
    assert third.mine.miners["own"].model == str(tmp_path / "round-2" / "model")
    assert parse_recipe(json.loads(third.model_dump_json())) == third and "rounds: []" in dump_recipe(third)


def test_a_calibrated_start_is_the_first_rounds_alone(tmp_path):
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
    ],
)
def test_what_a_round_cannot_say_is_refused_with_a_remedy(tmp_path, changes, message):
    with pytest.raises(RecipeError, match=message):
        all_rounds(with_rounds(small_recipe(tmp_path), changes))


def test_the_first_round_has_none_before_it(tmp_path):
    with pytest.raises(RecipeError, match=r"student\.model is 'round:previous', but the first round"):
        small_recipe(tmp_path, student={"model": "round:previous"})
    with pytest.raises(RecipeError, match="there is no round 2: the recipe has 1"):
        round_of(small_recipe(tmp_path), 2)


def test_the_jobs_of_all_rounds_wait_for_one_another(tmp_path, capsys):
    submit_jobs(with_rounds(small_recipe(tmp_path / "run", slurm={"array": 2}), SECOND), dry_run=True)
    commands = [shlex.split(line) for line in capsys.readouterr().out.splitlines() if line.startswith("sbatch ")]
    names = [word.removeprefix("--job-name=distill-") for command in commands for word in command if "job-name" in word]
    rest = ["score", "label", "train", "evaluate"]
    assert names == ["import-mine", *rest, "mine", *rest]
    waits = [word.rpartition(" of ")[2].rstrip(">") for command in commands for word in command if "afterok" in word]
    assert waits == ["mine", *rest, "mine", *rest[:-1]]
    recipes = [str(tmp_path / "run" / place / "jobs" / "<number>" / "recipe.yaml") for place in ("", "round-2")]
    assert [command[-1] for command in commands] == [path for path in recipes for _ in range(5)]
