"""naver's RankT5 head, against the formula written out on a tiny random T5."""

import numpy as np
import torch
from transformers import T5Config, T5EncoderModel

from teachers.rank_t5 import RankT5
from tests.helpers.tiny_models import tiny_tokenizer

QUERIES = ["open a file", "sort a list of numbers", "time"]
PASSAGES = ["read the file and close it", "the list is sorted", "the time of day as a number of seconds"]


def save_rank_t5(folder):
    """Save a tiny random RankT5 and its tokenizer; returns its encoder and the parts of its head."""
    tokenizer = tiny_tokenizer()
    tokenizer.save_pretrained(folder)
    config = T5Config(vocab_size=len(tokenizer), d_model=16, d_kv=8, d_ff=32, num_layers=2, num_heads=2)
    config.save_pretrained(folder)
    torch.manual_seed(0)
    encoder = T5EncoderModel(config).eval()
    parts = torch.nn.ModuleDict(
        {
            "first_transform": torch.nn.Linear(16, 16),
            "layer_norm": torch.nn.LayerNorm(16, eps=1e-12),
            "linear": torch.nn.Linear(16, 1),
        }
    )
    torch.save(
        {**{f"model.{k}": v for k, v in encoder.state_dict().items()}, **parts.state_dict()},
        folder / "pytorch_model.bin",
    )
    return encoder, parts


def test_rank_t5_scores_are_linear_layernorm_linear_of_the_first_token(tmp_path):
    encoder, parts = save_rank_t5(tmp_path)
    tokenizer = tiny_tokenizer()
    expected = []
    for query, passage in zip(QUERIES, PASSAGES, strict=True):
        with torch.no_grad():
            ids = tokenizer(query, passage, return_tensors="pt")["input_ids"]
            hidden = encoder(input_ids=ids).last_hidden_state[:, 0]
            expected.append(parts["linear"](parts["layer_norm"](parts["first_transform"](hidden))).item())

    scores = RankT5(str(tmp_path), backbone=str(tmp_path)).score(QUERIES, PASSAGES)
    np.testing.assert_allclose(scores, expected, rtol=1e-4, atol=1e-5)
