"""Cost of a recipe: volumes, operations, devices, memory."""
