"""Text from files to ids: sources, tokenizers, windows and padding."""

from __future__ import annotations

import functools
import gzip
import hashlib
from pathlib import Path

import pytest
import torch
from data_helpers import same
from hydra.utils import instantiate
from omegaconf import OmegaConf

from jepa.data.sources import text_csv, text_lines, wikitext2
from jepa.data.text_data import TextData
from jepa.data.tokenizer import PADDING, Tokenizer, open_tokenizer, train_tokenizer
from jepa.utils.errors import DataError, UserError

CONFIGS = Path(__file__).parents[2] / "conf" / "data"
WORDS = ["red", "green", "blue", "card", "bank", "money", "train", "paper", "stone", "river", "cloud", "light"]


def sentences(count: int, seed: int = 0, longest: int = 12) -> list[str]:
    random = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (count,), generator=random)
    return [" ".join(WORDS[i] for i in torch.randint(len(WORDS), (n,), generator=random)) for n in lengths.tolist()]


def write_table(folder: Path, *, name: str = "train.csv", count: int = 30, header: bool = True, tabs: bool = False):
    folder.mkdir(exist_ok=True)
    between = "\t" if tabs else ","
    rows = [between.join((text, "ab"[n % 2])) for n, text in enumerate(sentences(count))]
    (folder / name).write_text("\n".join([between.join(("text", "kind"))] * header + rows) + "\n")
    return folder


def table_data(root: Path, **settings) -> TextData:
    given = {"text_column": "text", "label_column": "kind", "vocab_size": 300, "max_length": 8, "batch_size": 4}
    return TextData(source=text_csv, root=str(root), **{**given, **settings})


@pytest.fixture
def tables(tmp_path):
    return write_table(write_table(tmp_path), name="test.csv", count=9)


def test_lines_of_a_file_are_split(tmp_path):
    path = tmp_path / "corpus.txt"
    path.write_text("\n".join(f" line {n} \n" for n in range(40)))
    splits = text_lines(root=str(path), test_fraction=0.25)
    texts = [split[i][0] for split in (splits.train, splits.test) for i in range(len(split))]
    assert (len(splits.train), len(splits.test), splits.class_names) == (30, 10, None)
    assert sorted(texts) == sorted(f"line {n}" for n in range(40))
    again = text_lines(root=str(path), test_fraction=0.25)
    assert [again.test[i] for i in range(10)] == [splits.test[i] for i in range(10)]


@pytest.mark.parametrize(("train", "test"), [("train.txt", "valid.txt"), ("wiki.train.tokens.gz", "wiki.test.tokens")])
def test_lines_of_a_folder_keep_their_splits(tmp_path, train, test):
    (tmp_path / train).write_bytes(gzip.compress(b"a b\n\nc\n") if train.endswith("gz") else b"a b\r\n\r\nc\n")
    (tmp_path / test).write_text("ünï\n")
    splits = text_lines(root=str(tmp_path))
    assert [splits.train[i][0] for i in range(2)] == ["a b", "c"]
    assert splits.test[0] == ("ünï", None)


def test_tables_with_and_without_header(tmp_path, tables):
    named = text_csv(root=str(tables), text_column="text", label_column="kind")
    folder = tmp_path / "tabs"
    write_table(write_table(folder, name="train.tsv", header=False, tabs=True), name="dev.tsv", header=False, tabs=True)
    (folder / "train.tsv").write_text('a "quote, b\t7\nc\t10\n')
    (folder / "dev.tsv").write_text("d\t10\n")
    numbered = text_csv(root=str(folder), text_column=0, label_column=1)
    assert (named.class_names, len(named.train), len(named.test)) == (("a", "b"), 30, 9)
    assert named.train[1] == (sentences(30)[1], 1)
    assert numbered.class_names == ("7", "10")
    assert [numbered.train[i] for i in range(2)] == [('a "quote, b', 0), ("c", 1)]
    assert numbered.test[0] == ("d", 1)


def test_a_single_table_is_split_and_needs_no_labels(tmp_path):
    splits = text_csv(root=str(write_table(tmp_path) / "train.csv"), text_column="text", test_fraction=0.2)
    assert (len(splits.train), len(splits.test), splits.class_names) == (24, 6, None)


def test_mistakes_in_tables_are_told(tmp_path, tables):
    for settings, told in [
        ({"text_column": "body"}, r"data.text_column=body: .*begins with the columns text, kind"),
        ({"text_column": 2}, r"data.text_column=2: .*columns 0 to 1"),
        ({"label_column": "kind", "header": False}, "give its number"),
    ]:
        with pytest.raises(DataError, match=told):
            text_csv(root=str(tables), **{"text_column": "text", **settings})
    (tables / "test.csv").write_text("text,kind\nhello,c\n")
    with pytest.raises(DataError, match="label_column=kind: the classes c of the test split are not in train"):
        text_csv(root=str(tables), text_column="text", label_column="kind")
    with pytest.raises(DataError, match="neither a file nor a folder"):
        text_csv(root=str(tmp_path / "nowhere"), text_column=0)
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9\n")
    with pytest.raises(DataError, match="not text in UTF-8"):
        text_lines(root=str(tmp_path / "latin.txt"))
    (tmp_path / "cut.txt.gz").write_bytes(gzip.compress(b"a\nb\n" * 99)[:20])
    with pytest.raises(DataError, match=r"cut.txt.gz cannot be read"):
        text_lines(root=str(tmp_path / "cut.txt.gz"))


