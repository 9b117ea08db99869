"""From a YAML file to validated recipes and their runs, one per round."""
