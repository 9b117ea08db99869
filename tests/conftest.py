"""Tiny models shared by all tests, made once per session without a model hub."""

from __future__ import annotations

import os
from pathlib import Path

if os.environ.get("DISTILL_TEST_GPU") != "1":  # `make test` tests on the CPU everywhere, `make test-gpu` the GPU
    os.environ["CUDA_VISIBLE_DEVICES"] = ""  # before torch is imported; processes that tests start inherit it

import pytest
import torch

from tests.helpers.tiny_models import tiny_config, tiny_tokenizer

# processes started by tests import this tree, not an installed one
os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, (str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH"))))
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


def pytest_addoption(parser):
    parser.addoption("--kills", type=int, default=60, help="kills in the slow test of random kills")
    parser.addoption("--fault-points", type=int, default=60, help="stops in the slow test of faults")
    parser.addoption("--signal-points", type=int, default=8, help="signals in the slow test of all stages")


def pytest_collection_modifyitems(items):
    for item in items:
        # one process for each file, whose fixtures are made once, and one for all of Ray
        ray = "tests/ray_jobs/" in item.nodeid
        item.add_marker(pytest.mark.xdist_group("ray" if ray else item.nodeid.split("::")[0]))
        if "gpu" in item.keywords and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="needs a CUDA device"))


@pytest.fixture(scope="session")
def tiny_mlm(tmp_path_factory) -> Path:
    """Folder with a random BertForMaskedLM and its tokenizer."""
    from transformers import BertForMaskedLM

    torch.manual_seed(0)
    path, tokenizer = tmp_path_factory.mktemp("tiny-mlm"), tiny_tokenizer()
    model = BertForMaskedLM(tiny_config(tokenizer))
    with torch.no_grad():  # so that some terms are active and some are not
        model.get_output_embeddings().bias.normal_(-1.0, 1.0)
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def finished(tmp_path_factory, tiny_mlm, tiny_sentence):
    """Recipe of a finished run over a hundred passages, which tests must not change."""
    from distill.pipeline.run import run_pipeline
    from tests.helpers.whole_run import whole_recipe

    recipe = whole_recipe(tmp_path_factory.mktemp("pipeline"), tiny_mlm, tiny_sentence)
    run_pipeline(recipe)
    return recipe


@pytest.fixture(scope="session")
def tiny_classifier(tmp_path_factory) -> Path:
    """Folder with a random cross-encoder (BertForSequenceClassification, one label) and its tokenizer."""
    from transformers import BertForSequenceClassification

    torch.manual_seed(1)
    path, tokenizer = tmp_path_factory.mktemp("tiny-classifier"), tiny_tokenizer()
    BertForSequenceClassification(tiny_config(tokenizer, num_labels=1)).save_pretrained(path)
    tokenizer.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def tiny_sentence(tmp_path_factory) -> Path:
    """Folder with a random SentenceTransformer (a BertModel without an MLM head, mean pooling)."""
    from sentence_transformers import SentenceTransformer
    from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
    from transformers import BertModel

    torch.manual_seed(2)
    body, path = tmp_path_factory.mktemp("tiny-body"), tmp_path_factory.mktemp("tiny-sentence")
    tokenizer = tiny_tokenizer()
    BertModel(tiny_config(tokenizer), add_pooling_layer=False).save_pretrained(body)
    tokenizer.save_pretrained(body)
    SentenceTransformer(modules=[Transformer(str(body)), Pooling(32)], device="cpu").save(str(path))
    return path
