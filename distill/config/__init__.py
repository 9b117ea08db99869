"""The recipe: one tree of frozen, strict models, which one YAML file holds (`distill.recipe_file` reads and writes it).

Every stage takes the `Recipe` (or its own section of it) and nothing else from the outside, so a run is
described by this file alone. Unknown fields are refused, with the nearest valid name. What a stage's
output depends on is what its fingerprint holds (`distill.data.fingerprint`), not the whole recipe.
A file a section.
"""

from distill.config.base import Dtype, Fraction, Positive, Section, Split, resolve_model
from distill.config.cluster import Cluster, Slurm, SlurmJob, Stage
from distill.config.data import (
    Beir,
    Data,
    GenerateQueries,
    HuggingFace,
    IrDatasets,
    Jsonl,
    ModelShape,
    MsMarco,
    NaverScores,
    PythonDocs,
    Sizes,
    Source,
)
from distill.config.evaluation import Evaluate, Seismic, Tracking, Wandb
from distill.config.losses import (
    AdrMseLoss,
    AnyRegularizer,
    CosentLoss,
    CosineLoss,
    CustomLoss,
    CustomRegularizer,
    DfFlopsRegularizer,
    EmbeddingMseLoss,
    InfoNceLoss,
    KlLoss,
    Loss,
    MarginMseLoss,
    RankNetLoss,
    Regularizer,
    TripletLoss,
)
from distill.config.ranking import FineTune, Label, Mine, Miner, Score, Teacher
from distill.config.recipe import Recipe
from distill.config.rounds import Follows
from distill.config.student import BinaryQuery, CalibratedStart, IdfQuery, ModelQuery, Prompts, Query, Student
from distill.config.train import OWN, Checkpoints, Dataset, Mixing, Sampling, TopK, Train

__all__ = [
    "OWN",
    "AdrMseLoss",
    "AnyRegularizer",
    "Beir",
    "BinaryQuery",
    "CalibratedStart",
    "Checkpoints",
    "Cluster",
    "CosentLoss",
    "CosineLoss",
    "CustomLoss",
    "CustomRegularizer",
    "Data",
    "Dataset",
    "DfFlopsRegularizer",
    "Dtype",
    "EmbeddingMseLoss",
    "Evaluate",
    "FineTune",
    "Follows",
    "Fraction",
    "GenerateQueries",
    "HuggingFace",
    "IdfQuery",
    "InfoNceLoss",
    "IrDatasets",
    "Jsonl",
    "KlLoss",
    "Label",
    "Loss",
    "MarginMseLoss",
    "Mine",
    "Miner",
    "Mixing",
    "ModelQuery",
    "ModelShape",
    "MsMarco",
    "NaverScores",
    "Positive",
    "Prompts",
    "PythonDocs",
    "Query",
    "RankNetLoss",
    "Recipe",
    "Regularizer",
    "Sampling",
    "Score",
    "Section",
    "Seismic",
    "Sizes",
    "Slurm",
    "SlurmJob",
    "Source",
    "Split",
    "Stage",
    "Student",
    "Teacher",
    "TopK",
    "Tracking",
    "Train",
    "TripletLoss",
    "Wandb",
    "resolve_model",
]
