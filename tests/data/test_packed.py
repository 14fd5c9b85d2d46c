"""scripts/pack.py and data=packed: the batches of what was packed, going on, and what is damaged."""

from __future__ import annotations

import errno
import io
import json
import os
import pickle
import shutil
import subprocess
import sys
import tarfile
import time
import tracemalloc
from pathlib import Path

import hostile_samples
import numpy as np
import pytest
import soundfile
import torch
from data_helpers import same, write_classes, write_image, write_videos
from PIL import Image
from test_segmentation import write as write_masks

from jepa.config.build import build_data
from jepa.config.command import load_config
from jepa.data.sources import imagenet, packed, tar_files
from jepa.data.sources.packed import read_packed
from jepa.data.sources.sound_files import SoundFile
from jepa.utils.errors import DataError, UserError

sys.path.insert(0, str(Path(__file__).parents[2] / "scripts"))
import pack as script

SMALL = ["data.batch_size=4", "data.num_workers=0"]
PICTURES = [*SMALL, "data.image_size=16"]
SOUNDS = [*SMALL, "data.sample_rate=8000", "data.seconds=0.2", "data.spectrogram.mel_bins=20"]


def pack(output: Path, *options: str) -> Path:
    return script.pack(load_config([*options, f"output={output}"], config_name="pack"))


def write_pictures(root: Path) -> Path:
    for number in range(12):
        for label in "ab":
            kind = "png" if number % 3 else "jpg"
            write_image(root / "train" / label / f"{number}.{kind}", seed=number, size=(40, 20 + number))
    for number in range(3):
        write_image(root / "val" / "b" / f"{number}.png", seed=50 + number)
    (root / "train" / "a" / "5.png").write_bytes(b"no picture")
    os.rename(root / "train" / "a" / "4.png", os.path.join(os.fsencode(root), b"train/a/\xff.png"))
    return root


def write_sounds(root: Path) -> Path:
    random = np.random.default_rng(0)
    for number in range(8):
        for label in "ab":
            path = root / label / f"{number}.{'wav' if number % 2 else 'flac'}"
            path.parent.mkdir(parents=True, exist_ok=True)
            soundfile.write(path, random.uniform(-0.5, 0.5, 3000 + 700 * number), 8000)
    return root


def write_clips(root: Path) -> Path:
    for number in range(8):
        path = root / f"{number}.avi"
        path.parent.mkdir(parents=True, exist_ok=True)
        hostile_samples.write_clip(path)
    (root / "8.avi").write_bytes(b"")
    (root / "7.avi").rename(root / f"7.{'long' * 40}")
    return root


def kinds(root: Path) -> dict[str, tuple[list[str], list[str], list[str]]]:
    """Name -> what is packed, options of both, options of the packed data."""
    frames = write_videos(root / "frames")["root"]
    pictures, sounds, clips = (
        str(write(root / write.__name__)) for write in (write_pictures, write_sounds, write_clips)
    )
    (root / "clips.csv").write_text("\n".join(["path", *sorted(os.listdir(clips))]))
    listed = ["data=video_folder", "data.num_frames=3", "data.frame_stride=1"]
    of_packed = ["data.video.num_frames=3", "data.video.frame_stride=1"]
    pieces = ["data=audio_folder", f"data.root={sounds}", "data.source.piece_seconds=0.1", "data.source.labels=false"]
    return {
        "pictures": (["data=image_folder", f"data.root={pictures}", "data.max_bad_share=0.5"], PICTURES, []),
        "sounds": (["data=audio_folder", f"data.root={sounds}"], SOUNDS, []),
        "pieces of sounds": (pieces, SOUNDS, ["data.piece_seconds=0.1"]),
        "videos": (
            [*listed, f"data.root={clips}", f"data.csv={root}/clips.csv"],
            [*PICTURES, "data.max_bad_share=0.5"],
            of_packed,
        ),
        "frames": (
            [*listed, f"data.csv={frames}/clips.csv", "data.csv_path='{class}/{clip}'", "data.csv_label=class"],
            PICTURES,
            of_packed,
        ),
    }