def test_short_rows_and_empty_labels_are_replaced_by_the_next(tables):
    lines = (tables / "train.csv").read_text().splitlines()
    lines[3], lines[7] = "no label", "text without one, "
    (tables / "train.csv").write_text("\n".join(lines))
    data = table_data(tables)
    (everything,) = data.evaluation_batches("train", batch_size=30)
    assert torch.equal(everything["x"][2], everything["x"][3])
    assert sorted(data.bad_samples) == [f"{tables / 'train.csv'}, row {n}" for n in (3, 7)]
    assert data.spec.class_names == ("a", "b")
    strict = table_data(tables, max_bad_share=0.0)
    with pytest.raises(DataError, match="it has 1 columns, expected 2 or more"):
        list(strict.evaluation_batches("train", batch_size=30))


def test_ids_are_padded_cut_and_never_padding_inside(tables):
    data = table_data(tables, views=3, max_length=6)
    ids = data.tokenizer.encode("red green blue card bank money train paper stone")
    assert data.to_ids("red")[-1] == PADDING
    assert data.to_ids(" ".join(WORDS * 3)).tolist() == data.tokenizer.encode(" ".join(WORDS * 3))[:6]
    assert min(ids) > PADDING
    assert max(ids) < 300
    (batch,) = data.train_batches(seed=0, start_step=0, stop_step=1)
    assert batch["views"].shape == (4, 3, 6)
    assert batch["views"].dtype == torch.int64
    windows = {tuple(data.to_ids(" ".join(WORDS * 3), torch.Generator().manual_seed(n)).tolist()) for n in range(9)}
    assert len(windows) > 3
    blank = data.blank_batch(2)["views"]
    assert bool((blank != PADDING).all())


def test_what_of_long_texts_is_read_is_said(tmp_path):
    (tmp_path / "corpus.txt").write_text("\n".join(["red green"] * 30 + ["red green blue card " * 5] * 10 + ["", " "]))
    source = functools.partial(text_lines, test_fraction=0.5)
    given = {"source": source, "root": str(tmp_path / "corpus.txt"), "vocab_size": 400}
    data = TextData(**given, max_length=5)
    assert data.lines[0] == "2 empty texts left out"
    texts = [data.splits["train"][n][0] for n in range(data.spec.num_train)]
    lengths = [len(data.tokenizer.encode(text)) for text in texts]
    long, seen = sum(n > 5 for n in lengths) / len(lengths), sum(min(n, 5) for n in lengths) / sum(lengths)
    assert f"{long:.0%} of the texts are longer than data.max_length=5 tokens" in data.lines[1]
    assert f"the beginning, {seen:.0%} of all tokens" in data.lines[1]
    assert 0 < long < 1
    assert TextData(**given, max_length=100).lines == data.lines[:1]


def test_the_stream_is_the_same_for_workers_and_after_resume(tables):
    def batches(start: int, workers: int):
        return table_data(tables, num_workers=workers).train_batches(seed=1, start_step=start, stop_step=6)

    whole = list(batches(0, 0))
    assert same(whole, batches(0, 2))
    assert same(whole[4:], batches(4, 0))


def test_ids_are_told_as_words(tables):
    data = table_data(tables)
    ids = data.to_ids("the cat")
    assert " ".join(word for word in data.words(ids) if word).replace(" ", "") == "thecat"
    assert all(not word for word, each in zip(data.words(ids), ids) if each == 0)


def test_bags_of_tokens_leave_padding_out(tables):
    data = table_data(tables)
    x = torch.tensor([[5, 5, 7, 0, 0, 0, 0, 0], [0] * 8])
    bags = data.raw_features(x, 32)
    assert bags.shape == (2, 300)
    assert bags[0].nonzero().flatten().tolist() == [5, 7]
    assert bags[0, 5] == pytest.approx(torch.tensor(3.0).log())
    assert bags[1].sum() == 0


def test_a_trained_tokenizer_is_the_same_every_time_and_reads_everything():
    texts = sentences(200)
    first, second = (train_tokenizer(texts, vocab_size=320) for _ in range(2))
    assert first.to_json() == second.to_json()
    assert first.vocab_size <= 320
    assert first.encode("RED") == first.encode("red")
    assert first.encode("Ж🦊") != []
    cased = train_tokenizer(texts, vocab_size=320, lower_case=False)
    assert cased.encode("RED") != cased.encode("red")
    with pytest.raises(ValueError, match="300 or more"):
        train_tokenizer(texts, vocab_size=200)


