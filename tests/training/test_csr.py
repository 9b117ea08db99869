"""CSR and user-defined students in training: the losses of sentence-transformers, exact resume, refused settings."""

import pytest
import torch
from safetensors.torch import load_file
from sentence_transformers import SparseEncoder
from sentence_transformers.sparse_encoder.losses import CSRReconstructionLoss

from distill import config
from distill.errors import DistillError
from distill.retrieval.encode import encode_texts
from distill.run.layout import RunFolder
from distill.run.run import Run
from distill.student.checkpoint import load_student, save_student
from distill.student.csr import CsrStudent
from distill.training.checkpoints import load, newest
from distill.training.engine import Engine
from distill.training.fields import training_fields
from tests.helpers.stages import train
from tests.training.csr_worker import TRAIN, VOCABULARY, start
from tests.training.make_recipe import make_recipe
from tests.training.reference import LISTS, PASSAGE_LENGTH, QUERY_LENGTH, dense_objective, make_batch, train_section

CSR = {"kind": "csr", "k": 8, "latents": 96, "query_max_length": 12, "passage_max_length": 24}
WITHOUT = {"query_regularizers": [], "passage_regularizers": []}


def reference_outputs(student, ids, max_length):
    """The outputs of sentence-transformers' own modules, padded as one batch.

    Dead latents are those that were dead before the step. sentence-transformers revives the ones active in the batch
    first, so its mask and counts are replaced here.
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
    """An SGD step on the whole batch, with the sum of the published losses."""
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
def test_csr_cached_steps_equal_the_losses_of_sentence_transformers(processes, run_processes, tiny_sentence, tmp_path):
    run_processes(processes, "csr_worker", tiny_sentence, tmp_path)
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


def test_a_csr_student_round_trips_through_sparse_encoder(tiny_sentence, tmp_path):
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
    again = load_student(tmp_path / "theirs")
    assert (again.query_max_length, again.passage_max_length, again.prompts) == (12, 24, {"query": "ask: "})
    assert (encode_texts(again, texts, "query") != encode_texts(student, texts, "query")).nnz == 0


def test_csr_training_resumes_exactly_including_activation_counts(tiny_sentence, run_folder, copied, monkeypatch):
    settings = {
        "student": {**CSR, "dead_after": 1, "reconstruction": {"beta": 0.5}},
        "steps": 4,
        "checkpoints": {"every": 2},
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
    saved = load(newest(folder, training_fields(Run(interrupted, folder))))["parameters"][
        "autoencoder.stats_last_nonzero"
    ]
    assert set(saved.tolist()) == {0, 1, 2}
    train(interrupted, folder)
    resumed, expected = (load_student(RunFolder(each.folder).model).state_dict() for each in (interrupted, recipe))
    for name, value in expected.items():
        assert torch.equal(resumed[name], value), name


def test_a_frozen_dense_model_is_not_trained(tiny_sentence, run_folder):
    recipe = make_recipe(
        tiny_sentence,
        run_folder,
        student={**CSR, "frozen": True, "reconstruction": {}},
        steps=2,
        deepspeed={"zero_optimization": {"stage": 1}},
        **WITHOUT,
    )
    folder = RunFolder(recipe.folder)
    train(recipe, folder)
    start, model = (load_file(path / "model.safetensors") for path in (folder.start, folder.model))
    assert all(torch.equal(model[name], value) for name, value in start.items())
    start, model = (load_student(path).autoencoder.encoder.weight for path in (folder.start, folder.model))
    assert not torch.equal(start, model)


class Halved(CsrStudent):
    """A user-defined student, with half the latents that its options ask for."""

    @classmethod
    def start(cls, cfg, texts=()):
        latents = cfg.options["latents"] // 2
        fields = {"model": cfg.model, "query_max_length": 12, "passage_max_length": 24}
        return super().start(config.CsrStudent(kind="csr", latents=latents, k=4, **fields))


def test_a_user_defined_student_is_trained_saved_and_loaded(tiny_sentence, run_folder):
    own = {"kind": "custom", "cls": "tests.training.test_csr:Halved", "options": {"latents": 64}}
    recipe = make_recipe(tiny_sentence, run_folder, student=own, steps=2, **WITHOUT)
    folder = RunFolder(recipe.folder)
    train(recipe, folder)
    student = load_student(folder.model)
    assert (type(student).__name__, student.vocab_size) == ("Halved", 32)
    assert SparseEncoder(str(folder.model), device="cpu").encode(["about"]).shape[1] == 32


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"student": {**CSR, "latents": 4}}, "student.k is 8, but there are only 4 latents"),
        ({"student": CSR, "head_lr": 1e-3}, "train.head_lr: a student of kind csr has no MLM head"),
        ({"student": {"reconstruction": {}}}, "unknown field 'student.reconstruction'"),
        ({"student": CSR, "losses": [{"kind": "embedding-mse", "teacher": "given"}]}, "needs a student of kind splade"),
        ({"student": {**CSR, "kind": "dense"}}, "kind is splade, csr or custom"),
        ({"student": {**CSR, "latent": 4}}, "unknown field 'student.latent'; did you mean 'latents'"),
        (
            {"student": CSR, "deepspeed": {"zero_optimization": {"stage": 3}}},
            "stage: 3 supports students of kind splade",
        ),
        ({"student": {"kind": "custom", "cls": "math:pi"}}, "math:pi is not a class derived from"),
    ],
)
def test_csr_and_user_defined_students_refuse_unsupported_settings(changes, message, tiny_sentence, run_folder):
    with pytest.raises(DistillError, match=message):
        recipe = make_recipe(tiny_sentence, run_folder, **{**WITHOUT, **changes})
        train(recipe, RunFolder(recipe.folder))
