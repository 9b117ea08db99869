"""Results of a run: the final table, HTML report, model card, trackers, upload to the hub."""