def filled(batches) -> list[dict[str, torch.Tensor]]:
    """Batches without the NaN that stands for padding."""
    return [{key: x.nan_to_num(-9.0) if key == "x" else x for key, x in batch.items()} for batch in batches]


@pytest.mark.parametrize("kind", ["pictures", "sounds", "pieces of sounds", "videos", "frames"])
def test_packed_data_give_the_batches_of_what_was_packed(tmp_path, monkeypatch, kind):
    packing, options, of_packed = kinds(tmp_path)[kind]
    monkeypatch.setattr(tar_files, "MOST_OPEN", 2)
    monkeypatch.setitem(packed.KINDS, "audio", (SoundFile, 100 if "pieces" in kind else 2**20))  # read as needed
    folder = pack(tmp_path / "packed", *packing, "shard_megabytes=0.02")
    assert len(list(folder.glob("train-*.tar"))) > 2

    def build(*more: str):
        given = ["data=packed", f"data.root={folder}", "data.max_bad_share=0.5", *options, *of_packed, *more]
        return build_data(load_config(given))

    plain, data = build_data(load_config([*packing, *options])), build()
    assert data.spec == plain.spec
    whole = filled(plain.train_batches(seed=1, start_step=0, stop_step=8))
    assert same(filled(data.train_batches(seed=1, start_step=0, stop_step=8)), whole)
    assert same(filled(build("data.num_workers=2").train_batches(seed=1, start_step=5, stop_step=8)), whole[5:])
    assert same(*(filled(each.evaluation_batches("test", batch_size=4)) for each in (plain, data)))
    samples = data.splits["train"]
    assert pickle.loads(pickle.dumps(samples)).describe(1) == samples.describe(1)  # for workers that are not forked
    assert [Path(name).name for name in data.bad_samples] == [Path(name).name for name in plain.bad_samples]
    assert all(str(folder) in name for name in data.bad_samples)
    assert len(data.bad_samples) == (kind in ("pictures", "videos"))


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_shards_are_webdatasets_and_the_same_for_any_workers(tmp_path):
    root = write_pictures(tmp_path / "root")
    (root / "train" / "a" / "5.png").unlink()
    packing = ["data=image_folder", f"data.root={root}", "shard_megabytes=0.03"]
    folder = pack(tmp_path / "packed", *packing)
    assert contents(pack(tmp_path / "again", *packing, "workers=3")) == contents(folder)
    with tarfile.open(folder / "train-000000.tar") as archive:
        first, about = archive.getmembers()[:2]
        assert (first.name, about.name) == ("00000000.jpg", "00000000.json")
        assert archive.extractfile(first).read() == (root / "train" / "a" / "0.jpg").read_bytes()
        assert json.load(archive.extractfile(about)) == {"name": "train/a/0.jpg", "label": 0, "class": "a"}
    others = imagenet(root=str(folder))
    kind, mine = read_packed(str(folder))
    assert kind == "image"
    assert sorted(map(tuple, others.train.places[:, 1:].tolist())) == sorted(
        map(tuple, mine.train.places[:, 1:].tolist())
    )
    assert others.train.labels.tolist() == mine.train.labels.tolist()


HOLDS = """
import fcntl, sys
with open(sys.argv[1] + "/.lock", "w") as file:
    fcntl.lockf(file, fcntl.LOCK_EX)
    print(flush=True)
    sys.stdin.read()
"""


