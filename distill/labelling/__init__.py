"""The label stage: training labels from teacher scores."""
