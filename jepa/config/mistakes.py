"""Mistakes on the command line in words: errors of Hydra, and options written with dashes."""

from __future__ import annotations

import glob
import re
import shlex
from collections.abc import Sequence
from pathlib import Path

from hydra._internal.utils import get_args_parser
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from jepa.config.compose import CONFIG_DIR, dotted_keys, known_keys, option_with
from jepa.config.keys import Compose, Keys, is_group
from jepa.config.overrides import override_key
from jepa.config.words import closest, find_word, plain
from jepa.config.words import options as known_options
from jepa.utils.errors import UserError

NOISE = re.compile(r"\s*(full_key|object_type|reference_type): |\s*(object_type|reference_type)=|See https://hydra\.cc")
FILES = {".csv": "series_csv", ".tsv": "series_csv", ".parquet": "hf", ".arrow": "hf", ".txt": "text_lines"}
"""What a file given as data= may be read by."""

MODELS = {"ImageData": "vit", "VideoData": "video", "TextData": "text", "SeriesData": "series", "AudioData": "audio"}
MODELS |= {"TrajectoryData": "world"}
MODELS |= {"paired": "crossmodal", "paired_coco": "crossmodal_captions", "tasks": "multitask"}
"""Class or option of data -> the model that takes them."""


def explain(error: BaseException) -> str:
    """Return a configuration error in words: what was typed, the right key or option, then what there is."""
    lines = [str(part).strip() for part in (error, error.__cause__) if part is not None]
    text = "\n".join(dict.fromkeys(line for line in lines if line)).partition("Config search path:")[0]
    text = re.sub(r"\+\+(?=[\w.]+=)", "", text)  # of keys that no yaml lists
    for pattern, explained in (
        (r"Could not (?:find|load) '([^\n]+?)'(?:\.?\n|\.?$)", _no_option),
        (r"Could not (?:override|delete from config\.) '~?([\w.@/]+)'", _no_key),
        (r"An item is already at '([^']+)'", lambda key, _: f"+{key}: the run has it already: leave out the +"),
        (r"Ambiguous value for argument '([^\n]+)'", _several),
        (r"Error parsing override '([^\n]*)'\nmissing EQUAL", _no_value),
        (
            r"^Interpolation key '([^']+)' not found",
            lambda key, _: f"${{{key}}}: there is no key {key} (in a path too, ${{...}} stands for the value of a key)",
        ),
        (r"Cannot find primary config '([^']+)'", lambda name, _: f"--config-name {name}: conf/{name}.yaml is missing"),
    ):
        if found := re.search(pattern, text):
            return explained(found[1], text)
    if found := re.search(r"LexerNoViableAltException: ([^\n]*)", text):
        how = "\"key='a<b'\", in a list each of its items: \"key=['a (b)','c']\""
        return f"{found[1]}: signs in a value are quoted, twice for the shell: {how}"
    typed = getattr(error, "override", None)
    if typed and typed not in text:
        return f"{typed.lstrip('+')}: {text.splitlines()[0]}; quote what has signs of its own: \"key='a b'\""
    return "\n".join([line for line in text.splitlines() if line.strip() and not NOISE.match(line)][:3])


def with_fitting_model(config: DictConfig) -> str:
    """Return the command of a run whose model takes other data, with one that takes these."""
    given = list(config.get("overrides") or [])
    chosen = dict(line.lstrip("+").split("=", 1) for line in given if "=" in line)
    name = OmegaConf.select(config, "data._target_", default="").rpartition(".")[2]
    if (model := MODELS.get(name) or MODELS.get(chosen.get("data"))) is None:
        return "choose the model= that takes them: vit, video, text, series, audio, crossmodal, world or multitask"
    kept = [line for line in given if not re.match(r"\+?(model|experiment)\b(?!\.)", line)]
    right = {
        "lejepa": ["model=lejepa", f"model/encoder={model}"],
        "levjepa": ["model=lejepa", f"model/encoder={model}", "model/mask=sparse"],
    }.get(chosen.get("model"), [f"model={model}"])
    return f"they go with model={model}: {shlex.join(['python', 'train.py', *kept, *right])}"


def _no_option(path: str, text: str) -> str:
    """Return what is said of an option that does not exist: `model/vit_small`."""
    parts = path.split("/")
    groups = ["/".join(parts[:n]) for n in (2, 1) if all(parts[:n]) and len(parts) > n]
    group = next(filter(is_group, groups), path.rpartition("/")[0])  # one of Hydra's otherwise
    name = path.removeprefix(f"{group}/")
    listed = re.findall(r"^\t(\S+)$", text, re.MULTILINE) or [file.stem for file in (CONFIG_DIR / group).glob("*.yaml")]
    options = sorted(option for option in listed if not option.startswith("submitit_"))
    right = _right_option(group, name, options)
    first = f"{group}={name}: there is no such option." + (f" Did you mean {right}?" if right else "")
    return f"{first}\n{group} is one of {', '.join(options)}"


