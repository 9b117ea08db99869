"""`student`: the model that is trained, and how it encodes."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from distill.config.base import AUTO, IfSet, Positive, Section
from distill.errors import RecipeError

Length = Positive | Literal["auto"]


class CalibratedStart(Section):
    """An MLM head for a backbone without one, set so that the untrained student is already a fair retriever."""

    passages: Positive = 1000
    """Number of passages to measure."""
    percentile: Annotated[float, Field(gt=0, lt=100)] = 99.0
    """A term is inactive below this percentile of its maximum logits over texts without the term."""
    margin: Annotated[float, Field(gt=0)] = 1.5
    """Mean logit of a text's own words, above that percentile."""
    idf_scale: Annotated[float, Field(ge=0)] = 0.5
    """Highest mean logit of a text's own word, per unit of its IDF; common words are lowered to it."""


class LexicalStart(Section):
    """Learning BM25's vectors of the passages before the distillation: how often a word occurs, how long the text is,
    which word forms are one word. It needs no queries, judgements or teachers."""

    excerpt_words: ClassVar[tuple[int, int]] = (4, 24)  # of an excerpt, the first and the last number drawn

    passages: Positive = 4000
    """Number of passages that are learnt from, drawn at random, each with an excerpt that is encoded as a query."""
    epochs: Positive = 1
    """Passes over these passages."""
    batch_size: Positive = 4
    """Passages per optimizer step."""
    head_share: Annotated[float, Field(ge=0)] = 0.5
    """Share of its own weights at the outset, such as those of expansion terms, that a text's target keeps."""
    lr: Annotated[float, Field(gt=0)] = 3e-4
    """Peak learning rate of the encoder."""
    head_lr: Annotated[float, Field(gt=0)] = 1e-3
    """Peak learning rate of the MLM head."""
    bias_lr: Annotated[float, Field(gt=0)] = 5e-3
    """Peak learning rate of the MLM head's biases, one number per term."""

    def of(self, size: int) -> int:
        """Number of passages that are learnt from in a collection of `size`."""
        return min(self.passages, size)


class ModelQuery(Section):
    """Queries encoded by the model."""

    kind: Literal["model", "lexical"]
    """`model`: with expansion (SPLADE); `lexical`: the model's weights of the query's own tokens only."""


class BinaryQuery(Section):
    """Queries without a model or weights (SPLADE-doc)."""

    kind: Literal["binary"]
    """Each distinct token of the query has the weight 1."""


class IdfQuery(Section):
    """Queries weighted by a table with one weight per term, which starts at the IDF among the passages."""

    kind: Literal["idf", "learned"]
    """`idf`: the table is frozen; `learned`: it is trained (Li-LSR)."""
    file: str | None = None
    """Initial weights: an idf.json as OpenSearch ships it, or a hub model that has one. null: the IDF."""


Query = Annotated[ModelQuery | BinaryQuery | IdfQuery, Field(discriminator="kind")]


class Prompts(Section):
    """Prefixes of all texts, in training and encoding; saved with the model."""

    query: str = ""
    """Prefix of queries."""
    document: str = ""
    """Prefix of passages."""


class Student(Section):
    """A SPLADE model: a masked language model whose MLM logits are pooled into term weights."""

    kind: Literal["splade"] = "splade"
    """A SPLADE model."""
    model: str
    """Model to start from: hub name, path, or package:<module>/<folder>."""
    revision: str | None = None
    """Commit, branch or tag on the hub. null: the default branch."""
    layers: Positive | None = None
    """Number of layers to keep, from the lowest. null: all."""
    start: Literal["auto", "mlm", "calibrated"] = "auto"
    """MLM head at the start: the checkpoint's (`mlm`) or a calibrated one. `auto`: calibrated if the checkpoint has no
    MLM head."""
    calibration: CalibratedStart = CalibratedStart()
    """Settings of a calibrated start."""
    lexical_start: IfSet[LexicalStart | None] = None
    """Learn BM25's vectors of the passages before the distillation (in languages with blanks between words). null: do
    not."""
    query: Query = ModelQuery(kind="model")
    """How queries are weighted; passages are always encoded by the model."""
    pooling: Literal["max", "sum"] = "max"
    """Pooling of a term's logits over the tokens of a text."""
    activation: Literal["relu", "log1p_relu"] = "relu"
    """Term weight of a pooled logit x: log1p(relu(x)), or log1p(log1p(relu(x))) for `log1p_relu`."""
    query_max_length: Length = 64
    """Maximum number of tokens per query, special tokens included. `auto`: chosen after the import so that at most 1 %
    of the queries of any split are cut, within what the model takes."""
    passage_max_length: Length = 128
    """Maximum number of tokens per passage, special tokens included. `auto`: chosen after the import so that at most
    5 % of the passages are cut, but no more than 256 tokens and what the model takes."""
    top_k: Positive | None = None
    """Number of terms kept per text when encoding, the strongest (saved as `max_active_dims`). null: all."""
    lower_case: bool = False
    """Lower-case texts, for a tokenizer that preserves case."""
    prompts: Prompts = Prompts()
    """Prefixes of texts."""

    @model_validator(mode="after")
    def _no_prompt_for_lexical_queries(self) -> Student:
        if self.prompts.query and self.query.kind != "model":
            raise ValueError(
                f"prompts.query cannot be used with `query: {{kind: {self.query.kind}}}`: its tokens would be terms of "
                "every query; remove it"
            )
        return self


