"""CSR students (arXiv 2503.01776): a dense model, and an autoencoder that makes its vectors sparse.

Modules, and what is saved, are sentence-transformers': a `SentenceTransformer`'s own, then a `SparseAutoEncoder`. The
terms are the autoencoder's latents, which have no names. Its reconstructions of the dense vector go along with each
text's representation as `vectors`, since `train.reconstruction` looks at them.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from sentence_transformers import SentenceTransformer, SparseEncoder
from sentence_transformers.sentence_transformer.modules import Pooling
from sentence_transformers.sparse_encoder.modules import SparseAutoEncoder, Transformer
from torch import Tensor, nn
from torch.nn import functional as F

from distill import config
from distill.errors import StudentError
from distill.student.base import Cached, Side, Student
from distill.student.head import SparseReps
from distill.student.layout import read_json

AUXILIARY = 512  # most dead latents that stand in for what the active ones leave out, as in the paper


class CsrStudent(Student):
    """`dense`: modules from token ids to a dense vector [D]; `autoencoder`: to latents [V], of which the `k` highest
    are kept where they are positive.

    While it trains, `vectors` [B, 5·D] of a representation are the dense vector, its reconstructions from the `k` and
    the `4k` highest latents, that from dead latents of what the first leaves out, and the first without its bias. A
    latent is dead once more than `dead_threshold` updates in a row have not seen it among the `k` of any text.
    """

    def __init__(self, dense: Sequence[nn.Module], autoencoder: SparseAutoEncoder, **conventions: Any):
        super().__init__(dense[0].tokenizer, **conventions)
        self.dense = nn.ModuleList(dense)
        self.autoencoder = autoencoder

    @property
    def vocab_size(self) -> int:
        return self.autoencoder.hidden_dim

    @property
    def backbone(self) -> nn.Module:
        return self.dense[0].auto_model

    def counters(self) -> dict[str, Tensor]:
        return {"autoencoder.stats_last_nonzero": self.autoencoder.stats_last_nonzero}

    def count(self, fired: Tensor) -> None:
        silent = self.autoencoder.stats_last_nonzero
        silent.copy_(torch.where(fired > 0, 0, silent + 1))

    def term_names(self) -> list[str | None]:
        return [None] * self.vocab_size

    def forward(
        self, input_ids: Tensor, attention_mask: Tensor, cached: Cached | None = None, side: Side = "passage"
    ) -> SparseReps | Tensor:
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        for module in self.dense:
            features = module(features)
        with torch.autocast(input_ids.device.type, enabled=False):  # small, and sums of squares follow
            x, info = self.autoencoder.prepare(features["sentence_embedding"].float())
            latents = self.autoencoder.encode_pre_act(x)  # [B, V]
            if cached is None:
                reps = self._reps(latents)
            else:
                reps, *gradients = cached
                reps = SparseReps(reps.indptr, reps.terms, latents[reps.texts, reps.terms], None, self.vocab_size)
            if self.training:
                vectors = self._reconstructions(features["sentence_embedding"].float(), latents, info)
                reps = SparseReps(reps.indptr, reps.terms, reps.values, None, self.vocab_size, vectors)
        return reps if cached is None else reps.surrogate(*gradients)

    def _reps(self, latents: Tensor) -> SparseReps:
        texts, terms = _highest(latents.detach(), self.autoencoder.k).nonzero(as_tuple=True)
        indptr = F.pad(torch.bincount(texts, minlength=len(latents)).cumsum(0), (1, 0))
        return SparseReps(indptr, terms, latents[texts, terms], None, self.vocab_size)

    def _reconstructions(self, x: Tensor, latents: Tensor, info: dict[str, Tensor]) -> Tensor:
        """As `SparseAutoEncoder.forward` makes them: [B, 5·D]."""
        encoder = self.autoencoder
        scale = info.get("std", 1.0)
        by_k, by_4k = (
            encoder.decode(_highest(latents, min(k, self.vocab_size)), info) for k in (encoder.k, 4 * encoder.k)
        )
        left = encoder.decoder(_highest(encoder.auxk_mask_fn(latents), encoder.k_aux)) + encoder.pre_bias
        return torch.cat([x, by_k, by_4k, left * scale, by_k - encoder.pre_bias * scale], 1)

    def freeze_dense(self) -> None:
        """Train the autoencoder alone, as the paper does."""
        self.dense.requires_grad_(False)

    @classmethod
    def start(cls, cfg: config.CsrStudent, texts: Sequence[str] = ()) -> CsrStudent:
        """On a dense model, with an autoencoder not yet trained; or from an earlier CSR checkpoint."""
        modules = _modules(cfg.model, cfg.revision)
        conventions = {
            "query_max_length": cfg.query_max_length,
            "passage_max_length": cfg.passage_max_length,
            "prompts": {name: text for name, text in cfg.prompts.model_dump().items() if text},
        }
        longest = modules[0].max_seq_length
        for field in ("query_max_length", "passage_max_length"):
            if longest is not None and getattr(cfg, field) > longest:
                raise StudentError(
                    f"student.{field} is {getattr(cfg, field)}, but {cfg.model!r} takes at most {longest}"
                )
        if isinstance(modules[-1], SparseAutoEncoder):
            *dense, encoder = modules
            if cfg.latents not in (None, encoder.hidden_dim):
                raise StudentError(
                    f"student.latents is {cfg.latents}, but the autoencoder of {cfg.model!r} has "
                    f"{encoder.hidden_dim} already"
                )
        else:
            dense, size = modules, _dimension(modules)
            encoder = SparseAutoEncoder(size, 4 * size if cfg.latents is None else cfg.latents)
        if cfg.k > encoder.hidden_dim:
            raise StudentError(f"student.k is {cfg.k}, but there are {encoder.hidden_dim} latents")
        encoder.k, encoder.k_aux = cfg.k, min(AUXILIARY, encoder.hidden_dim)
        encoder.dead_threshold = cfg.dead_after
        return cls(dense, _with_own_threshold(encoder), **conventions)

    def save(self, folder: Path) -> None:
        transformer = self.dense[0]
        transformer.max_seq_length = self.passage_max_length
        transformer.query_length, transformer.document_length = self.query_max_length, self.passage_max_length
        SparseEncoder(
            modules=[*self.dense, self.autoencoder],
            device="cpu",
            similarity_fn_name="dot",
            prompts=self.prompts or None,
            max_active_dims=self.top_k,
        ).save(str(folder), create_model_card=False)

    @classmethod
    def load(cls, folder: str | Path, revision: str | None = None) -> CsrStudent:
        """A folder, or a hub name. Raises `StudentError` for what is no CSR checkpoint."""
        settings = read_json(str(folder), "config_sentence_transformers.json", revision) or {}
        *dense, encoder = _modules(str(folder), revision)
        if not isinstance(encoder, SparseAutoEncoder):
            raise StudentError(f"{folder}: not a CSR checkpoint: it has no SparseAutoEncoder")
        longest = dense[0].max_seq_length
        return cls(
            dense,
            _with_own_threshold(encoder),
            query_max_length=dense[0].query_length or longest,
            passage_max_length=dense[0].document_length or longest,
            top_k=settings.get("max_active_dims"),
            prompts={name: text for name, text in (settings.get("prompts") or {}).items() if text},
        )


def _highest(latents: Tensor, k: int) -> Tensor:
    """The `k` highest of each row where they are positive, zeros elsewhere: [B, V]."""
    values, terms = latents.topk(k, dim=1)
    return torch.zeros_like(latents).scatter(1, terms, values.relu())


def _with_own_threshold(encoder: SparseAutoEncoder) -> SparseAutoEncoder:
    """Its own mask keeps the threshold that it was made with."""
    encoder.auxk_mask_fn = lambda latents: latents * (encoder.stats_last_nonzero > encoder.dead_threshold)
    return encoder


def _modules(name: str, revision: str | None) -> list[nn.Module]:
    """Of a dense model or a CSR checkpoint, in float32 on the CPU."""
    path = config.resolve_model(name)
    modules = read_json(path, "modules.json", revision)
    kinds = [module["type"].rsplit(".", 1)[-1] for module in modules or ()]
    kind = SparseEncoder if kinds and kinds[-1] == "SparseAutoEncoder" else SentenceTransformer
    try:
        found = list(kind(path, revision=revision, device="cpu", model_kwargs={"dtype": torch.float32}))
    except (OSError, ValueError) as error:
        raise StudentError(f"{name!r} cannot be loaded as a dense model of sentence-transformers: {error}") from None
    if not isinstance(found[0], Transformer) or found[0].tokenizer is None:
        raise StudentError(
            f"{name!r} is no dense model on a transformer: its modules are "
            f"{', '.join(type(module).__name__ for module in found)}"
        )
    if any(isinstance(module, Pooling) and not module.include_prompt for module in found):
        raise StudentError(f"{name!r} leaves its prompt out when it pools, which students of kind csr cannot")
    return found


def _dimension(modules: Sequence[nn.Module]) -> int:
    return next(
        size
        for module in reversed(modules)
        if (size := getattr(module, "get_embedding_dimension", lambda: None)()) is not None
    )
