"""Sound: reading, resampling, cropping and padding, the layouts of folders, and what is said of what is wrong."""

from __future__ import annotations

import tarfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from jepa.data.audio_data import AudioData, SoundAugment, prepare_sound, resample
from jepa.data.sources import Splits, audio_folder, fsdd
from jepa.data.sources.sound_files import SoundFile
from jepa.data.stream import UnreadableSample
from jepa.utils.errors import DataError
from jepa.utils.log_mel import LogMel

RATE = 8000


def tone(seconds: float = 0.2, frequency: float = 440.0, rate: int = RATE) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * frequency * np.arange(int(seconds * rate)) / rate)).astype(np.float32)


def write(path: Path, samples: np.ndarray | None = None, rate: int = RATE) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone() if samples is None else samples, rate)
    return path


def front_end(**changes) -> LogMel:
    return LogMel(**{"sample_rate": RATE, "n_fft": 256, "hop_length": 100, "mel_bins": 20, **changes})


def data_of(root: Path, **settings) -> AudioData:
    defaults = {"sample_rate": RATE, "seconds": 0.3, "spectrogram": front_end(), "batch_size": 4}
    return AudioData(root=str(root), **{"source": audio_folder, **defaults, **settings})


def write_classes(root: Path, each: int = 4) -> Path:
    for number, name in enumerate(("high", "low")):
        for index in range(each):
            write(root / name / f"{index}.wav", tone(0.1 + 0.05 * index, 1000.0 / (1 + number)))
    return root


def test_wav_and_flac_of_any_rate_and_channels_are_read_alike(tmp_path):
    stereo = np.stack([tone(rate=16000), np.zeros_like(tone(rate=16000))], axis=1)
    paths = [write(tmp_path / "a.wav", stereo, 16000), write(tmp_path / "a.flac", stereo, 16000)]
    (first, second), rate = (SoundFile(path).read() for path in paths), SoundFile(paths[1]).rate
    assert rate == 16000
    assert first.ndim == 1
    assert torch.allclose(first, second, atol=1e-4)
    assert torch.allclose(first, torch.from_numpy(stereo[:, 0] / 2), atol=1e-4)  # the mean of both channels
    half = resample(first, rate, RATE)
    assert len(half) == len(first) // 2
    assert torch.allclose(half[200:-200], torch.from_numpy(tone())[200:-200] / 2, atol=0.01)


def test_short_clips_are_padded_with_nan_and_long_ones_cropped_at_the_centre():
    prepare = partial(prepare_sound, sample_rate=RATE, length=100)
    x = prepare((torch.ones(60), RATE), None)
    assert x.shape == (1, 100)
    assert x[0, :60].eq(1).all()
    assert x[0, 60:].isnan().all()
    ramp = torch.arange(300.0)
    assert torch.equal(prepare((ramp, RATE), None)[0], ramp[100:200])
    starts = {int(prepare((ramp, RATE), torch.Generator().manual_seed(seed))[0, 0]) for seed in range(20)}
    assert len(starts) > 10


@pytest.mark.parametrize("augment", [None, SoundAugment(), SoundAugment(crop=(0.6, 0.9), gain=6.0)])
@pytest.mark.parametrize("rate", [RATE, 11025, 16000])
def test_a_part_of_a_file_is_what_the_whole_file_holds_there(tmp_path, monkeypatch, augment, rate):
    noise = np.random.default_rng(0).standard_normal(20 * rate).cumsum().astype("float32") / 1000
    path = write(tmp_path / "long.wav", noise, rate)
    whole = SoundFile(path).read()
    read = []
    monkeypatch.setattr(
        SoundFile, "read", lambda self, *part, read_=SoundFile.read: read.append(part) or read_(self, *part)
    )
    for seed in range(4):
        made = [
            prepare_sound(sound, torch.Generator().manual_seed(seed), sample_rate=RATE, length=100, augment=augment)
            for sound in (SoundFile(path), (resample(whole, rate, RATE), RATE))
        ]
        assert torch.allclose(*made, atol=1e-3)
    assert all(count < rate / 2 for _, count in read), "of 20 s, no more is read than the clip and a margin"


