"""What a leaderboard says, in sentences: who won, whether that is more than chance, and what mattered."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from jepa.sweep.collect import SEED
from jepa.sweep.importance import FEWEST
from jepa.sweep.statistics import LEVEL, Comparison, Setting
from jepa.sweep.wording import counted, first, listed, number, options, plural, with_error
from jepa.utils.run_status import FINISHED

if TYPE_CHECKING:
    from jepa.sweep.leaderboard import Leaderboard

SHOWN_ON_FRONT = 4

LONGEST_NAME = 90
"""Characters up to which a setting is named by its options where others are spoken of besides."""


def conclusions(board: Leaderboard) -> list[str]:
    """All of them, the most general first."""
    lines = [counted([run.state for run in board.runs]) + "."]
    lines += left_out(board)
    if not any(run.counts(board.metric) for run in board.runs):
        return [*lines, f"No run has come to its end with {board.metric}, so nothing is compared."]
    if len(board.objectives) > 1:
        lines += front(board)
    return [*lines, *winner(board), *differences(board), *importance(board)]


def left_out(board: Leaderboard) -> list[str]:
    """Which runs are in no mean, and whether more are to come."""
    lines = []
    verdicts = Counter(run.verdict for run in board.runs if run.collapsed)
    if verdicts:
        kinds = listed([f"{verdict} in {count}" for verdict, count in verdicts.items()])
        lines.append(f"The collapse monitor found something wrong with {plural(verdicts.total(), 'run')}: {kinds}.")
    bad = sum(run.bad for run in board.runs)
    if bad:
        was = "is" if bad == 1 else "are"
        lines.append(f"{plural(bad, 'run')} that failed or collapsed {was} left out of all means.")
    blank = sum(run.state == "done" and not run.collapsed and not run.counts(board.metric) for run in board.runs)
    if blank:
        lines.append(f"{plural(blank, 'run')} came to the end without a finite {board.metric}.")
    waiting = sum(run.state not in FINISHED for run in board.runs)
    if waiting:
        lines.append(f"Provisional: {plural(waiting, 'run')} of {len(board.runs)} to come.")
    return lines


def name_of(board: Leaderboard, setting: Setting) -> str:
    """A setting by its options, or by its runs where there are none that tell it from others, or too many."""
    name = options(setting.options, board.names)
    return name if 0 < len(name) <= LONGEST_NAME else runs_of(board, setting)


def runs_of(board: Leaderboard, setting: Setting) -> str:
    """The runs of a setting that count: "run 4", "runs 4, 5 and 3"."""
    folders = [run.folder for run in setting.runs if run.counts(board.metric)]
    return f"{'run' if len(folders) == 1 else 'runs'} {first(folders, 5)}"


def winner(board: Leaderboard) -> list[str]:
    """The best setting, with its mean."""
    best = board.settings[0]
    mean, count = best.estimate, best.estimate.count
    if count == 1:
        measured = f"{number(mean.mean)} (one seed)"
    else:
        measured = f"{with_error(mean.mean, mean.half)} (mean and {LEVEL:.0%} interval over {plural(count, 'seed')})"
    missing = f"; {plural(best.bad, 'more run')} of it failed or collapsed" if best.bad else ""
    alone = f"By {board.metric} alone, " if len(board.objectives) > 1 else ""
    level = sum(item.lead == 0 for item in board.comparisons)
    tied = f" together with {plural(level, 'other setting')}" if level else ""
    # In full, whatever its length: it is what the sweep was for.
    name = options(best.options, board.names) or runs_of(board, best)
    who = f"{alone}{name} won{tied}" if len(board.settings) > 1 else "There is one setting"
    return [f"{who}: {board.metric} {measured}{missing} ({runs_of(board, best)})."]


def differences(board: Leaderboard) -> list[str]:
    """Whether the best setting is told from the others."""
    comparisons = board.comparisons
    if not comparisons:
        return []
    tests = sum(item.seeds >= 2 for item in comparisons)
    lines = [against(board, comparisons[0], tests)]
    if len(comparisons) > 1 and tests:
        real = sum(item.is_real for item in comparisons)
        not_real = [name_of(board, item.other) for item in comparisons if not item.is_real]
        lines.append(
            f"It is told from chance against {real} of the {len(comparisons)} other settings"
            + (f"; not against {first(not_real, 3)}." if 0 < real < len(comparisons) else ".")
        )
    if tests < len(comparisons):
        lines.append(
            "Settings of one seed cannot be told from chance: run the best few with more, such as "
            f"{SEED}=0,1,2 in the sweep."
        )
    return lines


def against(board: Leaderboard, item: Comparison, tests: int) -> str:
    """The best setting against the runner-up. tests: how many were corrected for."""
    other, lead = name_of(board, item.other), number(abs(item.lead), 3)
    if item.lead == 0:
        return f"{other}, the runner-up, has the same mean."
    what = f"Its lead of {lead} over {other}, the runner-up,"
    if item.lead < 0:
        what = f"{other}, the runner-up, is better by {lead} in the {item.seeds} seeds that both have, which"
    if item.seeds < 2:
        return f"{what} cannot be told from chance: one has a single seed."
    if item.p is None:
        return (
            f"{what} cannot be told from chance: it is the same in every seed, so the noise is not known ({SEED} "
            "without effect, or a metric too coarse)."
        )
    how = "paired by seed" if item.method == "paired" else "Welch"
    corrected = f" after Holm over {plural(tests, 'comparison')}" if tests > 1 else ""
    is_real = item.corrected < 1 - LEVEL
    low, high = (item.low, item.high) if item.lead > 0 else (-item.high, -item.low)
    return (
        f"{what} {'is more than chance' if is_real else 'cannot be told from chance'}: {LEVEL:.0%} interval "
        f"{number(low, 3)} to {number(high, 3)}, {how}, {plural(item.seeds, 'seed')}, "
        f"p = {number(item.corrected, 2)}{corrected}." + ("" if is_real else f" More seeds tell: {SEED}=0,1,2,3,4.")
    )


def front(board: Leaderboard) -> list[str]:
    """The runs that are best in some balance of the objectives."""
    ways = listed([f"{name} ({way})" for name, way in board.objectives.items()])
    if not board.front:
        return [f"No run has come to its end with {listed(list(board.objectives))}, so there is no Pareto front yet."]
    runs = []
    for run in board.front[:SHOWN_ON_FRONT]:
        values = ", ".join(f"{name} {number(run.value(name))}" for name in board.objectives)
        runs.append(f"run {run.folder} ({options(run.overrides, board.names)}): {values}")
    more = len(board.front) - len(runs)
    tail = f"; and {more} more" if more else ""
    are = "run is" if len(board.front) == 1 else "runs are"
    each = "both" if len(board.objectives) == 2 else "all"
    return [f"By {ways}, {len(board.front)} {are} not beaten in {each} by any other: {'; '.join(runs)}{tail}."]


def importance(board: Leaderboard) -> list[str]:
    """The options that the metric depends on most."""
    runs = sum(run.counts(board.metric) for run in board.runs)
    if len(board.settings) < 2 or runs < FEWEST:
        return []
    found = board.importances
    tops = [f"{key} ({share:.0%})" for key, share in list(found.items())[:3] if share >= 0.01]
    if not tops:
        return [
            f"What {board.metric} depends on cannot be told from {plural(runs, 'run')}: a random forest foretells none "
            "by the others."
        ]
    few = ", a guess with so few" if runs < 10 * len(found) else ""
    return [
        f"{board.metric} depends most on {listed(tops)}: shares of its variance, by a random forest over "
        f"{plural(runs, 'run')}{few}."
    ]
