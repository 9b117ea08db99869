"""Token stores: each text tokenised once per tokenizer, without special tokens, memory-mapped.

Ids are uint16 if the vocabulary allows it. A store is keyed by the tokenizer's content and the prefix of its texts.
Texts are cut at `max_tokens`; a store with a larger cut serves smaller ones.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa
import xxhash

from distill.errors import StorageError
from distill.progress import progress
from distill.run.files import locked
from distill.run.model_ref import ModelRef
from distill.run.seals import sealed, take_away
from distill.store.arrow import RowReader, write_ipc
from distill.store.texts import TextStore

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENIZE_ROWS = 2048  # texts per call of the tokenizer
# Options of a slow tokenizer that are not part of its content: its location, and lengths, which are set per call
_NOT_CONTENT = {"name_or_path", "is_local", "local_files_only", "model_max_length"}


def token_key(tokenizer: PreTrainedTokenizerBase | str | Path, prefix: str = "") -> str:
    """Return a hash, 16 hex digits, of the tokenizer's content (not its name) and the prefix."""
    tokenizer = _load(tokenizer)
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is not None:
        import tokenizers

        # truncation and padding are set per call and would make equal tokenizers look different
        plain = tokenizers.Tokenizer.from_str(backend.to_str())
        plain.no_truncation()
        plain.no_padding()
        content = plain.to_str()
    else:
        options = {
            name: value
            for name, value in tokenizer.init_kwargs.items()
            if name not in _NOT_CONTENT and not name.endswith("_file")
        }
        content = (
            f"{type(tokenizer).__name__} {sorted(tokenizer.get_vocab().items())} "
            f"{json.dumps(options, sort_keys=True, default=str)}"
        )
    return xxhash.xxh3_64_hexdigest(f"{content}\0{prefix}".encode())


def build_token_store(
    texts: TextStore, tokenizer: PreTrainedTokenizerBase | str | Path, path: Path, max_tokens: int, prefix: str = ""
) -> TokenStore:
    """Tokenise a text store into `path`, unless it holds a store of these texts with at least this `max_tokens`."""
    if (store := _usable(path, texts, max_tokens)) is not None:
        return store
    # one builder at a time, or a store with a small cut could replace one with a large cut while it is read
    with locked(path):
        store = _usable(path, texts, max_tokens, remove_damaged=True)
        return store or _build(texts, _load(tokenizer), path, max_tokens, prefix)


def _build(
    texts: TextStore, tokenizer: PreTrainedTokenizerBase, path: Path, max_tokens: int, prefix: str
) -> TokenStore:
    value_type = pa.uint16() if len(tokenizer) <= 1 << 16 else pa.int32()
    schema = pa.schema([pa.field("tokens", pa.large_list(value_type)), pa.field("length", pa.int32())])
    metadata = {
        "texts": texts.fingerprint,
        "max_tokens": str(max_tokens),
        "prefix": prefix,
        "tokenizer": token_key(tokenizer, prefix),
    }
    with sealed(path):
        write_ipc(path, schema, _tokenised(texts, tokenizer, max_tokens, prefix, schema, path.stem), metadata)
    return TokenStore.open(path)


@dataclass(frozen=True)
class RaggedTokens:
    """Token ids of n texts, one text after the other: int32 [tokens], and the number of each text's, int64 [n]."""

    ids: np.ndarray
    lengths: np.ndarray

    @property
    def starts(self) -> np.ndarray:
        """Place of each text's first token: int64 [n]."""
        return np.cumsum(self.lengths) - self.lengths


