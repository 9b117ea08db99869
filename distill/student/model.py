"""SPLADE students: any `AutoModelForMaskedLM` whose decoder is swapped for the exact sparse head.

The model's own forward runs up to the decoder, so every architecture that transformers knows works as it stands, and
its parameters keep their names: what is saved is a plain masked language model. Layers can be cut; a backbone that
comes without an MLM head gets a calibrated one (`distill.student.calibrate`).
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from types import MappingProxyType
from typing import Any

import numpy as np
import torch
from tokenizers import normalizers
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from distill import config
from distill.errors import StudentError
from distill.student.base import Cached, Side, Student
from distill.student.calibrate import calibrate_head
from distill.student.head import SparseReps, SpladeHead
from distill.student.layout import NotCached, Parts, load_table, router_parts
from distill.student.query_table import QueryTable, binary_weights, idf_weights, own_terms, weights_from_file

log = logging.getLogger(__name__)

# A tokenizer, and the tokens that are read of a text, to the passages that have each term, int64 [V], and their number
DocumentFrequencies = Callable[[Any, int], tuple[np.ndarray, int]]


class SpladeStudent(Student):
    """A masked language model with the sparse head in its decoder's place, and its tokenizer.

    `mlm` keeps its class; its output layer is replaced in place. With a `table`, queries have their own tokens' terms
    only: weighted by the table alone (`inference_free`; no special tokens are read), or by model and table.
    """

    def __init__(
        self,
        mlm: nn.Module,
        tokenizer: Any,
        pooling: str = "max",
        activation: str = "relu",
        *,
        query_max_length: int,
        passage_max_length: int,
        top_k: int | None = None,
        prompts: Mapping[str, str] = MappingProxyType({}),
        table: QueryTable | None = None,
        inference_free: bool = False,
    ):
        super().__init__(
            tokenizer,
            query_max_length=query_max_length,
            passage_max_length=passage_max_length,
            top_k=top_k,
            prompts=prompts,
        )
        decoder = mlm.get_output_embeddings()
        if decoder is None or not hasattr(decoder, "weight"):
            raise StudentError(f"{type(mlm).__name__} has no output embedding layer to put the SPLADE head in")
        mlm.set_output_embeddings(SpladeHead(decoder.weight, decoder.bias, pooling, activation))
        self.mlm = mlm
        self.table, self.inference_free = table, inference_free

    @property
    def head(self) -> SpladeHead:
        return self.mlm.get_output_embeddings()

    @property
    def vocab_size(self) -> int:
        return self.head.vocab_size

    @property
    def backbone(self) -> nn.Module:
        return self.mlm

    def rate(self, name: str, train: config.Train) -> float:
        """The MLM head's and the table's own where the recipe has them."""
        body = name.startswith(f"mlm.{self.mlm.base_model_prefix}.")
        own = train.table_lr if name.startswith("table.") else None if body else train.head_lr
        return train.lr if own is None else own

    @property
    def forward_weights(self) -> int:
        return self.head.weight.numel()

    def trains(self, side: Side) -> bool:
        """Whether the representations of a side carry gradient: not those of a frozen table."""
        return side == "passage" or not self.inference_free or self.table.learned

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, cached: Cached | None = None, side: Side = "passage"
    ) -> SparseReps | Tensor:
        """With `cached`, the scalar whose backward is the loss's (`SpladeHead.surrogate`), without the product over the
        vocabulary."""
        if side == "query" and self.table is not None:
            encode = self._look_up if self.inference_free else self._encode_lexical
            return encode(input_ids, attention_mask, cached)
        return self._encode(input_ids, attention_mask, cached)

    def _encode(self, input_ids: Tensor, attention_mask: Tensor, cached: Cached | None) -> SparseReps | Tensor:
        with self.head.called_with(attention_mask, cached) as call:
            output = self.mlm(input_ids=input_ids, attention_mask=attention_mask).logits
        if cached is not None:
            return output
        return SparseReps(call.reps.indptr, call.reps.terms, output, call.reps.argmax, call.reps.vocab_size)

    def _look_up(self, input_ids: Tensor, attention_mask: Tensor, cached: Cached | None) -> SparseReps | Tensor:
        if cached is not None:
            reps, grad_values = cached
            return (grad_values * self.table(reps.terms)).sum()
        indptr, terms = own_terms(input_ids, attention_mask, self.table.vocab_size)
        own = SparseReps(indptr, terms, self.table(terms), None, self.table.vocab_size)
        return own.keep(~(own.values.detach() <= 0))  # keeps NaN, as the head does

    def _encode_lexical(self, input_ids: Tensor, attention_mask: Tensor, cached: Cached | None) -> SparseReps | Tensor:
        if cached is not None:  # back to the model's own values and their gradients
            reps, grad_values = cached
            weights = self.table(reps.terms)
            return self._encode(
                input_ids, attention_mask, (replace(reps, values=reps.values / weights), grad_values * weights)
            )
        reps = self._encode(input_ids, attention_mask, None)
        indptr, terms = own_terms(input_ids, attention_mask, reps.vocab_size)
        texts = torch.repeat_interleave(torch.arange(len(reps), device=terms.device), indptr.diff())
        own = torch.isin(reps.texts * reps.vocab_size + reps.terms, texts * reps.vocab_size + terms)
        reps = reps.keep(own & ~(self.table(reps.terms) <= 0))
        return replace(reps, values=reps.values * self.table(reps.terms))

    def _frame(self, side: Side) -> tuple[np.ndarray, np.ndarray]:
        """Special tokens before and after a text."""
        if side == "query" and self.inference_free:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        return self._prefix, self._suffix


def load_student(
    cfg: config.Student,
    calibration_texts: Sequence[str] | None = None,
    document_frequencies: DocumentFrequencies | None = None,
) -> SpladeStudent:
    """The student that the recipe's section describes, in float32, not yet trained.

    `calibration_texts`: passages that a calibrated start is measured on; `document_frequencies`: of the passages that
    an IDF table belongs to.
    Raises `StudentError`, in words, for what cannot be loaded or built.
    """
    name = config.resolve_model(cfg.model)
    try:
        parts = router_parts(name, cfg.revision) or Parts()
    except NotCached as error:  # transformers, which may have filled the cache, does not ask for modules.json
        log.warning("%s; until then it is taken for a plain masked language model", error)
        parts = Parts()
    mlm, headless = load_mlm(name, cfg.revision, cfg.layers, parts.transformer)
    tokenizer = load_tokenizer(name, cfg.revision, cfg.lower_case, parts.transformer)
    longest = longest_input(mlm, tokenizer)
    for field in ("query_max_length", "passage_max_length"):
        if getattr(cfg, field) > longest:
            raise StudentError(f"student.{field} is {getattr(cfg, field)}, but {cfg.model!r} takes at most {longest}")
    if cfg.start == "mlm" and headless:
        raise StudentError(f"student.model {cfg.model!r} has no MLM head; set student.start to calibrated or auto")
    if cfg.start == "calibrated" or headless:
        if not calibration_texts:
            raise StudentError(
                f"student.model {cfg.model!r} starts with a calibrated MLM head, which needs passages to be measured on"
            )
        calibrate_head(
            mlm, tokenizer, list(calibration_texts)[: cfg.calibration.passages], cfg.calibration, cfg.passage_max_length
        )
    table = _query_table(cfg, parts, mlm, tokenizer, document_frequencies)
    return SpladeStudent(
        mlm,
        tokenizer,
        cfg.pooling,
        cfg.activation,
        query_max_length=cfg.query_max_length,
        passage_max_length=cfg.passage_max_length,
        top_k=cfg.top_k,
        table=table,
        prompts={name: text for name, text in cfg.prompts.model_dump().items() if text},
        inference_free=table is not None and cfg.query.kind != "lexical",
    )


def _query_table(
    cfg: config.Student, parts: Parts, mlm: nn.Module, tokenizer: Any, document_frequencies: DocumentFrequencies | None
) -> QueryTable | None:
    """A learned one goes on from that of a checkpoint which has one, an earlier round's say."""
    query = cfg.query
    if query.kind == "model":
        return None
    size, rows = len(tokenizer.get_vocab()), mlm.get_input_embeddings().weight.shape[0]
    if max(tokenizer.get_vocab().values()) >= size or rows < size:
        raise StudentError(
            f"student.query: the token ids of {cfg.model!r} have gaps, or pass its {rows} embeddings: "
            "no table that sentence-transformers reads has all of them; use `kind: model`"
        )
    if rows > size:  # rows that pad the matrices; sentence-transformers' tables have none
        mlm.resize_token_embeddings(size)
    if query.kind in ("lexical", "binary"):
        return QueryTable(binary_weights(tokenizer, size))
    if query.file is not None:
        return QueryTable(weights_from_file(query.file, tokenizer), learned=query.kind == "learned")
    if query.kind == "learned" and parts.inference_free:
        name = config.resolve_model(cfg.model)
        return QueryTable(load_table(name, cfg.revision, parts, tokenizer, size).weight, learned=True)
    if document_frequencies is None:
        raise StudentError("student.query: IDF weights need passages to be counted in, or student.query.file")
    texts_with, texts = document_frequencies(tokenizer, cfg.passage_max_length)
    return QueryTable(idf_weights(texts_with[:size], texts, tokenizer), learned=query.kind == "learned")


