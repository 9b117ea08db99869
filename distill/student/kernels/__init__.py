"""What the head computes, on flat arrays: `blocked` in plain torch for any device, faster ones where they exist."""
