"""naver's RankT5 rankers: a T5 encoder with a head that no Auto class loads (arXiv 2210.10634, Enc-Softmax).

The score is Linear(LayerNorm(Linear(h_0))) of the first token, without a nonlinearity in between, as
naver/trecdl22-crossencoder-rankT53b-repro was trained. An example of a user-defined teacher:

    rankt5:
      kind: custom
      cls: teachers.rank_t5:RankT5
      options: {model: naver/trecdl22-crossencoder-rankT53b-repro, backbone: google-t5/t5-3b}
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from distill.run.ahead import ahead
from distill.run.device import default_device
from distill.run.model_ref import ModelRef
from distill.store.token_batches import token_batches
from teachers.identity import model_identity
from teachers.models import load_config, load_tokenizer, loading


class RankT5(nn.Module):
    """`model` holds the weights (pytorch_model.bin), `backbone` the configuration and the tokenizer."""

    def __init__(
        self,
        model: str,
        backbone: str = "google-t5/t5-3b",
        revision: str | None = None,
        max_length: int = 256,
        batch_tokens: int = 16384,
    ):
        super().__init__()
        from transformers import T5EncoderModel

        self._max_length, self._batch_tokens = max_length, batch_tokens
        config = load_config("RankT5", ModelRef.parse(backbone))
        self.tokenizer = load_tokenizer("RankT5", ModelRef.parse(backbone))
        with torch.device("meta"):  # no initialisation: the weights come from the file
            self.model = T5EncoderModel(config)
            self.first_transform = nn.Linear(config.d_model, config.d_model)
            self.layer_norm = nn.LayerNorm(config.d_model, eps=1e-12)
            self.linear = nn.Linear(config.d_model, 1)
        state = loading(
            "RankT5",
            model,
            lambda: torch.load(_weights(model, revision), map_location="cpu", mmap=True, weights_only=True),
        )
        loading("RankT5", model, lambda: self.load_state_dict(state, assign=True))
        self._device = torch.device(default_device())
        self.eval().requires_grad_(False).to(self._device)

    @classmethod
    def identity(
        cls,
        model: str,
        backbone: str = "google-t5/t5-3b",
        revision: str | None = None,
        max_length: int = 256,
        batch_tokens: int = 16384,
    ) -> dict[str, Any]:
        body = model_identity("RankT5", ModelRef.parse(backbone), weights=False)
        return {"max_length": max_length, "backbone": body, **model_identity("RankT5", ModelRef.parse(model, revision))}

    @torch.inference_mode()
    def score(self, queries: list[str], passages: list[str]) -> np.ndarray:
        """float32 [n] raw scores of n pairs of texts."""
        encoded = self.tokenizer(queries, passages, truncation="longest_first", max_length=self._max_length)
        lengths = np.array([len(ids) for ids in encoded["input_ids"]])

        def padded(batch: np.ndarray) -> Any:
            return self.tokenizer.pad({"input_ids": [encoded["input_ids"][i] for i in batch]}, return_tensors="pt")

        order = [np.empty(0, np.int64)]
        results = [torch.empty(0, device=self._device)]  # on the device until the end, so that it never waits
        for batch, inputs in ahead(padded, token_batches(lengths, self._batch_tokens)):
            order.append(batch)
            results.append(self(**inputs.to(self._device)).float())
        scores = np.empty(len(lengths), np.float32)
        scores[np.concatenate(order)] = torch.cat(results).cpu().numpy()
        return scores

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Token ids and mask [b, L] to scores [b]."""
        # T5 was trained in bfloat16; float16 overflows in its feed-forward layers
        with torch.autocast(self._device.type, torch.bfloat16, enabled=self._device.type == "cuda"):
            first = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state[:, 0]  # [b, H]
            return self.linear(self.layer_norm(self.first_transform(first)))[:, 0]


def _weights(model: str, revision: str | None) -> Path:
    if Path(model).is_dir():
        return Path(model) / "pytorch_model.bin"
    from huggingface_hub import hf_hub_download

    return Path(hf_hub_download(model, "pytorch_model.bin", revision=revision))
