"""Energy and CO2 of each stage, estimated by CodeCarbon if the recipe asks for it.

Works offline: the recipe names the country whose electricity is used. Only the machine that runs the stage is measured;
Ray workers and ranks on other machines are not included.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

from distill.errors import RecipeError
from distill.run.files import append_json_line, read_json_lines
from distill.run.layout import RunFolder
from distill.run.rank import is_rank_zero
from distill.run.run import Run


@contextlib.contextmanager
def measure_emissions(run: Run, stage: str) -> Iterator[None]:
    """Append a line to logs/emissions.jsonl when the block ends, even by an error: the energy has been used."""
    if run.recipe.tracking.codecarbon is None or not is_rank_zero():
        yield
        return
    try:
        from codecarbon import OfflineEmissionsTracker
        from codecarbon.input import DataSource
    except ImportError as error:
        raise RecipeError(
            f"tracking.codecarbon needs the package codecarbon ({error}): pip install 'splade-distill[codecarbon]'"
        ) from None
    country = run.recipe.tracking.codecarbon
    if country not in DataSource().get_global_energy_mix_data():
        raise RecipeError(
            f"tracking.codecarbon: CodeCarbon has no energy data for the country {country!r}; use a "
            "three-letter ISO 3166 code: FRA, USA, DEU, ..."
        )
    tracker = OfflineEmissionsTracker(
        country_iso_code=country, save_to_file=False, log_level="error", allow_multiple_runs=True
    )
    tracker.start()
    try:
        yield
    finally:
        tracker.stop()
        emissions = tracker.final_emissions_data
        append_json_line(
            run.folder.logs / "emissions.jsonl",
            {
                "stage": stage,
                "seconds": round(emissions.duration, 1),
                "energy_kwh": emissions.energy_consumed,
                "co2_kg": emissions.emissions,
                "country": emissions.country_iso_code,
                "cpu": emissions.cpu_model,
                "gpu": emissions.gpu_model or None,
            },
        )


def emissions_of(folder: RunFolder) -> list[dict[str, Any]]:
    """One entry per stage, summed over its attempts, in the order of the first; empty if nothing was measured."""
    stages: dict[str, dict[str, Any]] = {}
    for line in read_json_lines(folder.logs / "emissions.jsonl"):
        entry = stages.setdefault(line["stage"], {**line, "seconds": 0.0, "energy_kwh": 0.0, "co2_kg": 0.0})
        for key in ("seconds", "energy_kwh", "co2_kg"):
            entry[key] += line[key]
    return list(stages.values())
