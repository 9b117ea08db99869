"""CSR students (arXiv 2503.01776): a dense model, and an autoencoder that makes its vectors sparse.

Modules and saved files are those of sentence-transformers: a `SentenceTransformer`'s modules, then a
`SparseAutoEncoder`. The terms are the autoencoder's latents, which have no names. In training, each representation
carries the autoencoder's reconstructions of the dense vector as its `vectors`, for the loss `reconstruction`.
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
from transformers import PreTrainedModel

from distill import config
from distill.errors import StudentError
from distill.run.model_ref import ModelRef, loading
from distill.sparse.collective import sum_over_processes
from distill.sparse.reps import RepsGradient, SparseReps
from distill.student.base import Side, Student, check_max_lengths

AUXILIARY = 512  # maximum number of dead latents that reconstruct the residual of the active ones, as in the paper


class CsrStudent(Student):
    """`dense`: modules from token ids to a dense vector [D]; `autoencoder`: from it to latents [V], of which the `k`
    highest are kept if they are positive.

    In training, the `vectors` [B, 5·D] are: the dense vector, its reconstruction from the `k` highest latents, that
    from the `4k` highest, the reconstruction of the first one's residual from dead latents, and the first one without
    the bias. A latent is dead after more than `dead_threshold` updates in a row without being among the `k` highest of
    any text.
    """

    def __init__(self, dense: Sequence[nn.Module], autoencoder: SparseAutoEncoder, **settings: Any):
        super().__init__(dense[0].tokenizer, **settings)
        self.dense = nn.ModuleList(dense)
        self.autoencoder = autoencoder
        self.reconstruction: config.Reconstruction | None = None

    @property
    def vocab_size(self) -> int:
        return self.autoencoder.hidden_dim

    @property
    def transformer(self) -> Transformer:
        """The first dense module."""
        transformer = self.dense[0]
        assert isinstance(transformer, Transformer)
        return transformer

    @property
    def backbone(self) -> PreTrainedModel:
        return self.transformer.auto_model

    def extra_state(self) -> dict[str, Tensor]:
        return {"autoencoder.stats_last_nonzero": self.autoencoder.stats_last_nonzero}

    def record_activations(self, texts_with: Tensor) -> None:
        unused_for = self.autoencoder.stats_last_nonzero  # int64 [V]: updates since each latent was last active
        unused_for.copy_(torch.where(texts_with > 0, 0, unused_for + 1))

    def term_names(self) -> list[str | None]:
        return [None] * self.vocab_size

    def begin_training(self, cfg: config.AnyStudent) -> None:
        if isinstance(cfg, config.CsrStudent):  # not for a user-defined subclass, which has its own options
            self.reconstruction = cfg.reconstruction
            if cfg.frozen:
                self.dense.requires_grad_(False)

    def own_losses(self, queries: SparseReps, passages: SparseReps, total: int) -> dict[str, Tensor]:
        cfg = self.reconstruction
        if cfg is None:
            return {}
        return {"reconstruction": reconstruction(queries, passages, total, cfg.beta) * cfg.weight}

    def encode(self, input_ids: Tensor, attention_mask: Tensor, side: Side = "passage") -> SparseReps:
        x, latents, info = self._latents(input_ids, attention_mask)
        rows, terms = _highest(latents.detach(), self.autoencoder.k).nonzero(as_tuple=True)
        indptr = F.pad(torch.bincount(rows, minlength=len(latents)).cumsum(0), (1, 0))
        return self._reps(indptr, terms, latents[rows, terms], x, latents, info)

    def surrogate(
        self, input_ids: Tensor, attention_mask: Tensor, side: Side, reps: SparseReps, gradient: RepsGradient
    ) -> Tensor:
        x, latents, info = self._latents(input_ids, attention_mask)
        values = latents[reps.row_ids, reps.terms]
        return self._reps(reps.indptr, reps.terms, values, x, latents, info).surrogate(gradient)

    def _latents(self, input_ids: Tensor, attention_mask: Tensor) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Dense vectors [B, D], latents before the cut to `k` [B, V], and the normalisation that `decode` reverts."""
        features = {"input_ids": input_ids, "attention_mask": attention_mask}
        for module in self.dense:
            features = module(features)
        x = features["sentence_embedding"].float()
        with _no_autocast(x):
            prepared, info = self.autoencoder.prepare(x)
            return x, self.autoencoder.encode_pre_act(prepared), info

    def _reps(
        self, indptr: Tensor, terms: Tensor, values: Tensor, x: Tensor, latents: Tensor, info: dict[str, Tensor]
    ) -> SparseReps:
        with _no_autocast(x):
            vectors = self._reconstructions(x, latents, info) if self.training else None
        return SparseReps(indptr, terms, values, None, self.vocab_size, vectors)

    def _reconstructions(self, x: Tensor, latents: Tensor, info: dict[str, Tensor]) -> Tensor:
        """The reconstructions as `SparseAutoEncoder.forward` computes them: [B, 5·D]."""
        encoder = self.autoencoder
        scale = info.get("std", 1.0)
        by_k, by_4k = (
            encoder.decode(_highest(latents, min(k, self.vocab_size)), info) for k in (encoder.k, 4 * encoder.k)
        )
        residual = encoder.decoder(_highest(encoder.auxk_mask_fn(latents), encoder.k_aux)) + encoder.pre_bias
        return torch.cat([x, by_k, by_4k, residual * scale, by_k - encoder.pre_bias * scale], 1)

    @classmethod
    def start(cls, cfg: config.CsrStudent, texts: Sequence[str] = ()) -> CsrStudent:
        """Build the untrained student: a dense model with a new autoencoder, or an earlier CSR checkpoint."""
        dense, encoder = _split(_modules(cfg.model, cfg.revision))
        assert isinstance(dense[0], Transformer)
        check_max_lengths(cfg, dense[0].max_seq_length)
        if encoder is None:
            size = _dimension(dense)
            encoder = SparseAutoEncoder(size, 4 * size if cfg.latents is None else cfg.latents)
        elif cfg.latents not in (None, encoder.hidden_dim):
            raise StudentError(
                f"student.latents is {cfg.latents}, but the trained autoencoder of {cfg.model!r} has "
                f"{encoder.hidden_dim} latents; leave student.latents out"
            )
        if cfg.k > encoder.hidden_dim:
            raise StudentError(f"student.k is {cfg.k}, but there are only {encoder.hidden_dim} latents; lower it")
        encoder.k, encoder.k_aux = cfg.k, min(AUXILIARY, encoder.hidden_dim)
        encoder.dead_threshold = cfg.dead_after
        return cls(
            dense,
            _reading_its_threshold(encoder),
            query_max_length=config.max_length(cfg, "query"),
            passage_max_length=config.max_length(cfg, "passage"),
            prompts={name: text for name, text in cfg.prompts.model_dump().items() if text},
        )

    def save(self, folder: Path) -> None:
        transformer = self.transformer
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
        """Load a checkpoint from a folder or hub name. Raises `StudentError` if it is not a CSR checkpoint."""
        settings = ModelRef.parse(str(folder), revision).read_json("config_sentence_transformers.json") or {}
        dense, encoder = _split(_modules(str(folder), revision))
        if encoder is None:
            raise StudentError(f"{folder}: not a CSR checkpoint: it has no SparseAutoEncoder")
        longest = dense[0].max_seq_length
        return cls(
            dense,
            _reading_its_threshold(encoder),
            query_max_length=dense[0].query_length or longest,
            passage_max_length=dense[0].document_length or longest,
            top_k=settings.get("max_active_dims"),
            prompts={name: text for name, text in (settings.get("prompts") or {}).items() if text},
        )


