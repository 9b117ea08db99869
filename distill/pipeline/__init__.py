"""Run, check, plan and submit the stages, in order."""