def ranges(starts: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The numbers starts[i], starts[i] + 1, ..., lengths[i] of them for each i, one i after the other: int64."""
    ends = np.cumsum(lengths)
    return np.repeat(starts - (ends - lengths), lengths) + np.arange(int(ends[-1]) if len(ends) else 0)


class TokenStore:
    """Read access to a token store: int32 ids by row, without special tokens."""

    def __init__(self, reader: RowReader):
        self._reader = reader
        self.path = reader.path
        self.max_tokens = int(reader.metadata["max_tokens"])
        self.texts = reader.metadata["texts"]  # fingerprint of the import that wrote the texts
        self._views = [
            (batch.column("tokens").offsets.to_numpy(), batch.column("tokens").values.to_numpy())
            for batch in reader.batches
        ]  # zero-copy

    @classmethod
    def open(cls, path: Path) -> TokenStore:
        return cls(RowReader(path))

    def __len__(self) -> int:
        return len(self._reader)

    @property
    def lengths(self) -> np.ndarray:
        """Number of tokens of each text: int32 [n], read on access."""
        columns = [batch.column("length").to_numpy() for batch in self._reader.batches]
        return columns[0] if len(columns) == 1 else np.concatenate([np.empty(0, np.int32), *columns])

    def take(self, rows: np.ndarray) -> list[np.ndarray]:
        """Return the token ids of rows, in the given order: a list of int32 arrays."""
        batches, local_rows = self._reader.locate(rows)
        ids = []
        for batch, local in zip(batches.tolist(), local_rows.tolist(), strict=True):
            offsets, values = self._views[batch]
            ids.append(values[offsets[local] : offsets[local + 1]].astype(np.int32))
        return ids

    def take_ragged(self, rows: np.ndarray) -> RaggedTokens:
        """Return the token ids of rows, in the given order, as one array."""
        batches, local_rows = self._reader.locate(rows)
        starts, lengths = np.zeros(len(rows), np.int64), np.zeros(len(rows), np.int64)
        for batch in np.unique(batches):
            offsets, _ = self._views[batch]
            here = batches == batch
            starts[here] = offsets[local_rows[here]]
            lengths[here] = offsets[local_rows[here] + 1] - starts[here]
        ids = np.empty(int(lengths.sum()), np.int32)
        for batch in np.unique(batches):
            _, values = self._views[batch]
            here = batches == batch
            ids[np.repeat(here, lengths)] = values[ranges(starts[here], lengths[here])]
        return RaggedTokens(ids, lengths)

    def document_frequencies(self, vocab_size: int, texts: int, max_tokens: int) -> np.ndarray:
        """Count the texts that contain each token, of the first `texts`, cut to `max_tokens`: int64 [vocab_size]."""
        counts = np.zeros(vocab_size, np.int64)
        for start, (offsets, values) in zip(self._reader.starts, self._views, strict=False):
            offsets = offsets[: max(0, texts - int(start)) + 1]
            if len(offsets) < 2:
                break
            lengths = np.diff(offsets)
            text = np.repeat(np.arange(len(lengths)), lengths)
            inside = np.arange(len(text)) - np.repeat(offsets[:-1] - offsets[0], lengths) < max_tokens
            pairs = np.unique(text[inside] * vocab_size + values[offsets[0] : offsets[-1]][inside].astype(np.int64))
            counts += np.bincount(pairs % vocab_size, minlength=vocab_size)
        return counts


def _usable(path: Path, texts: TextStore, max_tokens: int, remove_damaged: bool = False) -> TokenStore | None:
    """Open a store of these texts; None if there is none, or it cannot be opened."""
    if not Path(path).exists():
        return None
    try:
        store = TokenStore.open(path)
        fits = store.texts == texts.fingerprint and len(store) == len(texts)
    except (StorageError, KeyError, ValueError, AttributeError) as error:
        if remove_damaged:
            take_away(path, error)
        return None
    return store if fits and store.max_tokens >= max_tokens else None


def _tokenised(
    texts: TextStore, tokenizer: PreTrainedTokenizerBase, max_tokens: int, prefix: str, schema: pa.Schema, name: str
) -> Iterator[pa.RecordBatch]:
    with progress(f"tokenise {name}", len(texts), "texts") as advance:
        for batch in texts.text_batches():
            if prefix:
                batch = [prefix + text for text in batch]
            lists = [
                ids
                for start in range(0, len(batch), _TOKENIZE_ROWS)
                for ids in token_ids(tokenizer, batch[start : start + _TOKENIZE_ROWS], max_tokens)
            ]
            lengths = np.fromiter(map(len, lists), np.int32, len(lists))
            offsets = np.concatenate([[0], np.cumsum(lengths, dtype=np.int64)])
            values = np.fromiter((i for ids in lists for i in ids), np.int64, int(offsets[-1]))
            column = pa.LargeListArray.from_arrays(offsets, pa.array(values, schema.field("tokens").type.value_type))
            yield pa.RecordBatch.from_arrays([column, pa.array(lengths)], schema=schema)
            advance(len(batch))


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: list[str], max_tokens: int | None = None) -> list[list[int]]:
    """Return the token ids of texts without special tokens, cut at `max_tokens`."""
    # the tokenizer's own truncation would count special tokens, and change its state
    ids = tokenizer(
        texts,
        add_special_tokens=False,
        truncation=False,
        return_attention_mask=False,
        return_token_type_ids=False,
        verbose=False,
    )["input_ids"]
    return [tokens[:max_tokens] for tokens in ids]


def _load(tokenizer: PreTrainedTokenizerBase | str | Path) -> PreTrainedTokenizerBase:
    if not isinstance(tokenizer, (str, Path)):
        return tokenizer
    from transformers import AutoTokenizer  # takes seconds, and most readers of a store do not need it

    return AutoTokenizer.from_pretrained(ModelRef.parse(str(tokenizer)).location)