class OtherStudent(Section):
    """Fields of students that are not masked language models."""

    model: str
    """Model to start from: hub name, path, or package:<module>/<folder>."""
    revision: str | None = None
    """Commit, branch or tag on the hub. null: the default branch."""
    query_max_length: Length = 64
    """Maximum number of tokens per query, special tokens included. `auto`: chosen after the import so that at most 1 %
    of the queries of any split are cut, within what the model takes."""
    passage_max_length: Length = 128
    """Maximum number of tokens per passage, special tokens included. `auto`: chosen after the import so that at most
    5 % of the passages are cut, but no more than 256 tokens and what the model takes."""
    prompts: Prompts = Prompts()
    """Prefixes of texts."""

    query: ClassVar[ModelQuery] = ModelQuery(kind="model")
    layers: ClassVar[None] = None
    top_k: ClassVar[None] = None


class Reconstruction(Section):
    """Loss on the reconstruction of the dense vectors by the autoencoder (`CSRReconstructionLoss`)."""

    weight: Annotated[float, Field(gt=0)] = 1.0
    """Factor of this loss in the sum."""
    beta: Annotated[float, Field(ge=0)] = 0.1
    """Factor of the part in which dead latents reconstruct the remainder."""


class CsrStudent(OtherStudent):
    """A dense model of sentence-transformers, or an earlier CSR checkpoint, and an autoencoder that makes its vectors
    sparse (CSR, arXiv 2503.01776)."""

    kind: Literal["csr"]
    """A dense model with a sparse autoencoder."""
    latents: Positive | None = None
    """Number of terms. null: four times the dense vector's dimensions."""
    k: Positive = 64
    """Number of terms kept per text."""
    dead_after: Positive = 30
    """Optimizer steps without use after which a latent is dead, and serves `reconstruction` instead."""
    frozen: bool = False
    """Train the autoencoder only, as in the paper."""
    reconstruction: Reconstruction | None = None
    """Reconstruction loss, added to the losses of `train`. null: none."""


class CustomStudent(OtherStudent):
    """A user-defined class derived from `distill.Student`; its `start` receives this section."""

    kind: Literal["custom"]
    """A user-defined class."""
    cls: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    """Import path of the class, package.module:Class."""
    options: dict[str, Any] = {}
    """Options of the class."""


def _kind(student: Any) -> Any:
    return student.get("kind", "splade") if isinstance(student, dict) else getattr(student, "kind", "splade")


AnyStudent = Annotated[
    Annotated[Student, Tag("splade")] | Annotated[CsrStudent, Tag("csr")] | Annotated[CustomStudent, Tag("custom")],
    Discriminator(_kind, custom_error_type="kind", custom_error_message="kind is splade, csr or custom"),
]


def max_length(student: Student | OtherStudent, side: Literal["query", "passage"]) -> int:
    """Return the maximum number of tokens of a query or a passage. Raises `RecipeError` if it is not chosen yet."""
    length = student.query_max_length if side == "query" else student.passage_max_length
    if length == AUTO:
        raise RecipeError(
            f"student.{side}_max_length is auto, but no value has been chosen: run `distill import` first, or set a "
            "number"
        )
    return length