@pytest.mark.faults
def test_a_full_disk_leaves_whole_shards_and_packing_goes_on(tmp_path, monkeypatch, capsys):
    packing = ["data=image_folder", f"data.root={write_pictures(tmp_path / 'root')}", "shard_megabytes=0.03"]
    wanted = contents(pack(tmp_path / "whole", *packing))
    folder, sync = tmp_path / "packed", os.fsync

    def full(number: int) -> None:
        if (folder / "train-000001.tar").exists():
            raise OSError(errno.ENOSPC, "No space left on device")
        sync(number)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(UserError, match=r"output=.* No space left .* the same command goes on"):
        pack(folder, *packing)
    assert sorted(path.name for path in folder.glob("[a-z]*")) == [
        "packing.json",
        "train-000000.tar",
        "train-000001.tar",
    ]
    monkeypatch.undo()
    (folder / "train-000002.tar.part").write_bytes(b"of a process that was killed")
    with subprocess.Popen(
        [sys.executable, "-c", HOLDS, folder], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as other:
        other.stdout.readline()
        with pytest.raises(UserError, match=r"output=.*packed is being written by another process"):
            pack(folder, *packing)
        other.stdin.close()
    with pytest.raises(UserError, match=r"holds another pack \(packing.json differs in settings, shard_samples\)"):
        pack(folder, *packing, "shortest_side=8")
    with pytest.raises(DataError, match=r"holds no index\.json; write one with: python scripts/pack\.py"):
        read_packed(str(folder))
    capsys.readouterr()
    assert contents(pack(folder, *packing)) == wanted
    assert "goes on: 2 of 5 shards are there" in capsys.readouterr().out
    pack(folder, *packing)
    assert "holds these samples already" in capsys.readouterr().out
    with pytest.raises(UserError, match="holds other things"):
        pack(tmp_path / "root", *packing)


def test_pictures_are_made_smaller_and_written_anew(tmp_path):
    root = tmp_path / "root"
    for number, (mode, kind) in enumerate([("RGB", "jpg"), ("RGBA", "png"), ("P", "gif"), ("L", "png"), ("1", "png")]):
        write_image(root / f"{number}.{kind}", size=(60, 40), mode=mode)
    write_image(root / "5.jpg", size=(20, 12))
    np.save(root / "6.npy", np.zeros((60, 40), np.uint16))
    (root / "7.jpg").write_bytes(b"no picture")
    packing = ["data=image_folder", f"data.root={root}"]

    def pictures(*options: str) -> dict[str, tuple]:
        folder, found = tmp_path / f"packed{len(options)}", {}
        half = "data.source.val_fraction=0.5"
        _, splits = read_packed(str(pack(folder, *packing, "data.max_bad_share=0.2", half, *options)))
        for samples in (splits.train, splits.test):
            for index in range(len(samples)):
                content = samples.file(index, "")[0].getvalue()
                picture = Image.open(io.BytesIO(content)) if content[:1] != b"\x93" else None
                described = picture and (picture.format, picture.mode, picture.size)
                found[Path(samples.describe(index)).name] = described or content
        return found

    kept = {"5.jpg": ("JPEG", "RGB", (20, 12)), "6.npy": (root / "6.npy").read_bytes()}
    smaller = {"0.jpg": ("JPEG", "RGB", (30, 20)), "1.png": ("PNG", "RGBA", (30, 20)), "3.png": ("PNG", "L", (30, 20))}
    smaller |= {"2.gif": ("PNG", "L", (30, 20)), "4.png": ("PNG", "L", (30, 20)), **kept}
    assert pictures("shortest_side=20") == smaller
    assert pictures("longest_side=30", "format=jpeg") == {
        name: value if name == "6.npy" else ("JPEG", "L" if value[1] == "L" else "RGB", value[2])
        for name, value in smaller.items()
    }
    with pytest.raises(DataError, match=r"1 of 8 samples .* data.max_bad_share=0; .*\n .*7.jpg: UnidentifiedImage"):
        pack(tmp_path / "none", *packing, "data.max_bad_share=0", "format=png")
    with pytest.raises(DataError, match=r"none of the test samples can be read: .*\n .*7.jpg: UnidentifiedImage"):
        pack(tmp_path / "no test", *packing, "data.max_bad_share=0.2", "format=png")


def change(key: str, value):
    """Changes index.json."""

    def write(folder: Path) -> None:
        index = json.loads((folder / "index.json").read_text())
        (folder / "index.json").write_text(json.dumps(index | {key: value}))

    return write


def array(name: str, make):
    """Changes an array of the index."""

    def write(folder: Path) -> None:
        path = folder / f"{name}.npy"
        values = np.load(path)
        np.save(path, make(values))

    return write


def claims_more(folder: Path) -> None:
    path = folder / "train_labels.npy"
    path.write_bytes(path.read_bytes().replace(b"(20,)", b"(99,)"))


DAMAGE = {
    "no index": (lambda folder: (folder / "index.json").unlink(), "holds no index.json"),
    "no JSON": (lambda folder: (folder / "index.json").write_text("{"), "its index is damaged .*copy or pack it again"),
    "a list": (lambda folder: (folder / "index.json").write_text("[]"), "its index is damaged"),
    "another version": (change("version", 9), "of version 9"),
    "another kind": (change("kind", "smell"), "of smell, expected"),
    "classes missing": (change("classes", ["a"]), "labels beyond its 1 classes"),
    "outside": (change("splits", {"train": {"shards": [["../x.tar", 1]]}}), "'../x.tar', which lies elsewhere"),
    "shard missing": (lambda folder: (folder / "train-000000.tar").unlink(), r"train-000000.tar is missing: copy it"),
    "shard cut": (lambda folder: os.truncate(folder / "train-000000.tar", 999), "has 999 bytes, expected"),
    "array missing": (lambda folder: (folder / "val_names.npy").unlink(), "its index is damaged .*val_names"),
    "pipe": (
        lambda folder: ((folder / "train_names.npy").unlink(), os.mkfifo(folder / "train_names.npy")),
        "no regular",
    ),
    "array cut": (lambda folder: os.truncate(folder / "train_places.npy", 300), "its index is damaged"),
    "array claims more": (claims_more, "its index is damaged"),
    "objects": (array("train_names", lambda names: names.astype(object)), "its index is damaged"),
    "floats": (array("train_places", lambda places: places.astype(float)), "arrays are of other kinds"),
    "rows missing": (array("train_labels", lambda labels: labels[1:]), "arrays are of other kinds"),
    "places beyond": (array("train_places", lambda places: places + 2**40), "places beyond"),
    "places before": (array("train_places", lambda places: places - 2**40), "places beyond"),
    "labels beyond": (array("train_labels", lambda labels: labels + 2), "labels beyond its 2 classes"),
    "of another pack": (
        array("train_labels", lambda labels: labels[::-1]),
        "train_labels.npy is damaged, or of another",
    ),
    "labels before": (array("train_labels", lambda labels: labels - 3), "labels beyond its 2 classes"),
}


@pytest.fixture(scope="module")
def small_pack(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("small")
    return pack(folder / "packed", "data=image_folder", f"data.root={write_classes(folder / 'root', each=11)}")


@pytest.mark.faults
@pytest.mark.parametrize("harm", DAMAGE)
def test_a_damaged_pack_is_refused_in_words(tmp_path, small_pack, harm):
    folder = shutil.copytree(small_pack, tmp_path / "packed")
    DAMAGE[harm][0](folder)
    with pytest.raises(DataError, match=DAMAGE[harm][1]):
        build_data(load_config(["data=packed", f"data.root={folder}"]))


@pytest.mark.faults
def test_a_damaged_member_is_a_bad_sample(tmp_path, small_pack):
    folder = shutil.copytree(small_pack, tmp_path / "packed")
    with open(folder / "train-000000.tar", "r+b") as file:
        file.seek(read_packed(str(folder))[1].train.places[3, 1])
        file.write(bytes(40))
    data = build_data(load_config(["data=packed", f"data.root={folder}", *PICTURES]))
    assert sum(len(batch["x"]) for batch in data.evaluation_batches("train", batch_size=9)) == 20
    (name,) = data.bad_samples
    assert name == str(folder / "train-000000.tar" / "a" / "3.png") or name.endswith(".png")


def test_a_million_samples_start_at_once_in_little_memory(tmp_path):
    counts = {"train": 1_000_000, "val": 10}
    for name, count in counts.items():
        with open(tmp_path / f"{name}-000000.tar", "wb") as file:
            file.truncate(2048 * count)  # takes no room
        number = np.arange(count)
        np.save(tmp_path / f"{name}_names.npy", np.char.mod(b"n%08d.JPEG", number))
        np.save(tmp_path / f"{name}_labels.npy", number % 1000)
        np.save(tmp_path / f"{name}_places.npy", np.stack([0 * number, 2048 * number + 512, 0 * number + 900], axis=1))
    shards = {split: {"shards": [[f"{n}-000000.tar", 2048 * counts[n]]]} for split, n in packed.NAMES.items()}
    index = {"version": 1, "kind": "image", "classes": [*map(str, range(1000))], "splits": shards}
    (tmp_path / "index.json").write_text(json.dumps(index))
    tracemalloc.start()
    start = time.process_time()
    _, splits = read_packed(str(tmp_path))
    took, (kept, most) = time.process_time() - start, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert (len(splits.train), splits.train.describe(7)) == (1_000_000, f"{tmp_path}/train-000000.tar/n00000007.JPEG")
    assert took < 5
    assert kept < 20e6
    assert most < 100e6


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["data=digits"], "output is not set"),
        (["data=digits", "output=x"], "data._target_=jepa.data.ImageData: its samples are no files"),
        (["data=segmentation_folder", "data.root={masks}", "output=x"], "its samples are no files"),
        (["data=packed", "data.root=x", "output=x"], "data._target_=jepa.data.packed: its samples are no files"),
        (["data=image_folder", "output=x"], "data.root is not set"),
        (["data=image_folder", "data.root=y", "output=x"], "data.root=y is not a folder"),
        (
            ["data=image_folder", "data.root=y", "output=x", "data.source._target_=jepa.data.sources.mnist"],
            "mnist takes no val_fraction",
        ),
        (["data=image_folder", "data.root=.", "output=x"], "output=x lies in data.root=.*: give another folder"),
        (
            ["data=image_folder", "data.root=y", "output=x", "data.max_bad_share=null"],
            "data.max_bad_share=None is not in",
        ),
        (
            ["data=audio_folder", "data.root={tracks}", "output=x", "data.source.label_tracks=true"],
            "no label tracks: set",
        ),
        (["data=audio_folder", "data.root={sounds}", "output=x", "longest_side=8"], "longest_side: for pictures"),
        (["data=image_folder", "data.root=x", "output=x", "workers=0"], "workers=0: expected a whole number from 1"),
        (["data=image_folder", "data.root=x", "output=x", "quality=101"], "quality=101: expected .* to 100"),
        (["data=image_folder", "data.root=x", "output=x", "format=webp"], "format=webp: expected jpeg, png or null"),
        (["data=image_folder", "data.root=x", "output=x", "shard_megabytes=0"], "shard_megabytes=0: expected"),
        (["data=image_folder", "data.root=x", "output=x", "longest_side=8", "shortest_side=8"], "give one of them"),
    ],
)
def test_what_cannot_be_packed_is_said(tmp_path, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    places = {"masks": write_masks(tmp_path / "masks", count=20), "sounds": write_sounds(tmp_path / "sounds")}
    places["tracks"] = shutil.copytree(places["sounds"], tmp_path / "tracks")
    (places["tracks"] / "a" / "1.txt").write_text("0\t0.1\thum\n")
    with pytest.raises(UserError, match=message):
        script.pack(load_config([option.format(**places) for option in options], config_name="pack"))
    assert not Path("x").exists()


def test_pieces_are_of_sounds(small_pack):
    with pytest.raises(UserError, match=r"data.piece_seconds=1.0: expected null, as data.root holds image"):
        build_data(load_config(["data=packed", f"data.root={small_pack}", "data.piece_seconds=1.0"]))
    assert (
        build_data(load_config(["data=packed", f"data.root={small_pack}", "data.score_on=validation"])).score_on
        != "test"
    )