def load_tokenizer(name: str, revision: str | None = None, lower_case: bool = False, subfolder: str = "") -> Any:
    """The tokenizer of a model (a path, or a name as in the recipe), without loading the model."""
    try:
        tokenizer = AutoTokenizer.from_pretrained(config.resolve_model(name), revision=revision, subfolder=subfolder)
    except (OSError, ValueError) as error:
        raise StudentError(f"the tokenizer of {name!r} cannot be loaded: {error}") from None
    if not lower_case:
        return tokenizer
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), *([backend.normalizer] if backend.normalizer else [])]
    )
    # of the plain class, which loads as it was saved: a model's own class makes its normalizer anew
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        **tokenizer.special_tokens_map,
    )


def load_mlm(
    name: str, revision: str | None = None, layers: int | None = None, subfolder: str = ""
) -> tuple[nn.Module, bool]:
    """A masked language model in float32, cut to its lower `layers`; and whether its checkpoint has no MLM head."""
    try:
        model_config = AutoConfig.from_pretrained(name, revision=revision, subfolder=subfolder)
        if layers is not None:
            _keep_layers(model_config, layers)
        with _quiet_transformers():
            mlm, info = AutoModelForMaskedLM.from_pretrained(
                name,
                revision=revision,
                subfolder=subfolder,
                config=model_config,
                dtype=torch.float32,
                output_loading_info=True,
            )
    except (OSError, ValueError) as error:
        raise StudentError(f"{name!r} cannot be loaded as a masked language model: {error}") from None
    body = f"{mlm.base_model_prefix}."
    lost = sorted(key for key in info["missing_keys"] if key.startswith(body))
    if lost:
        raise StudentError(
            f"{name!r} cannot be loaded: its checkpoint lacks weights of the encoder ({lost[0]}"
            + (f" and {len(lost) - 1} more)" if len(lost) > 1 else ")")
        )
    _check_decoder(name, mlm)
    return mlm, any(not key.startswith(body) for key in info["missing_keys"])