def _right_option(group: str, name: str, options: Sequence[str]) -> str | None:
    """Return the options that a wrong one may mean."""
    known = known_options(group)
    if right := known.get(plain(name)) or known.get(plain(name).rstrip("0123456789")):
        return right
    if plain(name) in ("none", "off", "false"):
        return f"{group}={'none' if 'none' in options else 'null'}"
    if group == "data" and ("/" in name or Path(name).suffix in FILES):
        kind = FILES.get(Path(name).suffix, "image_folder")
        return f"data={kind} data.{'path' if kind == 'hf' else 'root'}={name}"
    files = sorted(CONFIG_DIR.rglob(f"{glob.escape(Path(name).name)}.yaml"))
    others = filter(is_group, (str(file.parent.relative_to(CONFIG_DIR)) for file in files))
    others = sorted(others, key=lambda other: not other.startswith(f"{group}/"))
    close = closest(name, options)
    if others and not (close and not others[0].startswith(f"{group}/")):
        return f"{others[0]}={name}"
    if close:
        return f"{group}={close}"
    below = {file.stem: f"{file.parent.name}={file.stem}" for file in (CONFIG_DIR / group).glob("*/*.yaml")}
    close = closest(name, below, cutoff=0.8)
    return close and f"{group}/{below[close]}"


def _no_key(key: str, text: str) -> str:
    """Return what is said of a key that Hydra did not find, itself or in a value `{...}` of it."""
    inner = re.search(r"full_key: (\S+)", text)
    key = inner[1] if inner and inner[1].startswith(f"{key}.") else key
    if option := option_with(key):
        return f"{key}: there is no such key in this run, but with {option}"
    from hydra.conf import HydraConf

    of_hydra = dotted_keys({"hydra": OmegaConf.to_container(OmegaConf.structured(HydraConf))})
    close = closest(key, [*known_keys(), *of_hydra], cutoff=0.8)
    return f"{key}: there is no such key." + (f" Did you mean {close}?" if close else "")


def _several(argument: str, _: str) -> str:
    key, _, values = argument.partition("=")
    sweep = f"several values are a sweep, which needs -m: python train.py -m {argument}"
    return f"{argument}: {sweep}\n(a list is {key}=[{values}])"


def _no_value(word: str, _: str) -> str:
    if is_group(override_key(word)):
        example = f"{word}={next((CONFIG_DIR / word).glob('*.yaml')).stem}"
    else:
        meant = find_word(word)
        example = f"{word}=..." if "." in word else meant.here.format("...") if meant else "trainer.max_epochs=10"
    return f"{word}: expected key=value, without spaces: {example}"


def check_flags(arguments: Sequence[str], compose: Compose, script: str) -> None:
    """Raise UserError for options with dashes that Hydra does not know, with the command that would do: --epochs 100.

    Also for run_dir=, which is for calls from Python: Hydra has made its own folder by then.

    script: how the program was started, train.py.
    """
    if own := next((argument for argument in arguments if argument.lstrip("+").startswith("run_dir=")), None):
        raise UserError(f"{own}: the folder of a run is hydra.run.dir={own.partition('=')[2]} on the command line")
    if not any(map(_is_foreign, arguments)):
        return
    try:
        keys = Keys(*compose([a for a in arguments if is_group(override_key(a)) and a[:1] != "-"]))
    except (HydraException, OmegaConfBaseException) as error:
        raise UserError(explain(error)) from error
    right, notes, unknown = [], [], []
    for argument, override in _as_overrides(arguments):
        is_wrong = override and not is_group(override_key(override)) and keys.is_wrong(override)
        found = keys.suggestion(override) if is_wrong else ([override or argument], "")
        if found is None:
            unknown.append(argument)
            continue
        right += found[0]
        notes += [f"({found[1]})"] if found[1] else []
    command = shlex.join(["python", script, *keys.accumulated(right)])
    if unknown:
        rest = f"; the others are {command}" if right else ""
        raise UserError(f"{', '.join(unknown)}: there is no such option, see --help{rest}")
    raise UserError("\n".join([f"options are written key=value, without dashes: {command}", *notes[:2]]))


def _is_foreign(argument: str) -> bool:
    """Return whether an argument has the form of a flag, `--epochs` or `-lr`, and is none of Hydra's."""
    flags = get_args_parser()._option_string_actions
    name = argument.partition("=")[0]
    abbreviates = name.startswith("--") and sum(flag.startswith(name) for flag in flags) == 1
    return bool(re.match(r"--?[A-Za-z][\w.-]*", name)) and name not in flags and not abbreviates


def _as_overrides(arguments: Sequence[str]) -> list[tuple[str, str | None]]:
    """Return each argument, and what it says as an override if it is a foreign flag; the value goes with it."""
    result: list[tuple[str, str | None]] = []
    waiting = list(arguments)
    while waiting:
        argument = waiting.pop(0)
        if not _is_foreign(argument):
            result.append((argument, None))
            continue
        name, equals, value = argument.lstrip("-").partition("=")
        if not equals:
            has_value = bool(waiting) and "=" not in waiting[0] and not re.match(r"--?[A-Za-z]", waiting[0])
            value = waiting.pop(0) if has_value else "true"
        result.append((argument, f"{name.replace('-', '_')}={value}"))
    return result
