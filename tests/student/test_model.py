"""Students of many architectures: the sparse head equals the pooling of the model's own materialised logits."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import transformers

from distill import config
from distill.errors import StudentError
from distill.sparse.reps import RepsGradient
from distill.student.checkpoint import load_student
from distill.student.dropout import set_dropout
from distill.student.model import SpladeStudent, longest_input, start_splade
from tests.helpers.tiny_models import tiny_tokenizer

SMALL = {
    "vocab_size": 97,
    "hidden_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 40,
    "pad_token_id": 0,
    "initializer_range": 0.3,
}
ARCHITECTURES = {
    "Bert": {},
    "DistilBert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 24},
    "Roberta": {},
    "MPNet": {},
    "XLMRoberta": {},
    "Camembert": {},
    "Electra": {"embedding_size": 8},
    "Albert": {"embedding_size": 8},
    "DebertaV2": {},
    "ModernBert": {
        "cls_token_id": 1,
        "sep_token_id": 2,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "global_attn_every_n_layers": 2,
        "local_attention": 8,
    },
}
LENGTHS = {"query_max_length": 16, "passage_max_length": 32}


def random_mlm(name, **more):
    torch.manual_seed(0)
    changes = {**ARCHITECTURES[name], **more}
    fields = (
        SMALL
        if "dim" not in changes
        else {k: SMALL[k] for k in ("vocab_size", "max_position_embeddings", "pad_token_id", "initializer_range")}
    )
    mlm = getattr(transformers, f"{name}ForMaskedLM")(getattr(transformers, f"{name}Config")(**{**fields, **changes}))
    bias = mlm.get_output_embeddings().bias
    if bias is not None:
        torch.nn.init.normal_(bias, -0.5, 0.5)
    return mlm.eval()


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_gives_the_pooled_logits_and_gradients_of_its_own_forward(name):
    mlm = random_mlm(name)
    torch.manual_seed(1)
    ids = torch.randint(5, 97, (3, 11))
    mask = (torch.arange(11) < torch.tensor([[11], [4], [1]])).long()
    upstream = torch.randn(3, 97)
    names = [name for name, _ in mlm.named_parameters()]
    expected = (mlm(input_ids=ids, attention_mask=mask).logits * mask[..., None]).relu().log1p().max(1).values
    (expected * upstream).sum().backward()
    gradients = {name: p.grad.clone() for name, p in mlm.named_parameters() if p.grad is not None}
    mlm.zero_grad()

    student = SpladeStudent(mlm, tiny_tokenizer(), **LENGTHS)
    assert [name.removeprefix("mlm.") for name, _ in student.named_parameters()] == names
    reps = student(ids, mask)
    assert 0 < reps.terms.numel() < 3 * 97
    torch.testing.assert_close(reps.to_dense(), expected.detach(), rtol=1e-5, atol=1e-5)
    grad_values = upstream[reps.row_ids, reps.terms]
    for loss in (
        (reps.values * grad_values).sum(),
        student.surrogate(ids, mask, "passage", reps.detach(), RepsGradient(grad_values)),
    ):
        mlm.zero_grad()
        loss.backward()
        assert {name for name, p in mlm.named_parameters() if p.grad is not None} == set(gradients)
        for parameter, gradient in gradients.items():
            torch.testing.assert_close(mlm.get_parameter(parameter).grad, gradient, rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize("name", ["Bert", "Roberta", "XLMRoberta", "MPNet", "Electra", "DistilBert", "ModernBert"])
def test_the_longest_input_is_the_number_of_usable_positions(name):
    tokenizer = tiny_tokenizer()
    tokenizer.model_max_length = 10**30  # transformers' value for a tokenizer without a limit
    mlm = random_mlm(name, pad_token_id=1)
    longest = longest_input(mlm, tokenizer)
    assert longest == (38 if name in ("Roberta", "XLMRoberta", "MPNet") else 40)
    ids = torch.full((1, longest + 1), 7)
    assert mlm(input_ids=ids[:, 1:]).logits.shape[1] == longest
    if name != "ModernBert":  # its positions are rotary
        with pytest.raises((IndexError, RuntimeError)):
            mlm(input_ids=ids)


def test_texts_are_assembled_as_the_tokenizer_does(tiny_mlm):
    student = start_splade(config.Student(model=str(tiny_mlm)))
    texts = ["the function returns a sorted list", "", "open", "a b c d e f g h i j k l m n o p"]
    plain = student.tokenizer(texts, add_special_tokens=False)["input_ids"]
    ids, mask = student.assemble([np.array(row, dtype=np.int32) for row in plain], 12)
    expected = student.tokenizer(texts, padding=True, truncation=True, max_length=12, return_tensors="pt")
    assert torch.equal(ids, expected["input_ids"]) and torch.equal(mask, expected["attention_mask"])
    assert student.assemble([], 12)[0].shape == (0, 0)
    with pytest.raises(StudentError, match="no room"):
        student.assemble([np.array([7])], 1)


def test_the_head_clears_its_call_when_the_model_raises(tiny_mlm):
    student = start_splade(config.Student(model=str(tiny_mlm)))
    with pytest.raises(IndexError):
        student(torch.tensor([[10**6]]), torch.ones(1, 1, dtype=torch.long))
    with pytest.raises(RuntimeError, match="attention mask"):
        student.mlm(input_ids=torch.tensor([[2, 3]]))


@pytest.mark.parametrize("name", ["Bert", "DistilBert", "ModernBert", "DebertaV2"])
def test_student_layers_keeps_the_lower_layers(name, tmp_path):
    mlm = random_mlm(name)
    mlm.save_pretrained(tmp_path)
    tiny_tokenizer().save_pretrained(tmp_path)
    student = start_splade(config.Student(model=str(tmp_path), layers=1, **LENGTHS))
    assert student.mlm.config.num_hidden_layers == 1
    parameters = dict(student.mlm.named_parameters())
    assert len(parameters) < len(dict(mlm.named_parameters()))
    assert all(torch.equal(parameter, mlm.get_parameter(name)) for name, parameter in parameters.items())
    assert student(torch.tensor([[2, 9, 3]]), torch.ones(1, 3, dtype=torch.long)).terms.numel()
    with pytest.raises(StudentError, match="the model has 2"):
        start_splade(config.Student(model=str(tmp_path), layers=3))


def test_a_backbone_without_an_mlm_head_gets_a_calibrated_one(tiny_sentence):
    texts = ["the function returns a sorted list", "open the file for reading", "a new world of words"] * 5
    student = start_splade(config.Student(model=str(tiny_sentence), calibration={"passages": 12}), texts)
    ids = student.tokenizer(texts[:3], add_special_tokens=False)["input_ids"]
    active = student(*student.assemble(ids, 32)).nnz
    assert active.min() > 0 and active.max() < student.vocab_size / 2


def test_architectures_whose_logits_are_not_the_decoders_output_are_refused(tmp_path):
    from transformers import EsmConfig, EsmForMaskedLM, MobileBertConfig, MobileBertForMaskedLM

    others = [
        random_mlm("DebertaV2", legacy=False),
        EsmForMaskedLM(EsmConfig(**SMALL)),
        MobileBertForMaskedLM(MobileBertConfig(**SMALL, embedding_size=8, intra_bottleneck_size=8, true_hidden_size=8)),
    ]
    for mlm in others:
        mlm.save_pretrained(tmp_path / "mlm")
        tiny_tokenizer().save_pretrained(tmp_path / "mlm")
        for load in (lambda name: start_splade(config.Student(model=name, **LENGTHS)), load_student):
            with pytest.raises(StudentError, match=f"cannot be a student: the logits of {type(mlm).__name__} are not"):
                load(str(tmp_path / "mlm"))


def test_a_student_is_loaded_without_drawing_random_numbers(tiny_mlm):
    before = torch.get_rng_state()
    student = start_splade(config.Student(model=str(tiny_mlm)))
    assert torch.equal(torch.get_rng_state(), before) and not student.mlm.training


def test_set_dropout_reaches_every_dropout_of_a_model(tiny_mlm):
    ids, mask = torch.tensor([[2, 40, 50, 60, 3]]), torch.ones(1, 5, dtype=torch.long)
    student = start_splade(config.Student(model=str(tiny_mlm))).train()
    assert not torch.equal(student(ids, mask).to_dense(), student(ids, mask).to_dense())
    set_dropout(student, 0.0)
    assert torch.equal(student(ids, mask).to_dense(), student(ids, mask).to_dense())


def test_lower_case_of_the_recipe_applies_to_a_cased_tokenizer(tmp_path):
    from transformers import BertTokenizer

    random_mlm("Bert").save_pretrained(tmp_path)
    BertTokenizer(
        vocab={piece: i for i, piece in enumerate(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "the"])},
        do_lower_case=False,
        model_max_length=40,
    ).save_pretrained(tmp_path)
    student = start_splade(config.Student(model=str(tmp_path), lower_case=True, **LENGTHS))
    assert student.tokenizer("THE", add_special_tokens=False)["input_ids"] == [5]


def test_models_that_cannot_be_students_are_refused(tiny_mlm, tiny_sentence, tmp_path):
    with pytest.raises(StudentError, match="masked language model"):
        start_splade(config.Student(model=str(tmp_path)))
    with pytest.raises(StudentError, match="no MLM head"):
        start_splade(config.Student(model=str(tiny_sentence), start="mlm"))
    with pytest.raises(StudentError, match="needs passages"):
        start_splade(config.Student(model=str(tiny_sentence)))
    with pytest.raises(StudentError, match=r"student\.passage_max_length is 4096"):
        start_splade(config.Student(model=str(tiny_mlm), passage_max_length=4096))