def _check_decoder(name: str, mlm: nn.Module) -> None:
    """Raise `StudentError` unless the logits are what the output embedding layer returns: the head takes its place."""
    decoder, returned = mlm.get_output_embeddings(), []
    if decoder is None:
        return  # `SpladeStudent` says so
    ids = torch.zeros(1, 2, dtype=torch.long)
    hook = decoder.register_forward_hook(lambda _module, _inputs, output: returned.append(output))
    try:
        with torch.no_grad():  # and in evaluation mode, as it was loaded: no random numbers are drawn
            logits = mlm(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    except Exception as error:  # of any architecture's own code
        raise StudentError(
            f"{name!r} cannot be a student: {type(mlm).__name__} does not run on token ids and their "
            f"mask alone: {error}"
        ) from error
    finally:
        hook.remove()
    if len(returned) != 1 or returned[0] is not logits:
        raise StudentError(
            f"{name!r} cannot be a student: the logits of {type(mlm).__name__} are not what its output "
            "embedding layer returns, and the SPLADE head takes that layer's place"
        )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Without its report of missing weights, which are judged here."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def longest_input(mlm: nn.Module, tokenizer: Any) -> int:
    """Tokens a text may have, special ones counted."""
    positions = getattr(mlm.config, "max_position_embeddings", None) or tokenizer.model_max_length
    paddings = [
        module.padding_idx
        for name, module in mlm.named_modules()
        if name.endswith(".position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    if paddings:  # RoBERTa and its relatives: positions start after the padding's
        positions -= paddings[0] + 1
    return min(tokenizer.model_max_length, positions)


def _keep_layers(model_config: Any, layers: int) -> None:
    """Make `model_config` that of the lower `layers` layers, lists with an entry a layer included."""
    present = model_config.num_hidden_layers
    if layers > present:
        raise StudentError(f"student.layers is {layers}, but the model has {present}")
    model_config.num_hidden_layers = layers
    for field, value in list(vars(model_config).items()):
        if isinstance(value, list) and len(value) == present:
            setattr(model_config, field, value[:layers])
