"""What a leaderboard says, in sentences: who won, whether that is more than chance, and what mattered."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from jepa.sweep.collect import SEED
from jepa.sweep.statistics import LEVEL, Comparison, Setting
from jepa.sweep.wording import counted, listed, number, options, plural, short_names, with_error

if TYPE_CHECKING:
    from jepa.sweep.leaderboard import Leaderboard

MORE_SEEDS = "trainer.seed=0,1,2"
UNDER_WAY = ("queued", "running", "preempted")
SHOWN_ON_FRONT = 4


def conclusions(board: Leaderboard) -> list[str]:
    """All of them, the most general first."""
    lines = [counted([run.state for run in board.runs]) + "."]
    lines += left_out(board)
    if not any(run.counts(board.metric) for run in board.runs):
        return [*lines, f"No run has come to its end with {board.metric}, so nothing is compared."]
    lines += front(board) if len(board.objectives) > 1 else [*winner(board), *differences(board)]
    return [*lines, *importance(board)]


def left_out(board: Leaderboard) -> list[str]:
    """Which runs are in no mean, and whether more are to come."""
    lines = []
    verdicts = Counter(run.verdict for run in board.runs if run.collapsed)
    if verdicts:
        kinds = listed([f"{count} {verdict}" for verdict, count in verdicts.items()])
        lines.append(f"The collapse monitor found something wrong with {plural(verdicts.total(), 'run')}: {kinds}.")
    bad = sum(run.state == "failed" or run.collapsed for run in board.runs)
    if bad:
        was = "is" if bad == 1 else "are"
        lines.append(f"{plural(bad, 'run')} that failed or collapsed {was} left out of all means.")
    waiting = sum(run.state in UNDER_WAY for run in board.runs)
    if waiting:
        lines.append(f"Provisional: {plural(waiting, 'run')} of {len(board.runs)} to come.")
    return lines


def name_of(board: Leaderboard, setting: Setting) -> str:
    """A setting by its options, or by its run where no option tells it from others."""
    names = short_names(board.options)
    return options(setting.options, names) or listed([f"run {run.folder}" for run in setting.runs][:3])


def winner(board: Leaderboard) -> list[str]:
    """The best setting, with its mean."""
    best = board.settings[0]
    mean, count = best.estimate, best.estimate.count
    if count == 1:
        measured = f"{number(mean.mean)} (one seed)"
    else:
        measured = f"{with_error(mean.mean, mean.half)} (mean and {LEVEL:.0%} interval over {plural(count, 'seed')})"
    missing = f"; {plural(best.bad, 'more run')} of it failed or collapsed" if best.bad else ""
    runs = listed([run.folder for run in best.runs if run.counts(board.metric)][:5])
    who = f"{name_of(board, best)} won" if len(board.settings) > 1 else "There is one setting"
    return [f"{who}: {board.metric} {measured}{missing} (run {runs})."]


def differences(board: Leaderboard) -> list[str]:
    """Whether the best setting is told from the others."""
    comparisons = board.comparisons
    if not comparisons:
        return []
    lines = [against(board, comparisons[0], len([item for item in comparisons if item.seeds >= 2]))]
    if len(comparisons) > 1 and any(item.seeds >= 2 for item in comparisons):
        real = [item for item in comparisons if item.is_real]
        lines.append(
            f"It is told from chance against {len(real)} of the {len(comparisons)} other settings"
            + (f"; not against {open_ones(board)}." if real and len(real) < len(comparisons) else ".")
        )
    if any(item.seeds < 2 for item in comparisons):
        lines.append(f"Settings of one seed cannot be told from chance: add {MORE_SEEDS} to the sweep.")
    return lines


def open_ones(board: Leaderboard, most: int = 3) -> str:
    """The settings that the best is not told from, the closest first."""
    names = [name_of(board, item.other) for item in board.comparisons if not item.is_real]
    more = [f"{len(names) - most} more"] if len(names) > most else []
    return listed([*names[:most], *more])


def against(board: Leaderboard, item: Comparison, tests: int) -> str:
    """The best setting against the runner-up. tests: how many were corrected for."""
    other, lead = name_of(board, item.other), number(abs(item.difference), 3)
    if item.seeds < 2:
        return f"Its lead of {lead} over {other}, the runner-up, cannot be told from chance: one has a single seed."
    if item.p is None:
        if item.difference == 0:
            return f"{other}, the runner-up, has the same value in every seed."
        return (
            f"Its lead of {lead} over {other}, the runner-up, cannot be told from chance: no value changes with the "
            f"seed, so the noise is not known ({SEED} without effect, or a metric too coarse)."
        )
    low, high = sorted((abs(item.low), abs(item.high))) if item.low * item.high > 0 else sorted((item.low, item.high))
    how = "paired by seed" if item.method == "paired" else "Welch"
    corrected = f" after Holm over {plural(tests, 'comparison')}" if tests > 1 else ""
    verdict = "is more than chance" if item.is_real else "cannot be told from chance"
    return (
        f"Its lead of {lead} over {other}, the runner-up, {verdict}: {LEVEL:.0%} interval {number(low, 3)} to "
        f"{number(high, 3)}, {how}, {plural(item.seeds, 'seed')}, p = {number(item.corrected, 2)}{corrected}."
        + ("" if item.is_real else f" More seeds tell: {SEED}=0,1,2,3,4.")
    )


def front(board: Leaderboard) -> list[str]:
    """The runs that are best in some balance of the objectives."""
    ways = listed([f"{name} ({way})" for name, way in board.objectives.items()])
    if not board.front:
        return [f"No run has come to its end with {listed(list(board.objectives))}, so there is no Pareto front yet."]
    names = short_names(board.options)
    runs = []
    for run in board.front[:SHOWN_ON_FRONT]:
        values = ", ".join(f"{name} {number(run.value(name))}" for name in board.objectives)
        runs.append(f"run {run.folder} ({options(run.overrides, names)}): {values}")
    more = len(board.front) - len(runs)
    tail = f"; and {more} more" if more else ""
    are = "run is" if len(board.front) == 1 else "runs are"
    return [f"By {ways}, {len(board.front)} {are} not beaten in both by any other: {'; '.join(runs)}{tail}."]


def importance(board: Leaderboard) -> list[str]:
    """The options that the metric depends on most."""
    found = board.importances
    if not found:
        return []
    tops = [f"{key} ({share:.0%})" for key, share in list(found.items())[:3] if share >= 0.01]
    runs = sum(run.counts(board.metric) for run in board.runs)
    few = ", a guess with so few" if runs < 10 * len(found) else ""
    return [f"{board.metric} depends most on {listed(tops)}, by a random forest over {plural(runs, 'run')}{few}."]
