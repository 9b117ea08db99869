"""Unintended changes of what a run computes: fingerprint inputs, files and losses against tests/golden/.

An intended change is named in CHANGELOG.md; `python -m tests.helpers.golden_records` then writes new records.
"""

from __future__ import annotations

import json

import numpy as np
import pytest

from tests.helpers.golden_records import CONFIGS, RECORDS, fingerprint_inputs, processor, recipe_models, whole_run

RECIPES = sorted(path.stem for path in CONFIGS.glob("*.yaml"))


@pytest.fixture(scope="module")
def tiny(tmp_path_factory):
    return recipe_models(tmp_path_factory.mktemp("golden"))


@pytest.fixture(scope="module")
def recorded():
    return json.loads((RECORDS / "fingerprints.json").read_text())


@pytest.mark.parametrize("name", RECIPES)
def test_a_shipped_recipe_has_the_recorded_fingerprint_inputs(name, tiny, recorded, tmp_path):
    assert json.loads(json.dumps(fingerprint_inputs(name, tiny, tmp_path))) == recorded[name]


@pytest.mark.parametrize("kind", ["splade", "inference-free"])
def test_a_whole_run_writes_the_recorded_files_with_the_recorded_losses(kind, tmp_path):
    recorded, now = json.loads((RECORDS / f"{kind}.json").read_text()), whole_run(kind, tmp_path)
    for losses, recorded_losses in zip(now["losses"], recorded["losses"], strict=True):
        # of one kind of processor: Adam turns the rounding of another into steps
        np.testing.assert_allclose(losses, recorded_losses, rtol=1e-2)
    expected = recorded["digests"].get(processor())
    if expected is None:  # another kind of processor: only files without results of floating-point arithmetic
        expected = {
            name: digest
            for name, digest in next(iter(recorded["digests"].values())).items()
            if name.startswith("data/") and "/index/" not in name
        }
    assert {name: now["digests"].get(name) for name in expected} == expected