def reconstruction(queries: SparseReps, passages: SparseReps, total: int, beta: float) -> Tensor:
    """Reconstruction loss of the autoencoder, L_k + L_4k / 8 + beta · L_aux, over the global batch of `total` queries.

    As sentence-transformers' `CSRReconstructionLoss`: equal weights for the queries and for each position in the
    lists, and every mean over the global batch. `CsrStudent` describes the representations' `vectors`.

    L_k and L_4k are mean squared errors of the dense vector; L_aux is that of the residual, divided by the residual's
    variance in the batch (equation 5, after Gao et al., arXiv 2406.04093).
    """
    assert queries.vectors is not None and passages.vectors is not None
    per_query = len(passages) // len(queries)
    texts = torch.cat([queries.vectors[:, None], passages.vectors.unflatten(0, (-1, per_query))], 1)  # [b, 2+n, 5·D]
    x, by_k, by_4k, by_dead, unbiased = texts.chunk(5, dim=2)  # [b, 2+n, D] each
    size = total * x.shape[2]  # numbers in the global batch, per position in the lists
    residual = x - unbiased.detach()
    mean = sum_over_processes(residual.detach().sum(0)) / total  # [2+n, D]; the variance's derivative in it is 0
    sums = torch.stack(
        [
            (x - by_k).square().sum((0, 2)),
            (x - by_4k).square().sum((0, 2)),
            (by_dead - residual).square().sum((0, 2)),
            (residual - mean).square().sum((0, 2)),
        ]
    )
    l_k, l_4k, l_residual, variance = sum_over_processes(sums) / size  # [2+n] each
    return (l_k + l_4k / 8 + beta * l_residual / torch.where(variance == 0, 1.0, variance)).mean()


