"""CSR students, and students of one's own, in training: the losses of sentence-transformers, exactly, and resumed."""

import pytest
import torch
from csr_worker import TRAIN, VOCABULARY, start
from make_recipe import make_recipe
from reference import LISTS, PASSAGE_LENGTH, QUERY_LENGTH, dense_objective, make_batch, train_section
from safetensors.torch import load_file
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.losses import CSRReconstructionLoss

from distill import config
from distill.data.layout import RunFolder
from distill.errors import DistillError
from distill.mining.encode import encode_texts
from distill.student.checkpoint import load_checkpoint, save_student
from distill.student.csr import CsrStudent
from distill.training.checkpoints import load, newest
from distill.training.engine import Engine
from distill.training.loop import train
from distill.training.opening import training_fields

CSR = {"kind": "csr", "k": 8, "latents": 96, "query_max_length": 12, "passage_max_length": 24}
WITHOUT = {"query_regularizers": [], "passage_regularizers": []}


def reference_outputs(student, ids, max_length):
    """What sentence-transformers' own modules give, padded as one batch.

    Dead are the latents that were so before the step: there, those that fire in a batch are taken out just before.
    """
    features = dict(zip(("input_ids", "attention_mask"), student.assemble(ids, max_length), strict=True))
    for module in student.dense:
        features = module(features)
    encoder = student.autoencoder
    seen, mask = encoder.stats_last_nonzero.clone(), encoder.auxk_mask_fn
    encoder.auxk_mask_fn = lambda latents: latents * (seen > encoder.dead_threshold)
    features = encoder(features)
    encoder.stats_last_nonzero.copy_(seen)
    encoder.auxk_mask_fn = mask
    return features


def reference_step(student, section, queries, passages, labels):
    """SGD on the whole batch, the losses added up from the published ones."""
    columns = [
        reference_outputs(student, queries, QUERY_LENGTH),
        *(reference_outputs(student, passages[i::LISTS], PASSAGE_LENGTH) for i in range(LISTS)),
    ]
    reps = [column["sentence_embedding"] for column in columns]
    parts = CSRReconstructionLoss(None, beta=0.3).compute_loss_from_embeddings(columns)
    lists = torch.stack(reps[1:], 1)  # [b, 1+n, V]
    loss = dense_objective(section, reps[0], lists.flatten(0, 1), labels) + 2.0 * sum(parts.values())
    loss.backward()
    torch.nn.utils.clip_grad_norm_(student.parameters(), 1.0)
    with torch.no_grad():
        for parameter in student.parameters():
            if parameter.grad is not None:
                parameter -= 0.01 * parameter.grad
                parameter.grad = None


@pytest.mark.parametrize("processes", [1, 2])
def test_cached_steps_equal_the_losses_of_sentence_transformers(processes, run_processes, tiny_sentence, tmp_path):
    run_processes(processes, "csr_worker.py", tiny_sentence, tmp_path)
    student, section = start(str(tiny_sentence)).train(), train_section(**TRAIN)
    before = {name: value.detach().clone() for name, value in student.named_parameters()}
    for step in range(2):
        reference_step(student, section, *make_batch(step, VOCABULARY))
    for stage in (0, 2):
        got = torch.load(tmp_path / f"zero{stage}.pt")
        for name, value in student.named_parameters():
            difference = (got[name] - value).norm()
            assert difference <= 1e-5 * value.norm() + 1e-6, name
            assert difference <= 1e-3 * (value - before[name]).norm() + 1e-6, f"change of {name}"
        assert (student.autoencoder.encoder.weight - before["autoencoder.encoder.weight"]).abs().max() > 1e-4


def test_it_is_saved_as_sparse_encoder_reads_it_and_the_other_way_round(tiny_sentence, tmp_path):
    texts = ["about time", "work and a longer text about words"]
    recipe = make_recipe(tiny_sentence, tmp_path, student={**CSR, "prompts": {"query": "ask: "}}, **WITHOUT)
    student = CsrStudent.start(recipe.student).eval()
    save_student(student, tmp_path / "model")
    encoder = SparseEncoder(str(tmp_path / "model"), device="cpu")
    for side, encode in (("query", encoder.encode_query), ("passage", encoder.encode_document)):
        ours = encode_texts(student, texts, side).toarray()
        assert ours == pytest.approx(encode(texts, convert_to_sparse_tensor=False).numpy(), rel=1e-5, abs=1e-6)
        assert (ours > 0).sum(1).max() <= 8
    encoder.save(str(tmp_path / "theirs"))
    again = load_checkpoint(tmp_path / "theirs")
    assert (again.query_max_length, again.passage_max_length, again.prompts) == (12, 24, {"query": "ask: "})
    assert (encode_texts(again, texts, "query") != encode_texts(student, texts, "query")).nnz == 0