def test_the_tokenizer_is_kept_with_the_run_and_read_from_there(tmp_path, tables):
    run = tmp_path / "run"
    first = table_data(tables, tokenizer_folder=str(run))
    write_table(tables, count=5)
    again = table_data(tables, tokenizer_folder=str(run))
    assert again.tokenizer.to_json() == first.tokenizer.to_json()
    assert table_data(tables).tokenizer.to_json() != first.tokenizer.to_json()
    for place in (run, run / "tokenizer.json"):
        given = table_data(tables, tokenizer=str(place), vocab_size=None)
        assert given.tokenizer.to_json() == first.tokenizer.to_json()
        assert given.spec.found == {"vocab_size": first.tokenizer.vocab_size}
    with pytest.raises(UserError, match=r"holds the tokenizer.json of .*'vocab_size': 300.* asks for .*400"):
        table_data(tables, tokenizer_folder=str(run), vocab_size=400)


def tiny_wordpiece(names: list[str]):
    import tokenizers

    model = tokenizers.models.WordPiece({name: n for n, name in enumerate(names)}, unk_token="[UNK]")
    found = tokenizers.Tokenizer(model)
    found.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    return found


def test_padding_has_id_0_whatever_the_tokenizer_calls_it(tmp_path):
    swapped = Tokenizer(tiny_wordpiece(["a", "b", "[PAD]", "[UNK]"]))
    assert swapped.encode("a b [PAD] a zzz") == [2, 1, 2, 3]
    assert swapped.vocab_size == 4
    added = Tokenizer(tiny_wordpiece(["a", "b", "[UNK]"]))
    assert (added.vocab_size, added.encode("a b")) == (4, [3, 1])
    assert Tokenizer(tiny_wordpiece(["[PAD]", "[UNK]", "a"])).encode("a a") == [2, 2]


def test_tokenizers_by_folder_and_name(tmp_path, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    from transformers import PreTrainedTokenizerFast

    folder = tmp_path / "saved"
    backend = tiny_wordpiece(["[PAD]", "[UNK]", "a", "b"])
    PreTrainedTokenizerFast(tokenizer_object=backend, pad_token="[PAD]").save_pretrained(folder)

    def opened(name: str, **settings):
        return open_tokenizer(name, texts=[], **{"vocab_size": 10, **settings})

    assert opened(str(folder)).encode("a b") == [2, 3]
    with pytest.raises(UserError, match=r"data.vocab_size=3 is less than the 4 ids of data.tokenizer="):
        opened(str(folder), vocab_size=3)
    with pytest.raises(DataError, match=r"no tokenizer of that name could be had .*data.tokenizer=train"):
        opened("nobody-has-this-tokenizer")
    with pytest.raises(DataError, match="there is no such file"):
        opened("./nowhere/tokenizer.json")
    (tmp_path / "broken.json").write_text("{}")
    with pytest.raises(DataError, match="not a file of the tokenizers library"):
        opened(str(tmp_path / "broken.json"))


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"max_length": 1}, "max_length=1"),
        ({"vocab_size": None}, "vocab_size=null"),
        ({"vocab_size": 0}, "vocab_size must be at least 1, got 0"),
        ({"views": 0}, "views must be at least 1, got 0"),
    ],
)
def test_wrong_settings_are_refused(tables, settings, told):
    with pytest.raises(ValueError, match=told):
        table_data(tables, **settings)


def test_wikitext2(shared_dir):
    splits = wikitext2(root=str(shared_dir / "wikitext2"))
    assert (len(splits.train), len(splits.test), splits.class_names) == (17556, 2185, None)
    assert splits.train[0][0].startswith("Senjō no Valkyria 3")


def test_wikitext2_out_of_reach(tmp_path):
    with pytest.raises(DataError, match=r"WikiText-2 is not in data.root=.*download=false"):
        wikitext2(root=str(tmp_path), download=False)


def test_wikitext2_is_downloaded_and_checked(tmp_path, monkeypatch):
    from jepa.data.sources import text_files

    served = tmp_path / "served"
    served.mkdir()
    for name in ("train.txt", "test.txt"):
        (served / name).write_text(" = Title = \n A paragraph of words . \n")
    monkeypatch.setattr(text_files, "WIKITEXT2_URL", f"{served.as_uri()}/")
    with pytest.raises(DataError, match="something other than the published file"):
        wikitext2(root=str(tmp_path / "a"))
    md5 = hashlib.md5((served / "train.txt").read_bytes()).hexdigest()
    monkeypatch.setattr(text_files, "WIKITEXT2_MD5", {"train.txt": md5, "test.txt": md5})
    assert wikitext2(root=str(tmp_path / "b")).train[0] == ("A paragraph of words .", None)


@pytest.mark.parametrize(
    ("name", "columns", "classes"),
    [("banking77", ("text", "category"), 77), ("sst2", (0, 1), 2)],
)
def test_real_tables(shared_dir, name, columns, classes):
    config = OmegaConf.merge(
        OmegaConf.load(CONFIGS / "text_csv.yaml"),
        {"root": str(shared_dir / name), "text_column": columns[0], "label_column": columns[1]},
        {"tokenizer_folder": None, "vocab_size": 500},
    )
    data = instantiate(config, _convert_="all")
    assert data.spec.classes == classes
    (batch,) = data.train_batches(seed=0, start_step=0, stop_step=1)
    assert batch["x"].shape == (256, data.max_length)
    assert int(batch["label"].max()) < classes
