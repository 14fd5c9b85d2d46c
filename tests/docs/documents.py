"""What the documents say: pages, links, commands, keys, examples."""

from __future__ import annotations

import itertools
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser

ROOT = Path(__file__).resolve().parents[2]
CONF = ROOT / "conf"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
ROOTS = ("data", "model", "loss", "optimizer", "scheduler", "trainer", "evaluation", "monitor", "callbacks", "logger")
ROOTS += ("visualise", "sweep", "scaling", "hydra")
"""What a key in the documents begins with."""

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.DOTALL | re.MULTILINE)
CODE = re.compile(r"`([^`\n]+)`")


@dataclass
class Command:
    """A command of a page: a script of the repository, its flags and its overrides."""

    page: str
    script: str
    arguments: list[str]
    flags: set[str] = field(init=False)
    config_dir: bool = field(init=False)
    overrides: list[str] = field(init=False)

    def __post_init__(self) -> None:
        words = [word for word in self.arguments if word != "..."]
        self.config_dir = "--config-dir" in words
        words = [w for n, w in enumerate(words) if w != "--config-dir" and words[n - 1 : n] != ["--config-dir"]]
        self.flags = {word for word in words if word.startswith("-")}
        self.overrides = [word for word in words if "=" in word or word.startswith("~")]

    def __str__(self) -> str:
        return f"{self.page}: {self.script} {' '.join(self.arguments)}"


def prose(text: str) -> str:
    """A page without its fenced blocks."""
    return FENCE.sub("", text)


def lines_of_commands(text: str) -> Iterator[str]:
    """Command lines of a page: of shell blocks, after `$` in transcripts, and in code between back-quotes."""
    for language, block in FENCE.findall(text):
        joined = block.replace("\\\n", " ").splitlines()
        if language in ("sh", "bash"):
            yield from (line for line in joined if line and not line.startswith("#"))
        elif language == "python":
            yield from (line.partition(": ")[2] for line in joined if line.startswith("# mine.py: "))
        elif not language:
            yield from (line[2:] for line in joined if line.startswith("$ "))
    yield from (code for code in CODE.findall(prose(text)) if re.match(r"(python|torchrun|make train) ", code))


def commands(page: Path) -> Iterator[Command]:
    """Every command of a page that starts a script of the repository, `make train` included."""
    for line in lines_of_commands(page.read_text()):
        words = shlex.split(re.sub(r"<[^<>]*>", "placeholder", line), comments=True)
        if words[:2] == ["make", "train"]:
            arguments = [a for word in words if word.startswith("ARGS=") for a in shlex.split(word[5:])]
            yield Command(page.name, "train.py", ["experiment=digits", *arguments])
        for number, word in enumerate(words):
            if word == "train.py" or word.startswith("scripts/"):
                script = "train.py" if word == "scripts/slurm_torchrun.sh" else word
                yield Command(page.name, script, words[number + 1 :])
                break


def variants(command: Command) -> list[list[str]]:
    """The runs of a command: with the first value of each sweep, and with every other value of one of them.

    Raises ValueError for a sweep without -m.
    """
    first, others = [], []
    for override in OverridesParser.create().parse_overrides(command.overrides):
        if not override.is_sweep_override():
            first.append(override.input_line)
            continue
        if not command.flags & {"-m", "--multirun"}:
            raise ValueError(f"{command} sweeps over {override.key_or_group} without -m")
        if override.is_interval_sweep():
            values = [str(override.value().start)]
        else:
            values = list(itertools.islice(override.sweep_string_iterator(), 20))
        name = override.get_key_element()
        others += [(len(first), f"{name}={value}") for value in values[1:]]
        first.append(f"{name}={values[0]}")
    return [first, *([*first[:place], other, *first[place + 1 :]] for place, other in others)]


def mentions(text: str) -> Iterator[str]:
    """Keys and options that a page names in its text: `trainer.precision`, `data.views=2`, `loss=mse`.

    In the first column of a table a bare name goes with the key or option before it (`data.augment.crop`, `speed`), or
    with the header where that ends with a dot or equals sign.
    """
    header = ""
    for line in prose(text).splitlines():
        cells = line.split(" | ")
        if not line.startswith("|"):
            header = ""
        elif not header:
            header = (CODE.findall(cells[0]) or ["-"])[0]
            continue
        before = header if header[-1:] in (".", "=") else ""
        for number, cell in enumerate(cells):
            for code in CODE.findall(cell):
                for word in split(code):
                    bare = re.fullmatch(r"[a-z]\w*(=.*)?", word)
                    if number == 0 and line.startswith("|") and bare and before and not is_mention(word):
                        word = before + word
                    if is_mention(word):
                        yield word
                        key, equals, _ = word.partition("=")
                        if number == 0 and line.startswith("|"):
                            before = f"{key}=" if is_group(key) and equals else re.sub(r"\w+$", "", key)


def split(code: str) -> list[str]:
    """The words of a piece of code, as a shell has them; itself where quotes do not close."""
    try:
        return shlex.split(code)
    except ValueError:
        return [code]


def is_group(key: str) -> bool:
    """Whether a key is that of a group in conf/."""
    return (CONF / key).is_dir() and not key.startswith("wandb")


def is_mention(word: str) -> bool:
    """Whether a word is a key or an option."""
    key, equals, value = word.lstrip("+~").partition("=")
    if "<" in word or not re.fullmatch(r"[\w./]+", key):
        return False
    if is_group(key):
        return bool(equals and value)
    return "." in key.strip(".") and key.split(".")[0] in ROOTS and "/" not in key and not key.endswith(".")


@dataclass
class Example:
    """A module of a page, the command in its first line, and the yaml that follows it."""

    page: str
    code: str
    arguments: list[str]

    @property
    def name(self) -> str:
        """The class or function it defines."""
        return re.search(r"^(?:class|def) (\w+)", self.code, re.MULTILINE)[1]


def examples() -> list[Example]:
    """The modules of all pages."""
    found = []
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text()):
            if language == "python" and block.startswith("# mine.py: "):
                command = block.partition("\n")[0].partition("train.py ")[2]
                found.append(Example(page.name, block, shlex.split(command)))
    return found


def write_own_configs(folder: Path) -> None:
    """Write the yaml files that the pages show; their first line says where: # my_conf/loss/small_norm.yaml."""
    for page in PAGES:
        for language, block in FENCE.findall(page.read_text()):
            if language == "yaml" and block.startswith("# my_conf/"):
                first, _, content = block.partition("\n")
                path = folder / first.removeprefix("# ")
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(content)


def anchors(path: Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.+)$", prose(path.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}
