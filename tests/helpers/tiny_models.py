"""Parts of the shared tiny models: a tokenizer of common words, and a minimal BERT configuration."""

from __future__ import annotations

from pathlib import Path

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
WORDS = Path(__file__).with_name("words.txt")


def tiny_tokenizer():
    """Return a fast WordPiece tokenizer of about a thousand English words, letters and suffixes."""
    from transformers import BertTokenizer

    letters = "abcdefghijklmnopqrstuvwxyz0123456789"
    pieces = [
        *SPECIAL,
        *".,;:!?'\"()-/",
        *letters,
        *(f"##{letter}" for letter in letters),
        *WORDS.read_text(encoding="utf-8").split(),
    ]
    return BertTokenizer(vocab={piece: i for i, piece in enumerate(dict.fromkeys(pieces))}, model_max_length=128)


def tiny_config(tokenizer, **changes):
    from transformers import BertConfig

    return BertConfig(
        **{
            "vocab_size": len(tokenizer),
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 128,
            "initializer_range": 0.2,
            **changes,
        }
    )
