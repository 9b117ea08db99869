"""SPLADE students: any `AutoModelForMaskedLM` with its decoder replaced by the exact sparse head.

The model's own forward runs up to the decoder, so that every architecture of transformers works unchanged. Parameters
keep their names: the saved model is a plain masked language model. Layers can be cut; a backbone without an MLM head
gets a calibrated one (`distill.student.calibrate`).
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
from torch import Tensor
from transformers import AutoConfig, AutoModelForMaskedLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerFast
from transformers.utils import logging as transformers_logging

from distill import config
from distill.errors import NotCached, StudentError
from distill.run.device import upload
from distill.run.model_ref import ModelRef, loading
from distill.sparse.reps import RepsGradient, SparseReps
from distill.student.base import Side, Student, check_max_lengths
from distill.student.calibrate import calibrate_head
from distill.student.head import Activation, Pooling, SpladeHead
from distill.student.layout import Parts, load_table, router_parts
from distill.student.query_table import QueryTable, binary_weights, idf_weights, own_terms, weights_from_file

log = logging.getLogger(__name__)

# (tokenizer, maximum length) -> document frequency of each term, int64 [V], and number of documents
# Architectures whose attention takes a mask that is broadcast over the query tokens, if torch computes it (sdpa)
BROADCAST_MASKS = frozenset({"bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta"})

DocumentFrequencies = Callable[[Any, int], tuple[np.ndarray, int]]


class SpladeStudent(Student):
    """A masked language model with the sparse head in place of its decoder, and its tokenizer.

    `mlm` keeps its class; its output layer is replaced in place. With a `table`, a query's terms are its own tokens,
    weighted by the table alone (`inference_free`, without special tokens) or by the product of model and table.
    """

    partitionable, host_mask = True, True

    def __init__(
        self,
        mlm: PreTrainedModel,
        tokenizer: Any,
        pooling: Pooling = "max",
        activation: Activation = "relu",
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
            raise StudentError(
                f"{type(mlm).__name__} cannot be a student: it has no output embedding layer for the SPLADE head to "
                "replace"
            )
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
    def backbone(self) -> PreTrainedModel:
        return self.mlm

    def learning_rate(self, name: str, train: config.Train) -> float:
        """`train.table_lr` for the query table and `train.head_lr` for the MLM head, if set; else `train.lr`."""
        body = name.startswith(f"mlm.{self.mlm.base_model_prefix}.")
        rate = train.table_lr if name.startswith("table.") else None if body else train.head_lr
        return train.lr if rate is None else rate

    @property
    def forward_weights(self) -> int:
        return self.head.weight.numel()

    def trains(self, side: Side) -> bool:
        """Whether the representations of a side carry gradient: those of a frozen table do not."""
        return side == "passage" or self.table is None or not self.inference_free or self.table.learned

    def encode(self, input_ids: Tensor, attention_mask: Tensor, side: Side = "passage") -> SparseReps:
        if side == "passage" or self.table is None:
            return self._encode(input_ids, attention_mask)
        if self.inference_free:
            return self._look_up(input_ids, attention_mask, self.table)
        return self._encode_lexical(input_ids, attention_mask, self.table)

    def surrogate(
        self, input_ids: Tensor, attention_mask: Tensor, side: Side, reps: SparseReps, gradient: RepsGradient
    ) -> Tensor:
        """Second pass of the cached step, without the product over the vocabulary (`SpladeHead.surrogate`)."""
        if side == "query" and self.table is not None:
            if self.inference_free:
                return (gradient.values * self.table(reps.terms)).sum()
            weights = self.table(reps.terms)  # [nnz]; taken out again: the head needs the model's values and gradients
            reps = replace(reps, values=reps.values / weights)
            gradient = RepsGradient(gradient.values * weights)
        with self.head.called_with(attention_mask, (reps, gradient)):
            return self.mlm(
                input_ids=input_ids, attention_mask=self._attention(attention_mask, input_ids.device)
            ).logits

    def _encode(self, input_ids: Tensor, attention_mask: Tensor) -> SparseReps:
        with self.head.called_with(attention_mask, None) as call:
            mask = self._attention(attention_mask, input_ids.device)
            values = self.mlm(input_ids=input_ids, attention_mask=mask).logits
        assert call.reps is not None
        return replace(call.reps, values=values)

    def _attention(self, mask: Tensor, device: torch.device) -> Tensor | None:
        """The mask as the model is to have it: from the host to a GPU, in a form that nothing on the host looks into.

        None if there is no padding: attention has faster kernels then. Of a mask of two dimensions, transformers would
        find that out itself, and wait for the device; one of four, bool [B, 1, 1, L], is taken as it is.
        """
        if device.type == "cpu" or mask.device.type != "cpu":
            return mask
        if mask.all():
            return None
        mask, cfg = upload(mask, device), self.mlm.config
        broadcast = cfg._attn_implementation == "sdpa" and cfg.model_type in BROADCAST_MASKS
        return mask.bool()[:, None, None, :] if broadcast else mask

    def _look_up(self, input_ids: Tensor, attention_mask: Tensor, table: QueryTable) -> SparseReps:
        """Inference-free queries: their own tokens, weighted by the table alone."""
        indptr, terms = own_terms(input_ids, upload(attention_mask, input_ids.device), table.vocab_size)
        reps = SparseReps(indptr, terms, table(terms), None, table.vocab_size)
        return reps.keep(~(reps.values.detach() <= 0))  # keeps NaN, as the head does

    def _encode_lexical(self, input_ids: Tensor, attention_mask: Tensor, table: QueryTable) -> SparseReps:
        """Lexical queries: the model's weights of their own tokens, times the table's."""
        reps = self._encode(input_ids, attention_mask)
        indptr, terms = own_terms(input_ids, upload(attention_mask, input_ids.device), reps.vocab_size)
        rows = torch.repeat_interleave(torch.arange(len(reps), device=terms.device), indptr.diff())
        in_query = torch.isin(reps.row_ids * reps.vocab_size + reps.terms, rows * reps.vocab_size + terms)  # [nnz]
        reps = reps.keep(in_query & ~(table(reps.terms) <= 0))
        return replace(reps, values=reps.values * table(reps.terms))

    def _frame(self, side: Side) -> tuple[np.ndarray, np.ndarray]:
        """Special tokens before and after a text."""
        if side == "query" and self.inference_free:
            return np.empty(0, np.int64), np.empty(0, np.int64)
        return self._prefix, self._suffix


def start_splade(
    cfg: config.Student,
    calibration_texts: Sequence[str] | None = None,
    document_frequencies: DocumentFrequencies | None = None,
    stand_ins: Tensor | None = None,
) -> SpladeStudent:
    """Build the untrained student of the recipe's section, in float32.

    `calibration_texts`: passages for a calibrated start, in which a token activates the term that `stand_ins` names
    (int64 [V]; None: its own); `document_frequencies`: those of the passages, for an IDF table. Raises `StudentError`
    for a model that cannot be loaded or cannot be a student.
    """
    name = ModelRef.parse(cfg.model).location
    try:
        parts = router_parts(name, cfg.revision) or Parts()
    except NotCached as error:  # transformers, which may have filled the cache, does not ask for modules.json
        log.warning("%s; until then it is loaded as a plain masked language model", error)
        parts = Parts()
    mlm, headless = load_mlm(name, cfg.revision, cfg.layers, parts.transformer)
    tokenizer = load_tokenizer(name, cfg.revision, cfg.lower_case, parts.transformer)
    check_max_lengths(cfg, longest_input(mlm, tokenizer))
    if cfg.start == "mlm" and headless:
        raise StudentError(
            f"student.start is mlm, but {cfg.model!r} has no MLM head; set student.start to calibrated or auto"
        )
    if cfg.start == "calibrated" or headless:
        if not calibration_texts:
            raise StudentError(
                f"student.start: {cfg.model!r} starts with a calibrated MLM head, which needs passages to calibrate "
                "on, but there are none; use a checkpoint with a trained MLM head"
            )
        texts, length = list(calibration_texts)[: cfg.calibration.passages], config.max_length(cfg, "passage")
        calibrate_head(mlm, tokenizer, texts, cfg.calibration, length, stand_ins)
    table = _query_table(cfg, parts, mlm, tokenizer, document_frequencies)
    return SpladeStudent(
        mlm,
        tokenizer,
        cfg.pooling,
        cfg.activation,
        query_max_length=config.max_length(cfg, "query"),
        passage_max_length=config.max_length(cfg, "passage"),
        top_k=cfg.top_k,
        table=table,
        prompts={name: text for name, text in cfg.prompts.model_dump().items() if text},
        inference_free=table is not None and cfg.query.kind != "lexical",
    )


def check_start(cfg: config.Student) -> None:
    """Raise `StudentError` for a model that `start_splade` would refuse for its kind or its input lengths."""
    check_max_lengths(cfg, model_window(cfg)[1])


def model_window(cfg: config.Student) -> tuple[Any, int | None]:
    """Return the student's tokenizer, and the maximum number of tokens per text that the model takes.

    Reads the model's configuration and tokenizer, not its weights; the maximum is None for an architecture that cannot
    be built without them. Raises `StudentError` for a model that is no masked language model.
    """
    name = ModelRef.parse(cfg.model).location
    try:
        subfolder = (router_parts(name, cfg.revision) or Parts()).transformer
    except NotCached:  # as in `start_splade`
        subfolder = ""
    with loading(f"{cfg.model!r}, the student's masked language model,", StudentError):
        model_config = AutoConfig.from_pretrained(name, revision=cfg.revision, subfolder=subfolder)
        try:
            with torch.device("meta"):
                mlm = AutoModelForMaskedLM.from_config(model_config)
        except (ImportError, RuntimeError, TypeError, AttributeError) as error:  # no model of this kind without weights
            log.debug("%s is not checked before it is loaded: %s", cfg.model, error)
            mlm = None
    tokenizer = load_tokenizer(name, cfg.revision, cfg.lower_case, subfolder)
    return tokenizer, None if mlm is None else longest_input(mlm, tokenizer)


def _query_table(
    cfg: config.Student,
    parts: Parts,
    mlm: PreTrainedModel,
    tokenizer: Any,
    document_frequencies: DocumentFrequencies | None,
) -> QueryTable | None:
    """Build the query table of the recipe, if it has one; may cut padding rows off the embeddings of `mlm`.

    A learned table starts from the checkpoint's own table if it has one (e.g. a previous round's).
    """
    query = cfg.query
    if query.kind == "model":
        return None
    embeddings = mlm.get_input_embeddings()
    assert isinstance(embeddings.weight, Tensor)
    size, rows = len(tokenizer.get_vocab()), len(embeddings.weight)
    if max(tokenizer.get_vocab().values()) >= size or rows < size:
        raise StudentError(
            f"student.query.kind is {query.kind}, but {cfg.model!r} cannot have a query table: its {size:,} token ids "
            f"have gaps or exceed its {rows:,} embeddings; use `kind: model`"
        )
    if rows > size:  # rows that pad the matrices; sentence-transformers' tables have none
        mlm.resize_token_embeddings(size)
    if not isinstance(query, config.IdfQuery):  # lexical or binary
        return QueryTable(binary_weights(tokenizer, size))
    learned = query.kind == "learned"
    if query.file is not None:
        return QueryTable(weights_from_file(query.file, tokenizer), learned)
    if learned and parts.inference_free:
        static = load_table(ModelRef.parse(cfg.model).location, cfg.revision, parts, tokenizer, size)
        assert static is not None, "an inference-free checkpoint has a table"
        return QueryTable(static.weight, learned)
    if document_frequencies is None:
        raise StudentError(
            "student.query: IDF weights need the document frequencies of passages; pass them, or set student.query.file"
        )
    texts_with, texts = document_frequencies(tokenizer, config.max_length(cfg, "passage"))
    return QueryTable(idf_weights(texts_with[:size], texts, tokenizer), learned)


def load_tokenizer(name: str, revision: str | None = None, lower_case: bool = False, subfolder: str = "") -> Any:
    """Load the tokenizer of a model (a path, or a name as in the recipe), without loading the model."""
    with loading(f"the tokenizer of {name!r}", StudentError):
        tokenizer = AutoTokenizer.from_pretrained(ModelRef.parse(name).location, revision=revision, subfolder=subfolder)
    if not lower_case:
        return tokenizer
    backend = tokenizer.backend_tokenizer
    backend.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), *([backend.normalizer] if backend.normalizer else [])]
    )
    # the plain class loads as it was saved; a model's own class would build its normalizer anew
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        model_max_length=tokenizer.model_max_length,
        model_input_names=tokenizer.model_input_names,
        **tokenizer.special_tokens_map,
    )


def load_mlm(
    name: str, revision: str | None = None, layers: int | None = None, subfolder: str = ""
) -> tuple[PreTrainedModel, bool]:
    """Load a masked language model in float32, cut to its lower `layers`.

    Also returns whether its checkpoint lacks an MLM head.
    """
    with loading(f"{name!r}, a masked language model,", StudentError):
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
    body = f"{mlm.base_model_prefix}."
    missing = sorted(key for key in info["missing_keys"] if key.startswith(body))
    if missing:
        raise StudentError(
            f"{name!r} cannot be loaded: its checkpoint lacks weights of the encoder ({missing[0]}"
            + (f" and {len(missing) - 1} more)" if len(missing) > 1 else ")")
        )
    _check_decoder(name, mlm)
    return mlm, any(not key.startswith(body) for key in info["missing_keys"])


def _check_decoder(name: str, mlm: PreTrainedModel) -> None:
    """Raise `StudentError` unless the logits are the output of the output embedding layer, which the head replaces."""
    decoder = mlm.get_output_embeddings()
    returned: list[Tensor] = []
    if decoder is None:
        return  # refused by `SpladeStudent`
    ids = torch.zeros(1, 2, dtype=torch.long)
    hook = decoder.register_forward_hook(lambda _module, _inputs, output: returned.append(output))
    try:
        with torch.no_grad():  # models are loaded in evaluation mode: no random numbers are drawn
            logits = mlm(input_ids=ids, attention_mask=torch.ones_like(ids)).logits
    except Exception as error:  # an architecture's own code may raise anything
        raise StudentError(
            f"{name!r} cannot be a student: {type(mlm).__name__} does not run on token ids and their mask alone: "
            f"{error}"
        ) from error
    finally:
        hook.remove()
    if len(returned) != 1 or returned[0] is not logits:
        raise StudentError(
            f"{name!r} cannot be a student: the logits of {type(mlm).__name__} are not the output of its output "
            "embedding layer, which the SPLADE head replaces"
        )


@contextmanager
def _quiet_transformers() -> Iterator[None]:
    """Suppress transformers' report of missing weights, which `load_mlm` checks itself."""
    before = transformers_logging.get_verbosity()
    transformers_logging.set_verbosity_error()
    try:
        yield
    finally:
        transformers_logging.set_verbosity(before)


def longest_input(mlm: PreTrainedModel, tokenizer: Any) -> int:
    """Maximum number of tokens per text that the model takes, special tokens included."""
    positions = getattr(mlm.config, "max_position_embeddings", None) or tokenizer.model_max_length
    paddings = [
        module.padding_idx
        for name, module in mlm.named_modules()
        if name.endswith(".position_embeddings") and getattr(module, "padding_idx", None) is not None
    ]
    if paddings:  # RoBERTa and its relatives: positions start after the padding index
        positions -= paddings[0] + 1
    return min(tokenizer.model_max_length, positions)


def _keep_layers(model_config: Any, layers: int) -> None:
    """Cut `model_config` to the lower `layers` layers, including lists with one entry per layer."""
    total = model_config.num_hidden_layers
    if layers > total:
        raise StudentError(f"student.layers is {layers}, but the model has {total} layers; lower it")
    model_config.num_hidden_layers = layers
    for field, value in list(vars(model_config).items()):
        if isinstance(value, list) and len(value) == total:
            setattr(model_config, field, value[:layers])