def test_augmented_clips_depend_on_the_generator_alone_and_stay_clips():
    augment = SoundAugment(crop=(0.7, 1.0), speed=(0.9, 1.1), shift=0.2, gain=6.0, tilt=0.5, noise=(10.0, 30.0))
    prepare = partial(prepare_sound, sample_rate=RATE, length=1600, augment=augment)
    sound = (torch.from_numpy(tone(0.15)), RATE)
    made = [prepare(sound, torch.Generator().manual_seed(seed)) for seed in (0, 0, 1)]
    assert torch.equal(made[0].nan_to_num(), made[1].nan_to_num())
    assert not torch.equal(made[0].nan_to_num(), made[2].nan_to_num())
    for seed in range(30):
        x = prepare(sound, torch.Generator().manual_seed(seed))
        ended = x[0].isnan()
        assert x.shape == (1, 1600)
        assert not ended[0]
        assert torch.equal(ended, ended.cummax(dim=0).values)  # NaN only after the clip
    assert prepare((torch.ones(1), RATE), torch.Generator().manual_seed(0)).shape == (1, 1600)
    with pytest.raises(ValueError, match=r"data\.augment\.crop"):
        SoundAugment(crop=(0.0, 1.0))


def test_class_folders_with_and_without_a_test_folder(tmp_path):
    splits = audio_folder(root=str(write_classes(tmp_path / "one")), val_fraction=0.25)
    assert splits.class_names == ("high", "low")
    assert (len(splits.train), len(splits.test)) == (6, 2)
    both = tmp_path / "two"
    write_classes(both / "train")
    write(both / "test" / "low" / "x.wav")
    splits = audio_folder(root=str(both))
    assert (len(splits.train), len(splits.test)) == (8, 1)
    assert splits.test[0][1] == 1


def test_long_files_are_cut_into_pieces(tmp_path):
    """All of a file are in the same split, with its label; a piece is what the file holds there."""
    ramp = np.linspace(-0.9, 0.9, 2 * RATE, dtype=np.float32)
    for name in ("a/0.wav", "a/1.wav", "b/0.wav", "b/1.wav"):
        write(tmp_path / name, ramp)
    write(tmp_path / "a" / "2.wav", ramp[: int(1.3 * RATE)])
    (tmp_path / "b" / "2.wav").write_bytes(b"no sound")
    splits = audio_folder(root=str(tmp_path), val_fraction=0.3, piece_seconds=0.5)
    pieces = [splits.train.describe(n) for n in range(len(splits.train))]
    pieces += [splits.test.describe(n) for n in range(len(splits.test))]
    assert len(pieces) == 4 * 4 + 3 + 1
    assert len(set(splits.train.wholes)) == len({piece.partition(",")[0] for piece in pieces[: len(splits.train)]})
    assert sum("a/2.wav" in piece for piece in pieces) == 3  # the last of 0.3 s
    files = [
        {piece.partition(",")[0] for piece in part}
        for part in (pieces[: len(splits.train)], pieces[len(splits.train) :])
    ]
    assert not files[0] & files[1]
    assert splits.lines[-1] == "6 files of sound in 20 pieces of 0.5 s"
    number = next(
        n for n in range(len(splits.train)) if splits.train.describe(n).endswith(("0.wav, from 1 s", "1.wav, from 1 s"))
    )
    (piece, label), count = splits.train[number], RATE // 2
    assert (piece.frames, label) == (count, "ab".index(Path(splits.train.describe(number)).parent.name))
    assert torch.allclose(piece.read(), torch.from_numpy(ramp[2 * count : 3 * count]), atol=1e-3)
    data = data_of(
        tmp_path, seconds=0.5, source=partial(audio_folder, val_fraction=0.3, piece_seconds=0.5), max_bad_share=0.5
    )
    assert data.spec.num_train == len(splits.train)
    assert all(batch["x"].shape[1:] == (1, count) for batch in data.evaluation_batches("train", batch_size=8))
    with pytest.raises(ValueError, match=r"data.source.piece_seconds=0: expected seconds above 0"):
        audio_folder(root=str(tmp_path), piece_seconds=0)


