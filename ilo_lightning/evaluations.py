"""Generator evaluations, shared out among stages, searches of the range and a refit. Numbers only; imports no torch."""

from __future__ import annotations

from collections.abc import Sequence

from .schedule import ScheduleError


def searches_of(layers: Sequence[int], centers: Sequence[str]) -> int:
    """For how many stages the range of the layers above is searched: the first below the codes begins in it."""
    return sum(
        center == "range" and before > layers[0] for before, center in zip(layers[:-1], centers[1:], strict=True)
    )


def shared_out(
    evaluations: int, steps: Sequence[int], range_steps: int, refit_steps: int, searches: int, copies: int
) -> tuple[list[int], int, int]:
    """Steps per stage, of each search, and of a refit, that take so many evaluations of an image, all copies together,
    in the proportions of those given; each that has a step keeps one.

    Raises:
        ScheduleError: if there are too few.
    """
    if not any(steps):
        raise ScheduleError(f"method.steps={list(steps)}: at least one stage needs a step")
    share = 0
    if refit_steps:
        given = copies * (sum(steps) + searches * range_steps) + refit_steps
        least = copies * (sum(value > 0 for value in steps) + searches)
        share = max(1, min(evaluations * refit_steps // given, evaluations - least))
    budget = (evaluations - share) // max(copies, 1)
    stages = sum(value > 0 for value in steps)
    total = sum(steps) + searches * range_steps
    if budget < stages + searches:
        raise ScheduleError(
            f"method.evaluations={evaluations}: expected at least {(stages + searches) * copies + share}, "
            f"one for each of {stages} stages{f' and {searches} searches' if searches else ''}"
            f"{f' of {copies} copies (restarts × candidates)' if copies > 1 else ''}"
            f"{f', and {share} of refit' if share else ''}; "
            "or null to take method.steps as they are"
        )
    most = (budget - stages) // searches if searches else 0
    search = min(max(1, budget * range_steps // total), most) if searches else range_steps
    left = budget - searches * search - stages  # beyond one for each
    ideal = [max(left, 0) * value / sum(steps) for value in steps]
    spread = [int(value) + (given > 0) for value, given in zip(ideal, steps, strict=True)]
    rest = budget - searches * search - sum(spread)
    order = sorted((i for i, given in enumerate(steps) if given), key=lambda i: (int(ideal[i]) - ideal[i], i))
    for i in order[: max(rest, 0)]:
        spread[i] += 1
    # A refit has what can't be shared out evenly.
    return spread, search, evaluations - copies * (sum(spread) + searches * search) if share else refit_steps
