"""Parameters and operations of a model, counted by torch on the meta device, without weights or computation.

A shape declared in a recipe (`data.sizes.models`) is counted as a T5 encoder of that shape, whose matrices are those of
any transformer. Element-wise operations and norms are not counted, as usual.
"""

from __future__ import annotations

import functools
import json
from dataclasses import dataclass
from typing import Any

from distill.config import ModelShape


@dataclass(frozen=True)
class ModelCost:
    """A transformer body and its head over the vocabulary. `config`: its config.json as a string."""

    config: str

    @classmethod
    def of(cls, config: dict[str, Any], layers: int | None = None) -> ModelCost | None:
        """Return the model of a config.json, cut to its lowest `layers`; None if transformers does not know it."""
        try:
            configuration = _configuration(json.dumps(config))
        except (ValueError, KeyError):
            return None
        if layers:
            configuration.num_hidden_layers = layers
        cost = cls(json.dumps(configuration.to_dict(), sort_keys=True, default=str))
        return cost if cost._body is not None else None

    @classmethod
    def of_shape(cls, shape: ModelShape, layers: int | None = None) -> ModelCost:
        """Return a model of a declared shape, or of its lowest `layers`."""
        attention = shape.attention or shape.hidden
        channels = 64 if attention % 64 == 0 else attention
        config = {
            "model_type": "t5",
            "d_model": shape.hidden,
            "num_layers": layers or shape.layers,
            "d_ff": shape.feed_forward or 4 * shape.hidden,
            "d_kv": channels,
            "num_heads": attention // channels,
            "vocab_size": shape.vocabulary or 1,
            "feed_forward_proj": "gated-gelu" if shape.gated else "relu",
        }
        return cls(json.dumps(config, sort_keys=True))

    @property
    def parameters(self) -> float:
        """Number of parameters of the body, including embeddings."""
        return float(sum(parameter.numel() for parameter in self._body.parameters()))

    def forward_flops(self, length: float) -> float:
        """Return the operations of the body per token, in a text of `length` tokens."""
        tokens = max(1, round(length))
        return _flops(self.config, tokens) / tokens

    @property
    def head_flops(self) -> float:
        """Operations of the product over the vocabulary, per token; 0 if the vocabulary is unknown."""
        vocabulary = self._configuration.vocab_size
        return 2.0 * self.hidden * vocabulary if vocabulary > 1 else 0.0

    @property
    def hidden(self) -> int:
        """Hidden size."""
        return int(self._configuration.hidden_size)

    @property
    def layers(self) -> int:
        """Number of layers."""
        return int(self._configuration.num_hidden_layers)

    @property
    def heads(self) -> int:
        """Number of attention heads."""
        return int(self._configuration.num_attention_heads)

    @property
    def _configuration(self) -> Any:
        return _configuration(self.config)

    @property
    def _body(self) -> Any:
        return _body(self.config)


def _configuration(config: str) -> Any:
    from transformers import AutoConfig

    tree = json.loads(config)
    configuration = AutoConfig.for_model(tree.pop("model_type"), **tree)
    return getattr(configuration, "text_config", None) or configuration


@functools.cache
def _body(config: str) -> Any:
    """Build the body (of an encoder-decoder, the encoder) on the meta device; None if transformers cannot build it."""
    import torch
    from transformers import AutoModel

    configuration = _configuration(config)
    configuration._attn_implementation = "eager"  # the counter does not see into other implementations
    try:
        with torch.device("meta"):
            model = AutoModel.from_config(configuration, dtype=torch.float32)
    except (ValueError, KeyError, ImportError):
        return None
    return model.get_encoder() if configuration.is_encoder_decoder else model


@functools.cache
def _flops(config: str, tokens: int) -> int:
    """Count the operations of one text through the body."""
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    try:
        with FlopCounterMode(display=False) as counter, torch.no_grad(), torch.device("meta"):
            _body(config)(input_ids=torch.zeros(1, tokens, dtype=torch.int64))
    except RuntimeError:  # code that reads values (DeBERTa's): count a plain transformer of the same shape
        return _flops(ModelCost.of_shape(_shape(_configuration(config))).config, tokens)
    return int(counter.get_total_flops())


def _shape(configuration: Any) -> ModelShape:
    return ModelShape(
        layers=configuration.num_hidden_layers,
        hidden=configuration.hidden_size,
        feed_forward=configuration.intermediate_size,
        vocabulary=configuration.vocab_size,
    )
