"""Text to ids: a pretrained tokenizer, one of a file, or one trained on the corpus and stored with the run."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path

from jepa.data.byte_pair_encoding import split_clusters, train_bpe
from jepa.utils.errors import DataError, UserError
from jepa.utils.files import write_text
from jepa.utils.lazy_import import lazy_import, require
from jepa.utils.read_data import DamagedFileError, exists, read_bytes, read_json

tokenizers = lazy_import("tokenizers")
PADDING = 0  # the id of padding in every input, whatever id it has in the tokenizer
PADDING_TOKENS = ("[PAD]", "<pad>", "<PAD>", "<|padding|>", "<|endoftext|>")
MAX_BYTES = 2**28  # of a tokenizer's file
MOST_JOINED = 64  # ids of which previews make one text; marks without end on a letter are more
TOKENIZER_FILE, ORIGIN_FILE = "tokenizer.json", "tokenizer_origin.json"


class Tokenizer:
    """A tokenizer of the `tokenizers` library in which padding has id 0, by a swap; no special tokens are added."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        tokenizer.no_padding()
        tokenizer.no_truncation()
        names = (token for token in PADDING_TOKENS if tokenizer.token_to_id(token) is not None)
        if (name := next(names, None)) is None:
            name = PADDING_TOKENS[0]
            tokenizer.add_special_tokens([name])
        self._padding = tokenizer.token_to_id(name)

    @property
    def vocab_size(self) -> int:
        """The number of ids, that of padding among them."""
        return max(self._tokenizer.get_vocab(with_added_tokens=True).values()) + 1

    def encode(self, text: str) -> list[int]:
        """Return the ids of a text, without padding."""
        ids = self._tokenizer.encode(text, add_special_tokens=False).ids
        if self._padding == PADDING:
            return [each for each in ids if each != PADDING]  # of a text that spells padding out
        return [self._padding if each == PADDING else each for each in ids if each != self._padding]

    def words(self, ids: Sequence[int]) -> list[str]:
        """What each id stands for; what several make together stands at the first of them. Nothing for padding."""
        own = [self._padding if each == PADDING else PADDING if each == self._padding else each for each in ids]
        groups = [[number] for number in own]
        for _ in range(2):  # bytes make characters, these make grapheme clusters
            joined: list[list[int]] = []
            for group in groups:
                last = joined[-1] if joined else []
                if 0 < len(last) < MOST_JOINED and not _parts_at(self._decode(last + group), self._decode(last)):
                    last += group
                else:
                    joined.append(group)
            groups = joined
        texts = ["" if group == [self._padding] else self._decode(group).strip() for group in groups]
        return [text for first, group in zip(texts, groups) for text in (first, *[""] * (len(group) - 1))]

    def _decode(self, ids: Sequence[int]) -> str:
        return self._tokenizer.decode(ids, skip_special_tokens=False)

    def to_json(self) -> str:
        """Return the tokenizer as tokenizer.json holds it."""
        return self._tokenizer.to_str()


def open_tokenizer(
    name: str, *, texts: Iterable[str], vocab_size: int | None, lower_case: bool = True, folder: Path | None = None
) -> Tokenizer:
    """The tokenizer that `data.tokenizer` names, kept as `tokenizer.json` in a run's folder and read from it again.

    name: "train" for one of at most vocab_size ids made from `texts`, lower_case or not; a tokenizer.json or a folder
        that holds one; or a pretrained name, of `transformers`' cache or the hub. folder: None to store nothing.
    Raises UserError for a name that leads nowhere, more ids than vocab_size, and a folder with another tokenizer.
    """
    # Workers are forked after training has used threads, of which the library would warn in each of them.
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    require("tokenizers", extra="text", purpose="splitting text into tokens")
    origin: dict[str, object] = {"tokenizer": name}
    if name == "train":
        if vocab_size is None:
            raise ValueError("data.vocab_size=null: a tokenizer that is trained needs a size, such as 4096")
        origin |= {"vocab_size": vocab_size, "lower_case": lower_case}
    if (stored := folder and _read_stored(folder, origin)) is not None:
        tokenizer = stored
    elif name == "train":
        tokenizer = train_tokenizer(texts, vocab_size=vocab_size, lower_case=lower_case)
    else:
        tokenizer = _read(name) if _is_path(name) else _pretrained(name)
    if vocab_size is not None and tokenizer.vocab_size > vocab_size:
        advice = f"set data.vocab_size={tokenizer.vocab_size}, or null to take as many as there are"
        few = f"data.vocab_size={vocab_size} is less than the {tokenizer.vocab_size} ids of data.tokenizer={name}"
        raise UserError(f"{few}: {advice}")
    if folder is not None and stored is None:
        write_text(folder / ORIGIN_FILE, json.dumps(origin, indent=2) + "\n")
        write_text(folder / TOKENIZER_FILE, tokenizer.to_json())  # last, as its presence says that both are there
    return tokenizer