def test_trained_from_a_recipe_it_resumes_exactly_counts_included(tiny_sentence, run_folder, copied, monkeypatch):
    settings = {
        "student": {**CSR, "dead_after": 1},
        "steps": 4,
        "checkpoints": {"every": 2},
        "reconstruction": {"beta": 0.5},
        **WITHOUT,
    }
    recipe = make_recipe(tiny_sentence, run_folder, **settings)
    train(recipe, RunFolder(recipe.folder))
    interrupted = make_recipe(tiny_sentence, copied, **settings)
    folder, made = RunFolder(interrupted.folder), []

    def killed_at_the_third(engine, factor, step=Engine.step):
        made.append(factor)
        if len(made) == 3:
            raise KeyboardInterrupt
        return step(engine, factor)

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(Engine, "step", killed_at_the_third)
        train(interrupted, folder)
    saved = load(newest(folder, training_fields(interrupted, folder)))["parameters"]["autoencoder.stats_last_nonzero"]
    assert set(saved.tolist()) == {0, 1, 2}
    train(interrupted, folder)
    found, expected = (load_checkpoint(RunFolder(each.folder).model).state_dict() for each in (interrupted, recipe))
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


def test_a_frozen_dense_model_stays_as_it_is(tiny_sentence, run_folder):
    recipe = make_recipe(
        tiny_sentence,
        run_folder,
        student={**CSR, "frozen": True},
        steps=2,
        reconstruction={},
        deepspeed={"zero_optimization": {"stage": 1}},
        **WITHOUT,
    )
    folder = RunFolder(recipe.folder)
    train(recipe, folder)
    start, model = (load_file(path / "model.safetensors") for path in (folder.start, folder.model))
    assert all(torch.equal(model[name], value) for name, value in start.items())
    start, model = (load_checkpoint(path).autoencoder.encoder.weight for path in (folder.start, folder.model))
    assert not torch.equal(start, model)


class Halved(CsrStudent):
    """A student of one's own: half the latents that its options ask for."""

    @classmethod
    def start(cls, cfg, texts=()):
        latents = cfg.options["latents"] // 2
        fields = {"model": cfg.model, "query_max_length": 12, "passage_max_length": 24}
        return super().start(config.CsrStudent(kind="csr", latents=latents, k=4, **fields))


def test_a_student_of_ones_own_is_trained_and_found_again(tiny_sentence, run_folder):
    own = {"kind": "custom", "cls": "test_csr:Halved", "options": {"latents": 64}}
    recipe = make_recipe(tiny_sentence, run_folder, student=own, steps=2, **WITHOUT)
    folder = RunFolder(recipe.folder)
    train(recipe, folder)
    found = load_checkpoint(folder.model)
    assert (type(found).__name__, found.vocab_size) == ("Halved", 32)
    assert SparseEncoder(str(folder.model), device="cpu").encode(["about"]).shape[1] == 32


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"student": {**CSR, "latents": 4}}, "student.k is 8, but there are 4 latents"),
        ({"student": CSR, "head_lr": 1e-3}, "train.head_lr: a student of kind csr has no MLM head"),
        ({"student": {}, "reconstruction": {}}, "train.reconstruction is of an autoencoder"),
        ({"student": CSR, "losses": [{"kind": "embedding-mse", "teacher": "given"}]}, "needs a student of kind splade"),
        ({"student": {**CSR, "kind": "dense"}}, "kind is splade, csr or custom"),
        ({"student": {**CSR, "latent": 4}}, "unknown field 'student.latent'; did you mean 'latents'"),
        ({"student": CSR, "deepspeed": {"zero_optimization": {"stage": 3}}}, "stage: 3 takes students of kind splade"),
        ({"student": {"kind": "custom", "cls": "math:pi"}}, "math:pi is no class derived from"),
    ],
)
def test_what_does_not_fit_is_refused_with_its_field(changes, said, tiny_sentence, run_folder):
    with pytest.raises(DistillError, match=said):
        recipe = make_recipe(tiny_sentence, run_folder, **{**WITHOUT, **changes})
        train(recipe, RunFolder(recipe.folder))
