"""Energy and CO2 of each stage, estimated by CodeCarbon on the machine that runs it, where the recipe asks for it.

Offline: the recipe names the country whose electricity is used. Ray workers and ranks on other machines are
not in it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from distill.config import Recipe
from distill.data.files import append_json_line, read_json_lines
from distill.data.layout import RunFolder
from distill.errors import RecipeError
from distill.reporting.tracker import first_rank


@contextlib.contextmanager
def measure_emissions(recipe: Recipe, folder: RunFolder, stage: str) -> Iterator[None]:
    """Append a line to logs/emissions.jsonl when the block ends, also by an error: what was spent was spent."""
    if recipe.tracking.codecarbon is None or not first_rank():
        yield
        return
    try:
        from codecarbon import OfflineEmissionsTracker
        from codecarbon.input import DataSource
    except ImportError as error:
        raise RecipeError(
            f"tracking.codecarbon needs the package codecarbon ({error}): pip install 'splade-distill[codecarbon]'"
        ) from None
    country = recipe.tracking.codecarbon
    if country not in DataSource().get_global_energy_mix_data():
        raise RecipeError(
            f"tracking.codecarbon is {country!r}, whose electricity CodeCarbon does not know; give the "
            "code of a country as ISO 3166 has it in three letters: FRA, USA, DEU, ..."
        )
    tracker = OfflineEmissionsTracker(
        country_iso_code=country, save_to_file=False, log_level="error", allow_multiple_runs=True
    )
    tracker.start()
    try:
        yield
    finally:
        tracker.stop()
        spent = tracker.final_emissions_data
        append_json_line(
            folder.logs / "emissions.jsonl",
            {
                "stage": stage,
                "seconds": round(spent.duration, 1),
                "energy_kwh": spent.energy_consumed,
                "co2_kg": spent.emissions,
                "country": spent.country_iso_code,
                "cpu": spent.cpu_model,
                "gpu": spent.gpu_model or None,
            },
        )


def emissions_of(folder: RunFolder) -> list[dict[str, Any]]:
    """One entry a stage, summed over its attempts, in the order they began; empty where nothing was measured."""
    stages: dict[str, dict[str, Any]] = {}
    for line in read_json_lines(folder.logs / "emissions.jsonl"):
        entry = stages.setdefault(line["stage"], {**line, "seconds": 0.0, "energy_kwh": 0.0, "co2_kg": 0.0})
        for what in ("seconds", "energy_kwh", "co2_kg"):
            entry[what] += line[what]
    return list(stages.values())
