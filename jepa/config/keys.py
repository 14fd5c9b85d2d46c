"""Keys of the command line: those that no yaml lists but a constructor takes, and wrong ones with the right one."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from hydra.errors import HydraException
from hydra.utils import get_object
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jepa.config.compose import CONFIG_DIR, dotted_keys, known_keys, option_with
from jepa.config.overrides import override_key
from jepa.config.words import Word, accumulated, closest, find_word
from jepa.utils.errors import UserError
from jepa.utils.nested import flatten

OVERRIDE = re.compile(r"\+{0,2}[A-Za-z_][\w/@.]*=")
SWEEP = re.compile(r"[\w/.]+=([\w./-]+,|(choice|glob|range|interval)\()")
"""An override that gives several values, for a sweep."""
SUPPLIED = {
    "trainer": ("random_init", "plan", "preview", "config", "loggers"),
    "optimizer": ("params",),
    "model": (),
    "scheduler": (),
}
"""Arguments of constructors that the build supplies, beside the other sections of the configuration."""
OWN_SECTIONS = ("find_lr", "find_batch_size")  # sections of scripts, whose keys come before all others
READ_BY_HYDRA = ("default_run_dir",)  # keys that only the yaml of Hydra's own section reads
PLACED_ELSEWHERE = ("evaluation", "callbacks", "logger", "monitor", "visualise", "sweep", "loss")
"""Sections with a learning rate, a batch size, ... of their own: words of training are none of theirs."""

Suggestion = tuple[list[str], str]  # overrides, and a note
Compose = Callable[[list[str]], tuple[DictConfig, Mapping[str, Any]]]


def is_group(key: str) -> bool:
    """Return whether a key is that of a group of options, `model/encoder`; those in conf/wandb are W&B's."""
    return key not in ("", "wandb") and any((CONFIG_DIR / key).glob("*.yaml"))


def with_new_keys(arguments: Sequence[str], compose: Compose) -> list[str]:
    """Return overrides in which a key that no yaml lists, but the constructor of its node takes, is added.

    So `trainer.tf32=true` and `optimizer.amsgrad=true` need no `+`, in a sweep neither. Raise UserError, with the
    right name, for a key that neither knows.

    compose: makes the configuration of overrides, and the option of each group.
    """
    values = [a for a in arguments if OVERRIDE.match(a) and _is_value(a)]
    if not values:
        return list(arguments)
    options = [a for a in arguments if re.match(r"[\w/@.+~]+=", a) and a not in values and not a.startswith("hydra")]
    options += [a for a in values if override_key(a).endswith("._target_")]  # a class of the user's own
    try:
        config, choices = compose([_first_choice(option) for option in options])
    except (HydraException, OmegaConfBaseException):
        if any(SWEEP.match(option) for option in options):
            return list(arguments)  # Hydra will say what is wrong
        raise
    run = Keys(config, choices)
    if wrong := [value for value in values if run.is_wrong(value)]:
        raise UserError(run.message(wrong))
    return [f"++{a}" if a in values and a[0] != "+" and run.is_new(override_key(a)) else a for a in arguments]


def _is_value(argument: str) -> bool:
    """Return whether an override sets a single value, and not an option."""
    key, value = override_key(argument), argument.partition("=")[2]
    if argument.startswith("+"):
        forced = argument.startswith("++") or value.startswith(("{", "[")) or key.endswith("_target_")
        return re.fullmatch(r"\w[\w.]*", key) is not None and not is_group(key) and not ("." in key and forced)
    return key.split(".")[0].split("/")[0] != "hydra" and not is_group(key) and "@" not in key and "/" not in key


def _first_choice(option: str) -> str:
    """Return an option as a single run has it: "loss=mse,l1" or "loss=choice(mse,l1)" -> "loss=mse"."""
    key, _, value = option.partition("=")
    value = value.removeprefix("choice(").removesuffix(")") if value.startswith("choice(") else value
    return f"{key}={value.partition(',')[0]}" if not value.startswith(("[", "{", "'", '"')) else option