def test_a_flat_folder_has_no_labels(tmp_path):
    for index in range(4):
        write(tmp_path / f"{index}.wav")
    data = data_of(tmp_path)
    (batch,) = data.train_batches(seed=0, start_step=0, stop_step=1)
    assert "label" not in batch
    assert data.spec.classes is None


@pytest.mark.parametrize(
    ("layout", "message"),
    [
        ([], "holds no sound files"),
        (["a/x.wav", "b/x.wav", "loose.wav"], "beside the folders"),
        (["train/a/x.wav", "train/b/x.wav", "test/c/x.wav"], "not in train"),
        (["a/x.wav", "b/x.txt"], "no sound files in the class folders b"),
    ],
)
def test_folders_that_do_not_fit_are_explained(tmp_path, layout, message):
    for name in layout:
        if name.endswith(".txt"):
            (tmp_path / name).parent.mkdir(parents=True)
            (tmp_path / name).write_text("no sound")
        else:
            write(tmp_path / name)
    with pytest.raises(DataError, match=message):
        audio_folder(root=str(tmp_path))


@pytest.mark.faults
def test_damaged_files_are_named_and_replaced(tmp_path):
    write_classes(tmp_path)
    (tmp_path / "low" / "0.wav").write_bytes(b"RIFF" + b"\0" * 40)
    (tmp_path / "low" / "1.wav").write_bytes(b"")
    write(tmp_path / "high" / "0.wav", np.zeros(0, dtype=np.float32))
    with pytest.raises(UnreadableSample, match="the file is empty"):
        SoundFile(tmp_path / "low" / "1.wav")
    with pytest.raises(UnreadableSample, match="no samples"):
        SoundFile(tmp_path / "high" / "0.wav")
    data = data_of(tmp_path, max_bad_share=0.6)
    (batch,) = data.evaluation_batches("train", batch_size=8)
    assert len(batch["x"]) == data.spec.num_train
    assert {Path(name).name for name in data.bad_samples} <= {"0.wav", "1.wav"}
    assert data.bad_samples


def test_workers_give_what_the_main_process_gives(tmp_path):
    write_classes(tmp_path)
    made = []
    for workers in (0, 2):
        data = data_of(tmp_path, num_workers=workers, augment=SoundAugment(noise=(10.0, 20.0)), views=2)
        made.append([b["views"].nan_to_num() for b in data.train_batches(seed=3, start_step=1, stop_step=3)])
    assert all(torch.equal(a, b) for a, b in zip(*made))
    assert made[0][0].shape == (4, 2, 1, 2400)


def test_raw_input_is_the_mean_of_each_band_over_what_is_no_padding(tmp_path):
    data = data_of(write_classes(tmp_path))
    wave = torch.randn(1, 1, 1200)
    padded = torch.cat([wave, torch.full((1, 1, 1200), float("nan"))], dim=2)
    features = data.raw_features(padded, 32)
    assert features.shape == (1, 20)
    assert torch.allclose(features, data.raw_features(wave, 32), atol=1e-5)


def test_wrong_settings_name_their_keys(tmp_path):
    with pytest.raises(ValueError, match=r"data\.seconds"):
        data_of(tmp_path, seconds=0.001)
    with pytest.raises(ValueError, match=r"data\.spectrogram\.sample_rate"):
        data_of(tmp_path, spectrogram=front_end(sample_rate=16000, n_fft=512))
    with pytest.raises(ValueError, match="fewer mel_bins"):
        front_end(mel_bins=400)


