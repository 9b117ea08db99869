"""`student`: which model is trained, and how it encodes."""

from __future__ import annotations

from typing import Annotated, Any, ClassVar, Literal

from pydantic import Discriminator, Field, Tag, model_validator

from distill.config.base import Positive, Section


class CalibratedStart(Section):
    """An MLM head for a backbone without one, set so that the untrained student is already a fair retriever."""

    passages: Positive = 1000  # measured on these
    percentile: Annotated[float, Field(gt=0, lt=100)] = 99.0  # of a term's maximum logit over texts without the term
    margin: Annotated[float, Field(gt=0)] = 1.5  # mean logit, above that percentile, of the words in a text
    idf_scale: Annotated[float, Field(ge=0)] = 0.5  # highest mean logit of a text's own word, per unit of its IDF


class ModelQuery(Section):
    kind: Literal["model", "lexical"]  # SPLADE; lexical: the model's weights, but of the query's own tokens only


class BinaryQuery(Section):
    kind: Literal["binary"]  # SPLADE-doc: each distinct token of a query weighs one


class IdfQuery(Section):
    """A weight a term: its IDF among the passages at the start, frozen (`idf`) or trained (`learned`, Li-LSR)."""

    kind: Literal["idf", "learned"]
    file: str | None = None  # other weights instead: an idf.json as OpenSearch ships, or a hub model that has one


Query = Annotated[ModelQuery | BinaryQuery | IdfQuery, Field(discriminator="kind")]


class Prompts(Section):
    """What is put before every text of a kind, in training as in encoding; saved with the model."""

    query: str = ""
    document: str = ""  # passages


class Student(Section):
    kind: Literal["splade"] = "splade"
    model: str
    revision: str | None = None
    layers: Positive | None = None  # keep only the lower layers
    start: Literal["auto", "mlm", "calibrated"] = "auto"  # auto: calibrated where the checkpoint has no MLM head
    calibration: CalibratedStart = CalibratedStart()
    query: Query = ModelQuery(kind="model")  # how queries are weighted; passages are always the model's
    pooling: Literal["max", "sum"] = "max"
    activation: Literal["relu", "log1p_relu"] = "relu"  # log1p(relu(x)), or log1p(log1p(relu(x)))
    query_max_length: Positive = 64
    passage_max_length: Positive = 128
    top_k: Positive | None = None  # keep only the strongest terms of a text when encoding (saved: max_active_dims)
    lower_case: bool = False  # for tokenizers that keep case
    prompts: Prompts = Prompts()

    @model_validator(mode="after")
    def _no_prompt_in_a_table(self) -> Student:
        if self.prompts.query and self.query.kind != "model":
            raise ValueError(
                f"prompts.query: with `query: {{kind: {self.query.kind}}}` its words would be terms of "
                "every query; leave it out"
            )
        return self


class OtherStudent(Section):
    """What students that are no masked language models have in common. `model`: what it starts from."""

    model: str
    revision: str | None = None
    query_max_length: Positive = 64
    passage_max_length: Positive = 128
    prompts: Prompts = Prompts()

    query: ClassVar[ModelQuery] = ModelQuery(kind="model")
    layers: ClassVar[None] = None
    top_k: ClassVar[None] = None


class CsrStudent(OtherStudent):
    """A dense model, and an autoencoder that makes its vectors sparse (CSR, arXiv 2503.01776). `model`: of
    sentence-transformers, or an earlier CSR checkpoint."""

    kind: Literal["csr"]
    latents: Positive | None = None  # terms there are; None: four times the dense vector's dimensions
    k: Positive = 64  # terms a text keeps
    dead_after: Positive = 30  # updates in a row without a latent, after which it is put to use (`reconstruction`)
    frozen: bool = False  # the dense model stays as it is, as in the paper


class CustomStudent(OtherStudent):
    """`cls`: import path of a class derived from `distill.student.base.Student`; its `start` gets this section."""

    kind: Literal["custom"]
    cls: Annotated[str, Field(pattern=r"^[\w.]+:\w+$")]
    options: dict[str, Any] = {}


def _kind(student: Any) -> Any:
    return student.get("kind", "splade") if isinstance(student, dict) else getattr(student, "kind", "splade")


AnyStudent = Annotated[
    Annotated[Student, Tag("splade")] | Annotated[CsrStudent, Tag("csr")] | Annotated[CustomStudent, Tag("custom")],
    Discriminator(_kind, custom_error_type="kind", custom_error_message="kind is splade, csr or custom"),
]
