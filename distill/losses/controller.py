"""The weight of a regulariser that holds a target: `target_terms`, the mean number of active terms per text.

A proportional-integral controller of the weight's logarithm leads the terms from where they start to the target, on a
course that flattens towards the end of the training, as a decaying learning rate makes the terms slower:

    log course_t = log target + max(1 - t / (COURSE · steps), 0)² · (log start - log target)
    e_t = clip(log(smoothed_t / course_t), -1, 1)
    log multiplier_t = PROPORTIONAL · e_t + integral_t,    integral_t = integral_{t-1} + ramp_t · rate · e_t

Errors are relative, so that neither the size of the vocabulary nor the scale of a penalty matters. Terms follow the
weight with a delay, and dead terms get no gradient to come back: the proportional part must take the weight back before
they fall below the course; an integral part alone overshoots. The integral part leaves out errors of terms that are
ahead of the course but not beyond the target: the losses alone make a dense student sparser in its first steps.
Without a course the weight would grow all the time that a dense student needs to become sparse, which the learning rate
limits, and be far too large when it arrives.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

PROPORTIONAL = 14.0
REACH = 60.0  # sum of the rates of a training
FASTEST = 0.4  # rate of a training of few steps
SMOOTHING = 0.5  # of the exponential mean of the measured terms: about two steps, since a delay makes it overshoot
COURSE = 0.9  # share of the training after which the target is due
BOUND = math.log(1e3)  # of a multiplier's logarithm, up and down


@dataclass(frozen=True)
class Control:
    """The state of a controller. `multiplier`: factor of the weight; `start` and `smoothed` count terms per text."""

    multiplier: float = 1.0
    integral: float = 0.0
    start: float | None = None  # at the first step; None before it
    smoothed: float = 0.0

    def adjusted(self, measured: float, target: int, step: int, total_steps: int, ramp: float) -> Control:
        """Return the state after optimizer step `step` (1 for the first) of `total_steps`.

        `measured`: mean number of active terms per text in this step; `ramp`: fraction of the weight in it.
        """
        start = max(measured, 1.0) if self.start is None else self.start
        smoothed = measured if self.start is None else SMOOTHING * self.smoothed + (1 - SMOOTHING) * measured
        left = max(1 - step / (COURSE * total_steps), 0.0)
        course = target * math.pow(start / target, left**2)
        error = _error(smoothed, course)
        beyond = _error(smoothed, target)
        lasting = max(error, min(beyond, 0.0)) if start > target else min(error, max(beyond, 0.0))
        rate = min(REACH / total_steps, FASTEST)  # a longer training has a lower learning rate: terms follow slowly
        integral = self.integral + ramp * rate * lasting
        if abs(PROPORTIONAL * error + integral) > BOUND:  # more of it would change nothing now, and delay the return
            integral = self.integral
        logarithm = min(max(PROPORTIONAL * error + integral, -BOUND), BOUND)
        return Control(math.exp(logarithm), integral, start, smoothed)


def _error(terms: float, due: float) -> float:
    return math.log(min(max(terms / due, 1 / math.e), math.e))