def spoken(root: Path) -> Path:
    for digit in range(2):
        for speaker in ("ann", "bob"):
            for index in (0, 4, 5, 12):
                write(root / f"{digit}_{speaker}_{index}.wav", tone(0.1, 200.0 * (1 + digit)))
    return root


@pytest.mark.parametrize("packed", [False, True])
def test_fsdd_reads_folders_and_archives_by_the_official_split(tmp_path, packed):
    root = spoken(tmp_path / "recordings")
    if packed:
        root = tmp_path / "there"
        root.mkdir()
        with tarfile.open(root / "fsdd.tar.xz", "w:xz") as archive:
            archive.add(tmp_path / "recordings", "fsdd/recordings")
    for label, names in (("digit", ("0", "1")), ("speaker", ("ann", "bob"))):
        splits = fsdd(root=str(root), label=label, download=False)
        assert splits.class_names == names
        assert (len(splits.train), len(splits.test)) == (8, 8)
    if packed:
        assert len(fsdd(root=str(root / "fsdd.tar.xz"), download=False).test) == 8


def test_fsdd_that_is_not_there_or_damaged_says_so(tmp_path):
    with pytest.raises(DataError, match=r"is not in data\.root"):
        fsdd(root=str(tmp_path), download=False)
    (tmp_path / "fsdd.tar.xz").write_bytes(b"nothing")
    with pytest.raises(DataError, match="not a complete tar archive"):
        fsdd(root=str(tmp_path), download=False)
    with pytest.raises(ValueError, match=r"data\.label"):
        fsdd(root=str(tmp_path), label="word", download=False)


def test_any_splits_of_sounds_will_do():
    class Sounds:
        def __len__(self) -> int:
            return 4

        def __getitem__(self, index: int):
            return (torch.ones(400 * (index + 1)), 2 * RATE), index % 2

    data = AudioData(
        source=lambda: Splits(train=Sounds(), test=Sounds(), class_names=("a", "b")),
        sample_rate=RATE,
        seconds=0.1,
        spectrogram=front_end(),
    )
    (batch,) = data.evaluation_batches("test", batch_size=4)
    assert (~batch["x"].isnan()).sum(dim=2).flatten().tolist() == [200, 400, 600, 800]


@pytest.mark.slow
def test_the_real_recordings(shared_dir):
    splits = fsdd(root=str(shared_dir), label="speaker", download=False)
    assert (len(splits.train), len(splits.test)) == (2700, 300)
    assert splits.class_names == ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")


def test_labels_that_a_source_does_not_tell_apart_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"data\.label='digit': these files have one kind of labels only"):
        AudioData(
            source=audio_folder,
            root=str(tmp_path),
            label="digit",
            sample_rate=8000,
            seconds=0.5,
            spectrogram=LogMel(sample_rate=8000, n_fft=256, hop_length=100, mel_bins=40),
        )


def test_an_archive_that_is_none_is_told_in_one_line(tmp_path):
    (tmp_path / "fsdd.tar.xz").write_bytes(b"noise" * 400)
    with pytest.raises(DataError, match=r"\A[^\n]*is not a complete tar archive [^\n]*\Z"):
        fsdd(root=str(tmp_path / "fsdd.tar.xz"))


def test_a_part_of_an_mp3_file_is_read_without_messages(tmp_path, capfd):
    noise = np.random.default_rng(0).standard_normal(22050 * 20).astype(np.float32) / 10
    path = write(tmp_path / "a.mp3", noise, 22050)
    whole = SoundFile(path).read()
    capfd.readouterr()
    for start in (50_000, 200_001, 321_123):
        part = SoundFile(path).read(start, 8_000)
        assert torch.corrcoef(torch.stack([part, whole[start : start + 8_000]]))[0, 1] > 0.999
    assert capfd.readouterr().err == ""