def _no_autocast(x: Tensor) -> torch.autocast:
    """Float32 for the autoencoder: it is small, and sums of squares follow."""
    return torch.autocast(x.device.type, enabled=False)


def _highest(latents: Tensor, k: int) -> Tensor:
    """The `k` highest of each row if they are positive, zeros elsewhere: [B, V]."""
    values, terms = latents.topk(k, dim=1)
    return torch.zeros_like(latents).scatter(1, terms, values.relu())


def _reading_its_threshold(encoder: SparseAutoEncoder) -> SparseAutoEncoder:
    """Make the mask of dead latents use the present `dead_threshold`: its own mask keeps the constructor's."""
    encoder.auxk_mask_fn = lambda latents: latents * (encoder.stats_last_nonzero > encoder.dead_threshold)
    return encoder


def _split(modules: list[nn.Module]) -> tuple[list[nn.Module], SparseAutoEncoder | None]:
    """The dense modules, and the autoencoder if there is one."""
    *dense, last = modules
    return (dense, last) if isinstance(last, SparseAutoEncoder) else (modules, None)


def _modules(name: str, revision: str | None) -> list[nn.Module]:
    """Load the modules of a dense model or a CSR checkpoint, in float32 on the CPU."""
    path = ModelRef.parse(name).location
    modules = ModelRef.parse(path, revision).read_json("modules.json")
    kinds = [module["type"].rsplit(".", 1)[-1] for module in modules or ()]
    kind = SparseEncoder if kinds and kinds[-1] == "SparseAutoEncoder" else SentenceTransformer
    with loading(f"{name!r}, a dense model of sentence-transformers,", StudentError):
        loaded = list(kind(path, revision=revision, device="cpu", model_kwargs={"dtype": torch.float32}))
    if not isinstance(loaded[0], Transformer) or loaded[0].tokenizer is None:
        raise StudentError(
            f"{name!r} cannot be a csr student: its first module must be a Transformer with a tokenizer, but its "
            f"modules are {', '.join(type(module).__name__ for module in loaded)}"
        )
    if any(isinstance(module, Pooling) and not module.include_prompt for module in loaded):
        raise StudentError(
            f"{name!r} cannot be a csr student: it excludes its prompt from pooling (include_prompt: false), which is "
            "not supported"
        )
    return loaded


def _dimension(modules: Sequence[nn.Module]) -> int:
    """Dimension of the dense vector."""
    return next(
        size
        for module in reversed(modules)
        if (size := getattr(module, "get_embedding_dimension", lambda: None)()) is not None
    )