def train_tokenizer(texts: Iterable[str], *, vocab_size: int, lower_case: bool = True) -> Tokenizer:
    """A tokenizer of at most vocab_size ids, the same for the same texts; [PAD] has id 0.

    Byte-pair encoding on bytes (`train_bpe`), as the library's WordPiece gives other ids every time it is trained.
    Raises ValueError for a size that does not hold the bytes.
    """
    if vocab_size < 300:
        raise ValueError(f"data.vocab_size={vocab_size}: byte-pair encoding needs 300 or more, of which 256 are bytes")
    return Tokenizer(train_bpe(texts, vocab_size=vocab_size, lower_case=lower_case))


def _parts_at(text: str, beginning: str) -> bool:
    """Whether a text begins with another that ends where one of its grapheme clusters does."""
    ends = itertools.accumulate(map(len, split_clusters(text)))
    return text != beginning and text.startswith(beginning) and len(beginning) in ends


def _read_stored(folder: Path, origin: dict[str, object]) -> Tokenizer | None:
    """The tokenizer in a run's folder; None where there is none yet. Raises UserError for one of another origin."""
    if not exists(folder / TOKENIZER_FILE):
        return None
    found = None
    with contextlib.suppress(DamagedFileError):
        found = read_json(folder / ORIGIN_FILE)
    if found != origin:
        raise UserError(
            f"{folder} holds the {TOKENIZER_FILE} of {found}, but this run asks for {origin}: go on with the same "
            "settings, or start in another hydra.run.dir (or remove that file, if no checkpoint depends on it)"
        )
    return _read(str(folder / TOKENIZER_FILE))


def _is_path(name: str) -> bool:
    """Whether a name is one of a file or folder rather than `owner/model` on the hub."""
    return os.path.exists(os.path.expanduser(name)) or name.endswith(".json") or name[0] in "./~" or name.count("/") > 1


def _read(name: str) -> Tokenizer:
    path = Path(os.path.expanduser(name))
    if path.is_dir():
        if not (path / TOKENIZER_FILE).is_file():
            return _pretrained(str(path))
        path /= TOKENIZER_FILE
    if not exists(path):
        give = f"a {TOKENIZER_FILE}, a folder with one (such as a run's), a pretrained name such as bert-base-uncased"
        raise DataError(f"data.tokenizer={name}: there is no such file; give {give}, or train")
    try:
        return Tokenizer(tokenizers.Tokenizer.from_str(read_bytes(path, MAX_BYTES).decode()))
    except DamagedFileError as error:
        raise DataError(f"data.tokenizer: {error}") from error
    except Exception as error:  # the library raises nothing more specific
        raise DataError(f"data.tokenizer: {path} is not a file of the tokenizers library ({error})") from error


def _pretrained(name: str) -> Tokenizer:
    transformers = require("transformers", extra="hub", purpose=f"data.tokenizer={name}")
    try:
        found = transformers.AutoTokenizer.from_pretrained(name, use_fast=True)
    except (OSError, ValueError, ImportError, KeyError) as error:
        reason = str(error).strip().splitlines() or [repr(error)]
        raise DataError(
            f"data.tokenizer={name}: no tokenizer of that name could be had ({reason[0]}). Without network give a "
            f"{TOKENIZER_FILE} or a folder that was saved with save_pretrained, or data.tokenizer=train"
        ) from error
    backend = getattr(found, "backend_tokenizer", None)
    if backend is None:
        raise DataError(f"data.tokenizer={name}: {type(found).__name__} has no fast version, which is needed here")
    return Tokenizer(tokenizers.Tokenizer.from_str(backend.to_str()))
