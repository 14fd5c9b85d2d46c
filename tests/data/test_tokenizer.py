"""The tokenizer that is trained: grapheme clusters stay whole, rare ones fall back, and old runs keep their ids."""

from __future__ import annotations

import pytest
import tokenizers
import torch

from jepa.data.byte_pair_encoding import split_clusters
from jepa.data.tokenizer import PADDING, Tokenizer, open_tokenizer, train_tokenizer
from jepa.report.figures import id_lines
from jepa.types import Mask

HINDI = [
    "सभी मनुष्यों को गौरव और अधिकारों के मामले में जन्मजात स्वतन्त्रता और समानता प्राप्त है ।",
    "उन्हें बुद्धि और अन्तरात्मा की देन प्राप्त है और परस्पर उन्हें भाईचारे के भाव से बर्ताव करना चाहिए ।",
    "प्रत्येक व्यक्ति को जीवन, स्वाधीनता और वैयक्तिक सुरक्षा का अधिकार है ।",
]
THAI = [
    "มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกันในเกียรติศักดิ์และสิทธิ",
    "ต่างมีเหตุผลและมโนธรรม และควรปฏิบัติต่อกันด้วยเจตนารมณ์แห่งภราดรภาพ",
    "ทุกคนมีสิทธิในการดำรงชีวิต เสรีภาพและความมั่นคงแห่งตัวตน",
]
ARABIC = ["يُولَدُ جَمِيعُ النَّاسِ أَحْرَارًا مُتَسَاوِينَ فِي الْكَرَامَةِ وَالْحُقُوقِ"]
EMOJI = ["🇩🇪🇺🇸 and 👨‍👩‍👧‍👦 or 👩‍👧 👍🏽 1️⃣ ❤️‍🔥!!🇺🇸🇩🇪", "👨‍👩‍👧‍👦👩‍👧👩‍❤️‍👨 a🇪🇺"]
JOINED = ["क्त्व त्व क्त क्‍ष", "মানুষ স্বাধীনভাবে সমান মর্যাদা", "ខ្មែរ ស្រី", "ᄀᆞᆫ ᄒᆞᆯ می‌خواهم"]


def pieces(tokenizer: Tokenizer, text: str) -> list[str]:
    """What each token of a text stands for alone."""
    return [tokenizer.words([each])[0] for each in tokenizer.encode(text)]


def byte_level(texts: list[str]) -> Tokenizer:
    """The tokenizer that was trained before clusters were kept together."""
    found = tokenizers.Tokenizer(tokenizers.models.BPE())
    found.normalizer = tokenizers.normalizers.Sequence(
        [tokenizers.normalizers.NFC(), tokenizers.normalizers.Lowercase()]
    )
    found.pre_tokenizer = tokenizers.pre_tokenizers.ByteLevel(add_prefix_space=True)
    found.decoder = tokenizers.decoders.ByteLevel()
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    trainer = tokenizers.trainers.BpeTrainer(
        vocab_size=2000, special_tokens=["[PAD]"], initial_alphabet=alphabet, show_progress=False
    )
    found.train_from_iterator(texts, trainer=trainer)
    return Tokenizer(found)


SCRIPTS = {"hindi": HINDI, "thai": THAI, "arabic": ARABIC, "emoji": EMOJI, "joined": JOINED}


@pytest.mark.parametrize("texts", SCRIPTS.values(), ids=SCRIPTS.keys())
def test_no_token_tears_a_cluster(texts):
    tokenizer = train_tokenizer(texts, vocab_size=2000)
    for text in texts:
        found = pieces(tokenizer, text)
        assert "".join(found) == text.replace(" ", "")
        assert [c for piece in found for c in split_clusters(piece)] == split_clusters(text.replace(" ", ""))
        assert len(found) <= len(split_clusters(f" {text}"))


@pytest.mark.parametrize("texts", [HINDI, THAI])
def test_fewer_tokens_than_before_and_none_longer_than_a_word(texts):
    small, before = train_tokenizer(texts, vocab_size=600), byte_level(texts)
    new, old, clusters = (
        sum(map(len, map(count, texts))) for count in (small.encode, before.encode, lambda text: split_clusters(text))
    )
    assert new < clusters
    assert texts is THAI or new < old  # of Hindi, every sign was a token
    tokenizer = train_tokenizer(texts, vocab_size=4000)
    assert max(len(split_clusters(piece)) for text in texts for piece in pieces(tokenizer, text)) <= 16


def test_rare_clusters_fall_back_to_their_parts():
    many = [f"{chr(first)}{mark}" for first in range(0x0915, 0x0939) for mark in "ािीुूेैोौंँॣ"]
    endless = "a" + "\u0301" * 20_000
    texts = [*HINDI * 40, " ".join(many), endless]
    tokenizer = train_tokenizer(texts, vocab_size=512)
    assert tokenizer.vocab_size == 512
    found = pieces(tokenizer, HINDI[0])
    assert [c for piece in found for c in split_clusters(piece)] == split_clusters(HINDI[0].replace(" ", ""))
    assert len(tokenizer.encode("घॣ")) > 1
    for text in ("घॣ", "𓀀", "Ж🦊", endless):  # the second and third occur in no text
        ids = tokenizer.encode(text)
        assert "".join(tokenizer.words(ids)) == text.lower().replace("a\u0301", "á")


def test_previews_show_clusters_whole_whatever_made_the_tokens():
    text = f"{HINDI[0][:20]} {THAI[0][:16]} {EMOJI[0][:14]}"
    for tokenizer in (byte_level(HINDI + THAI), train_tokenizer(HINDI, vocab_size=512)):
        ids = torch.tensor([[*tokenizer.encode(text), PADDING, PADDING]])

        def words(row: torch.Tensor, tokenizer: Tokenizer = tokenizer) -> list[str]:
            return tokenizer.words(row.tolist())

        count = ids.shape[1]
        halves = Mask(context=torch.arange(count // 2)[None], targets=torch.arange(count // 2, count)[None, None])
        plain, masked = id_lines(ids, words), id_lines(ids, words, [halves])
        for shown in (*plain, *masked):
            kept = shown.replace(" ", "").replace("[", "").replace("]", "")
            assert kept == text.replace(" ", "")
            assert all(cluster[0] not in "\ufffd\u200d" for cluster in split_clusters(shown))
            assert len(split_clusters(kept)) == sum(len(split_clusters(each.strip("[]"))) for each in shown.split())


def test_tokenizers_of_before_give_the_ids_they_gave(tmp_path):
    before = byte_level(HINDI + THAI)
    (tmp_path / "tokenizer.json").write_text(before.to_json())
    (tmp_path / "tokenizer_origin.json").write_text('{"tokenizer": "train", "vocab_size": 2000, "lower_case": true}')
    library = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    opened = open_tokenizer("train", texts=HINDI, vocab_size=2000, folder=tmp_path)
    for text in (*HINDI, *THAI, "  Two words"):
        assert opened.encode(text) == library.encode(text).ids
