"""What a run shows for itself: the final table, an HTML report, the checkpoint's model card, trackers, the hub."""