class Keys:
    """The keys of a run: those of its configuration, and those that its constructors take.

    config, choices: composed, and the option of each group.
    """

    def __init__(self, config: DictConfig, choices: Mapping[str, Any]) -> None:
        self.config, self.choices = config, choices

    def has(self, key: str) -> bool:
        """Return whether the configuration lists a key, or leaves it to Hydra (of an item of a list)."""
        parent, name = self._first_missing(key)
        return name is None and parent == key

    def is_new(self, key: str) -> bool:
        """Return whether the configuration lacks a key, and the constructor of its node takes it."""
        parent, name = self._first_missing(key)
        if name is None or key != f"{parent}.{name}":
            return False
        taken = self.arguments(parent)
        return taken is None or name in taken  # what cannot be imported is named later

    def is_wrong(self, override: str) -> bool:
        """Return whether an override sets a key that nothing takes, or a group of options as if it were a value."""
        key, value = override_key(override), override.partition("=")[2]
        if override.startswith("+") and "." not in key:  # for an interpolation of the user's own files
            read = key in READ_BY_HYDRA or f"${{{key}" in str(OmegaConf.to_container(self.config))
            return key not in self.choices and not self.has(key) and not read
        if override.startswith("+") and not self._is_built(key.rpartition(".")[0]):
            return False
        as_option = is_group(key.replace(".", "/")) and re.fullmatch(r"[A-Za-z]\w*", value) and value != "null"
        return bool(as_option) or not (self.has(key) or self.is_new(key))

    def message(self, overrides: Sequence[str]) -> str:
        """Return what is wrong with overrides: the right ones, or those that there are."""
        found = [self.suggestion(override) for override in overrides]
        named = ", ".join(overrides)
        if None in found:
            first = next(override for override, right in zip(overrides, found) if right is None)
            return f"{first}: there is no such key. {self._listed(override_key(first))}"
        right = self.accumulated([item for items, _ in found for item in items])
        notes = [note for _, note in found if note]
        if not right:
            return f"{named}: {'; '.join(notes)}"
        head = "there is no such key" if len(overrides) == 1 else "there are no such keys"
        return "\n".join([f"{named}: {head}. Did you mean {' '.join(right)}?", *(f"({note})" for note in notes[:2])])

    def suggestion(self, override: str) -> Suggestion | None:
        """Return the overrides that an override with a wrong key may mean, and a note; None if nothing is near."""
        key, value = override_key(override), override.partition("=")[2]
        if option := self._as_option(key, value):
            return option
        parent, missing = self._first_missing(key)
        if missing is None:
            return [f"{parent}={value}"], f"{parent} is a single value"
        if parent and key != f"{parent}.{missing}":
            return self._mended(parent, missing, key, value)
        if not parent and (close := closest(missing, map(str, self.config), cutoff=0.85)):  # before words of others
            return [f"{close}={value}"], ""
        return self._by_word(key, value) or self._by_name(parent, missing, value) or self._nearest(key, value)

    def _as_option(self, key: str, value: str) -> Suggestion | None:
        """Return the option of a group, or key at the top, that a key means: trainer.optimizer, optimizer.name."""
        above, _, last = key.rpartition(".")
        group, group_above = key.replace(".", "/"), above.replace(".", "/")
        if is_group(group):
            return [f"{group}={value}"], f"{group} is a group of options, set with a slash" if above else ""
        if last in ("name", "type", "_name_") and is_group(group_above):
            return [f"{group_above}={value}"], ""
        if (self.has(last) and above in SUPPLIED) or (is_group(last) and above in ("config", "train", "training")):
            return [f"{last}={value}"], ""
        return None

    def _by_word(self, key: str, value: str) -> Suggestion | None:
        """Return what a word of others means, with the option that has it where this run lacks it."""
        above, _, last = key.rpartition(".")
        if own := [section for section in OWN_SECTIONS if self.has(f"{section}.{last}")]:
            return [f"{own[0]}.{last}={value}"], ""
        word = find_word(last) or (None if above else find_word(last, cutoff=0.9))
        if word is None or not self._is_meant(word, key):
            return None
        written = word.written(value)
        needed = [option for item in written if self.is_wrong(item) for option in self._options_with(item)]
        note = "" if above and word.here.startswith(f"{above}.") else word.note
        return list(dict.fromkeys([*needed, *written])), note

    def _by_name(self, parent: str, missing: str, value: str) -> Suggestion | None:
        """Return the key of the same node with a name like it, or of another option."""
        key = f"{parent}.{missing}" if parent else missing
        if parent and (close := closest(missing, self.names(parent))):
            return [f"{parent}.{close}={value}"], ""
        needed = self._options_with(key)
        return ([*needed, f"{key}={value}"], "") if needed else None

    def _mended(self, parent: str, missing: str, key: str, value: str) -> Suggestion | None:
        """Return a key with its wrong middle part mended: evaluation.knn.k -> evaluation.probes.knn.k."""
        nodes = [node for node in dotted_keys(OmegaConf.to_container(self.config)) if node.startswith(f"{parent}.")]
        close = closest(missing, self.names(parent))
        rest = key.removeprefix(f"{parent}.{missing}")
        for other in [f"{parent}.{close}", *(node for node in nodes if node.endswith(f".{missing}"))]:
            if not self.is_wrong(right := f"{other}{rest}={value}"):
                return [right], ""
        group = f"{parent}.{missing}".replace(".", "/")  # null in this run
        needed = [] if is_group(group) else self._options_with(f"{parent}.{missing}")
        return ([*needed, f"{key}={value}"], "") if needed else None

    def accumulated(self, overrides: Sequence[str]) -> list[str]:
        """Return overrides with accumulation in words of others as micro-batches."""
        size = OmegaConf.select(self.config, "data.batch_size")
        return accumulated(overrides, size if isinstance(size, int) else None)

    def names(self, parent: str) -> list[str]:
        """Return the names that a node takes, those that its file lists first."""
        node = self._node(parent)
        taken = [name for name in self.arguments(parent) or () if name not in node]
        return [str(name) for name in (*node, *taken) if not str(name).startswith("_")]

    def arguments(self, parent: str) -> list[str] | None:
        """Return the arguments of a node's constructor, none without one; None of one that cannot be imported."""
        if not self._is_built(parent):
            return []
        try:
            parameters = inspect.signature(get_object(self._node(parent)._target_)).parameters
        except (ImportError, AttributeError, ValueError, TypeError):
            return None
        supplied = {*SUPPLIED[parent], *self.config} if parent in SUPPLIED else ()
        named = [name for name, p in parameters.items() if p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)]
        return [name for name in named if name not in supplied]

    def _node(self, key: str) -> Any:
        return OmegaConf.select(self.config, key) if key else self.config

    def _is_built(self, key: str) -> bool:
        """Return whether a node is given to a constructor."""
        node = self._node(key)
        return isinstance(node, DictConfig) and "_target_" in node

    def _first_missing(self, key: str) -> tuple[str, str | None]:
        """Return the longest part of a key that there is, and the name that it lacks, None where it is a value."""
        node, path = self.config, ""
        for name in key.split("."):
            if OmegaConf.is_list(node):
                return key, None
            if not isinstance(node, DictConfig):
                return path, None
            if name not in set(node.keys()):  # those without a value yet, ???, count
                return path, name
            path = f"{path}.{name}" if path else name
            try:
                node = OmegaConf.select(self.config, path)
            except OmegaConfBaseException:  # an interpolation of what the data finds out
                node = None
        return key, None

    def _is_meant(self, word: Word, key: str) -> bool:
        """Return whether a key can be a word of training: `trainer.batch_size`, `optimizer.wd`; not its own."""
        section = key.split(".")[0]
        of_training = section not in PLACED_ELSEWHERE or "." not in key or word.here.startswith(f"{section}=")
        return of_training and not word.here.startswith(f"{key}=")

    def _options_with(self, override: str) -> list[str]:
        """Return the option whose file has a key that this run lacks: logger.wandb -> logger=[console,wandb]."""
        option = option_with(override.partition("=")[0])
        if option is not None and option.startswith("logger="):
            return [f"logger=[{','.join([*self.config.get('logger', ()), option.removeprefix('logger=')])}]"]
        return [option] if option else []

    def _nearest(self, key: str, value: str) -> Suggestion | None:
        """Return the key of the run that ends like a key, or one of conf/ that reads like it."""
        last = key.rpartition(".")[2]
        config = flatten(OmegaConf.to_container(self.config))
        trainer = self.names("trainer") if "trainer" in self.config else ()
        keys = [*(f"trainer.{name}" for name in trainer), *config]
        ends = [other for other in keys if other.rpartition(".")[2] == last]
        close = ends[0] if ends else closest(key, [*keys, *([] if "." in key else known_keys())], cutoff=0.8)
        if close is None:
            return None
        group = close.replace(".", "/")
        return [f"{group if is_group(group) else close}={value}"], ""

    def _listed(self, key: str) -> str:
        """Return the names beside a wrong one."""
        parent, _ = self._first_missing(key)
        if not parent:
            return f"Sections and keys: {', '.join(self.names(parent))}; see --help"
        return f"{parent} takes {', '.join(self.names(parent)) or 'nothing in this run'}"
