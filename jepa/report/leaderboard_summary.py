"""The findings of a leaderboard in sentences: what won, whether that is more than chance, which options matter."""

from __future__ import annotations

from collections import Counter

from jepa.report.formatting import count_states, joined, number, options, plural, with_error
from jepa.report.leaderboard import Leaderboard
from jepa.report.runs import SEED
from jepa.report.sweep_statistics import LEVEL, MIN_RUNS, Comparison, Setting
from jepa.utils.run_status import FINISHED

FRONT_SHOWN = 4
MAX_NAME = 90  # characters up to which a setting is named by its options, else by its runs


def summary(board: Leaderboard) -> list[str]:
    """Return the sentences, the most general first."""
    lines = [f"{count_states([run.state for run in board.runs])}.", *excluded_runs(board)]
    if not board.places:
        return [*lines, f"No run has come to its end with {board.metric}, so nothing is compared."]
    if len(board.objectives) > 1:
        lines.append(front(board))
    return [*lines, winner(board), *differences(board), *importance(board)]


def excluded_runs(board: Leaderboard) -> list[str]:
    """Return which runs are in no mean, and how many are still to come."""
    lines = []
    verdicts = Counter(run.status.verdict for run in board.runs if run.collapsed)
    if verdicts:
        kinds = joined([f"{verdict} in {count}" for verdict, count in verdicts.items()])
        lines.append(f"The collapse monitor found something wrong with {plural(verdicts.total(), 'run')}: {kinds}.")
    if bad := sum(run.bad for run in board.runs):
        are = "is" if bad == 1 else "are"
        lines.append(f"{plural(bad, 'run')} that failed or collapsed {are} left out of all means.")
    if damaged := [run.folder for run in board.runs if run.state == "damaged"]:
        lines.append(f"{plural(len(damaged), 'run')} with damaged files left out of all means: {joined(damaged, 5)}.")
    if blank := sum(run.state == "done" and not run.collapsed and not run.counts(board.metric) for run in board.runs):
        lines.append(f"{plural(blank, 'run')} came to the end without a finite {board.metric}.")
    if waiting := sum(run.state not in FINISHED for run in board.runs):
        lines.append(f"Provisional: {plural(waiting, 'run')} of {len(board.runs)} to come.")
    return lines


def setting_name(board: Leaderboard, setting: Setting) -> str:
    """Return a setting's options, or its runs if it has no options or they are too long."""
    name = options(setting.options, board.names)
    return name if 0 < len(name) <= MAX_NAME else run_names(board, setting)


def run_names(board: Leaderboard, setting: Setting) -> str:
    """Return the runs of a setting that count: "run 4", "runs 4, 5 and 3"."""
    folders = [run.folder for run in setting.runs if run.counts(board.metric)]
    return f"{'run' if len(folders) == 1 else 'runs'} {joined(folders, 5)}"


def winner(board: Leaderboard) -> str:
    """Return a sentence on the best setting: its options, metric and interval."""
    best = board.settings[0]
    over = f"mean and {LEVEL:.0%} interval over {plural(len(best.values), 'seed')}"
    value = f"{with_error(best.mean, best.half)} ({'one seed' if best.half is None else over})"
    bad = f"; {plural(best.bad, 'more run')} of it failed or collapsed" if best.bad else ""
    who = "There is one setting"
    if len(board.settings) > 1:
        alone = f"By {board.metric} alone, " if len(board.objectives) > 1 else ""
        ties = sum(item.lead == 0 for item in board.comparisons)
        tied = f" together with {plural(ties, 'other setting')}" if ties else ""
        who = f"{alone}{options(best.options, board.names) or run_names(board, best)} won{tied}"
    return f"{who}: {board.metric} {value}{bad} ({run_names(board, best)})."


def differences(board: Leaderboard) -> list[str]:
    """Return sentences on the other settings, and which of them chance would explain."""
    comparisons = board.comparisons
    if not comparisons:
        return []
    tests = sum(item.seeds >= 2 for item in comparisons)
    lines = [against_runner_up(board, comparisons[0], tests)]
    if len(comparisons) > 1 and tests:
        chance = [setting_name(board, item.other) for item in comparisons if not item.significant]
        others = f"; not {joined(chance, 3)}" if 0 < len(chance) < len(comparisons) else ""
        count = len(comparisons) - len(chance)
        lines.append(f"It beats {count} of the {len(comparisons)} other settings by more than chance{others}.")
    if tests < len(comparisons):
        more = f"run the best few with more, such as {SEED}=0,1,2 in the sweep"
        lines.append(f"Settings of one seed cannot be told from chance: {more}.")
    return lines


def against_runner_up(board: Leaderboard, item: Comparison, tests: int) -> str:
    """Return the test of the best setting against the runner-up. tests: number of tests that Holm corrects for."""
    other, lead = setting_name(board, item.other), number(abs(item.lead), 3)
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
    significant = item.corrected < 1 - LEVEL
    verdict = "is more than chance" if significant else "cannot be told from chance"
    low, high = (item.low, item.high) if item.lead > 0 else (-item.high, -item.low)
    test = "paired by seed" if item.method == "paired" else "Welch"
    corrected = f" after Holm over {plural(tests, 'comparison')}" if tests > 1 else ""
    more_seeds = "" if significant else f" More seeds tell: {SEED}=0,1,2,3,4."
    return (
        f"{what} {verdict}: {LEVEL:.0%} interval {number(low, 3)} to {number(high, 3)}, {test}, "
        f"{plural(item.seeds, 'seed')}, p = {number(item.corrected, 2)}{corrected}.{more_seeds}"
    )


def front(board: Leaderboard) -> str:
    """Return a sentence on the runs of the Pareto front."""
    if not board.front:
        return f"No run has come to its end with {joined(list(board.objectives))}, so there is no Pareto front yet."
    runs = []
    for run in board.front[:FRONT_SHOWN]:
        values = ", ".join(f"{name} {number(run.value(name))}" for name in board.objectives)
        runs.append(f"run {run.folder} ({options(run.overrides, board.names)}): {values}")
    more = f"; and {len(board.front) - FRONT_SHOWN} more" if len(board.front) > FRONT_SHOWN else ""
    ways = joined([f"{name} ({way})" for name, way in board.objectives.items()])
    are = "run is" if len(board.front) == 1 else "runs are"
    each = "both" if len(board.objectives) == 2 else "all"
    return f"By {ways}, {len(board.front)} {are} not beaten in {each} by any other: {'; '.join(runs)}{more}."


def importance(board: Leaderboard) -> list[str]:
    """Return at most one sentence on the options that the metric depends on most."""
    count = len(board.places)
    if len(board.settings) < 2 or count < MIN_RUNS:
        return []
    runs = plural(count, "run")
    top = [f"{key} ({share:.0%})" for key, share in list(board.importances.items())[:3] if share >= 0.01]
    few = ", a guess with so few" if count < 10 * len(board.importances) else ""
    if top:
        shares = f"shares of its variance, by a random forest over {runs}{few}"
        return [f"{board.metric} depends most on {joined(top)}: {shares}."]
    return [f"What {board.metric} depends on cannot be told from {runs}: a random forest predicts none by the others."]
