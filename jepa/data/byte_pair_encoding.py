"""Byte-pair encoding whose first merges build grapheme clusters: a letter with its marks, a flag, an emoji."""

from __future__ import annotations

import functools
import itertools
import json
from collections import Counter
from collections.abc import Iterable, Sequence

from jepa.utils.lazy_import import lazy_import

tokenizers = lazy_import("tokenizers")
FLAG = r"[\x{1F1E6}-\x{1F1FF}]"
WORD = (
    rf"'s|'t|'re|'ve|'m|'ll|'d| ?{FLAG}{{2}}| ?(?>(?=\p{{L}})\X)++| ?(?>(?=\p{{N}})\X)++"
    rf"| ?(?>(?=[^\s\p{{L}}\p{{N}}])(?!{FLAG})\X)++|\s+(?!\S)|\s+"
)
"""GPT-2's words, of whole clusters: a mark belongs to the letter before it."""
VIRAMAS = "\u094d\u09cd\u0acd\u0b4d\u0c4d\u0d4d\u1039\u17d2\u1a60\u1b44\u1bab\ua9c0\uaaf6"
CLUSTER = rf"(?:\X(?<=[{VIRAMAS}]|[{VIRAMAS}]\u200d)(?=\p{{Lo}}))*\X"
"""As Unicode 15.1 has it, in which a virama joins consonants; the library's \\X is older."""
COVERAGE, MOST_CLUSTERS = 0.9995, 0.75
"""Share of all clusters of the texts that are one token each, and of the ids beyond the bytes that these may take."""
LONGEST = 16
"""Clusters of a token, as SentencePiece has it, as whole sentences would be tokens where no spaces part words; also
characters of a cluster, of which anyone can write one without end."""
CODES, MOST_CODES = 0xF0000, 0xFFFE
"""The first character for private use, and how many there are: they stand for clusters while the library trains."""
Merge = tuple[str, str]


def train_bpe(texts: Iterable[str], *, vocab_size: int, lower_case: bool) -> tokenizers.Tokenizer:
    """A tokenizer of at most vocab_size >= 257 ids: [PAD], bytes, clusters (rare ones as their parts), and merges."""
    steps = [tokenizers.normalizers.NFC(), *([tokenizers.normalizers.Lowercase()] if lower_case else [])]
    steps += [tokenizers.normalizers.Strip(right=False), tokenizers.normalizers.Prepend(" ")]
    normalizer, split = tokenizers.normalizers.Sequence(steps), _splitter(WORD)
    words: Counter[str] = Counter()
    for text in texts:
        words.update(word for word, _ in split.pre_tokenize_str(normalizer.normalize_str(text)))
    parts = {word: split_clusters(word) for word in words}
    alphabet = sorted(tokenizers.pre_tokenizers.ByteLevel.alphabet())
    free = vocab_size - 1 - len(alphabet)
    clusters, merges = _choose(words, parts, most_ids=int(MOST_CLUSTERS * free))
    names = dict.fromkeys(["[PAD]", *alphabet, *map("".join, merges)])
    room = free - (len(names) - 1 - len(alphabet))
    merges += _merge_clusters(words, parts, sorted(clusters, key=_as_bytes), most_ids=room)
    names |= dict.fromkeys(map("".join, merges))
    vocabulary = {name: number for number, name in enumerate(names)}
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Sequence([split, _byte_level()])
    tokenizer.decoder = tokenizers.decoders.ByteLevel()
    tokenizer.add_special_tokens(["[PAD]"])
    return tokenizer


def split_clusters(text: str) -> list[str]:
    """Return the grapheme clusters (CLUSTER) of a text."""
    return [cluster for cluster, _ in _splitter(CLUSTER).pre_tokenize_str(text)]


def _choose(words: Counter[str], parts: dict[str, list[str]], *, most_ids: int) -> tuple[list[str], list[Merge]]:
    """Return the clusters that are one token each, and the merges that make them; the most frequent ones come first."""
    counts: Counter[str] = Counter()
    for word, count in words.items():
        for cluster in parts[word]:
            counts[cluster] += count
    uncovered, left = counts.total(), (1 - COVERAGE) * counts.total()
    stages: tuple[dict[Merge, None], ...] = ({}, {}, {})
    names: set[str] = set()
    clusters: list[str] = []
    for cluster, count in sorted(counts.items(), key=lambda item: (-item[1], item[0])):
        if len(cluster) > LONGEST or len(clusters) == MOST_CODES:
            continue
        needed = _merges_of(cluster)
        new = set(map("".join, itertools.chain(*needed))) - names
        if new and (uncovered <= left or len(names) + len(new) > most_ids):
            continue
        names |= new
        uncovered -= count
        clusters.append(cluster)
        for stage, merges in zip(stages, needed):
            stage.update(dict.fromkeys(merges))
    return clusters, [*itertools.chain(*stages)]


def _merges_of(cluster: str) -> tuple[list[Merge], list[Merge], list[Merge]]:
    """Return what makes characters of bytes, then joins their marks to letters, then joins these from the end.

    In this order no merge applies across the boundary of two clusters, nor in the way of another's: bytes and marks are
    added from the left to what begins a character or letter, and letters from the right, to the one that nothing joins.
    """
    characters = [merge for character in cluster for merge in _from_left(_as_bytes(character))]
    letters: list[list[str]] = []
    for character in cluster:
        if letters and _is_mark(character):
            letters[-1].append(_as_bytes(character))
        else:
            letters.append([_as_bytes(character)])
    marks = [merge for letter in letters for merge in _from_left(letter)]
    joins: list[Merge] = []
    *before, last = map("".join, letters)
    for letter in reversed(before):
        joins.append((letter, last))
        last = letter + last
    return characters, marks, joins


def _from_left(pieces: Sequence[str]) -> list[Merge]:
    return list(zip(itertools.accumulate(pieces), pieces[1:]))


def _merge_clusters(
    words: Counter[str], parts: dict[str, list[str]], clusters: Sequence[str], *, most_ids: int
) -> list[Merge]:
    """Return the merges of byte-pair encoding with clusters as characters; those that are not among them part words."""
    codes = {cluster: chr(CODES + number) for number, cluster in enumerate(clusters)}
    names = {code: _as_bytes(cluster) for cluster, code in codes.items()}
    lines = ("".join(codes.get(part, "\n") for part in parts[word]) for word in words)
    repeated = itertools.chain.from_iterable(itertools.repeat(line, words[word]) for word, line in zip(words, lines))
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE())
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Split("\n", "removed")
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=len(codes) + most_ids,
        initial_alphabet=list(names),
        min_frequency=2,
        max_token_length=LONGEST,
        show_progress=False,
    )
    tokenizer.train_from_iterator(repeated, trainer=trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    return [tuple("".join(names[code] for code in piece) for piece in merge) for merge in merges]


@functools.cache
def _splitter(pattern: str) -> tokenizers.pre_tokenizers.PreTokenizer:
    return tokenizers.pre_tokenizers.Split(tokenizers.Regex(pattern), "isolated")


@functools.cache
def _byte_level() -> tokenizers.pre_tokenizers.PreTokenizer:
    return tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


@functools.cache
def _as_bytes(text: str) -> str:
    """Return a text as byte-pair encoding has it, a character for each byte."""
    return _byte_level().pre_tokenize_str(text)[0][0]


@functools.cache
def _is_mark(character: str) -> bool:
    return len(split_clusters(f"a{character}")) == 1
