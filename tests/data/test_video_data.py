"""Clips from files, folders of frames and lists; what is short, damaged or without pictures."""

from __future__ import annotations

import shutil
import wave
from fractions import Fraction

import av
import numpy as np
import pytest
import torch
from PIL import Image

from jepa.data import Augment
from jepa.data.sources import Splits, moving_mnist, video_folder
from jepa.data.sources.decoders import FrameFolder, TensorVideo, VideoFile
from jepa.data.stream import UnreadableSample
from jepa.data.video_data import VideoData
from jepa.utils.errors import DataError

GREYS = {"mean": [0.0], "std": [1.0]}


def write_video(path, frames=20, side=32, rate=10, codec="mpeg4", sound=False):
    """A video whose frame i has the grey value 10 * i."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=rate)
        stream.width = stream.height = side
        stream.pix_fmt = "yuv420p"
        stream.codec_context.gop_size = 6
        stream.bit_rate = 2_000_000
        for number in range(frames):
            pixels = np.full((side, side, 3), 10 * number, dtype=np.uint8)
            for packet in stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")):
                container.mux(packet)
        for packet in stream.encode():
            container.mux(packet)
    return path


def write_frames(folder, frames=6, side=16):
    """A folder of frames, numbered without leading zeros, whose frame i has the grey value 10 * i."""
    folder.mkdir(parents=True)
    for number in range(frames):
        Image.new("RGB", (side, side), (10 * number,) * 3).save(folder / f"f{number}.png")
    return folder


def write_sound(path):
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("aac", rate=8000)
        frame = av.AudioFrame.from_ndarray(np.zeros((1, 8000), dtype=np.float32), format="fltp", layout="mono")
        frame.sample_rate = 8000
        frame.time_base = Fraction(1, 8000)
        for packet in [*stream.encode(frame), *stream.encode()]:
            container.mux(packet)
    return path


def greys(frames):
    return frames.float().mean(dim=(1, 2, 3)).div(10).round().long().tolist()


@pytest.mark.parametrize("name", ["a.mp4", "a.avi", "a.mkv", "a.mov"])
@pytest.mark.parametrize("wanted", [[0, 1, 2], [7, 9, 11], [13, 13, 19], [19, 19, 19]])
def test_the_frames_asked_for_are_decoded(tmp_path, name, wanted):
    video = VideoFile(str(write_video(tmp_path / name)))
    seen = []
    frames = video.read(lambda count, rate: seen.append((count, rate)) or wanted)
    assert frames.shape == (3, 3, 32, 32)
    assert frames.dtype == torch.uint8
    assert greys(frames) == wanted
    assert seen[0][0] in (20, 21)  # containers without a count give a duration
    assert seen[0][1] == pytest.approx(10, rel=0.05)


def test_real_files(shared_dir, tmp_path):
    import tarfile

    with tarfile.open(shared_dir / "fight_frames.tar.gz") as archive:
        members = [m for m in archive.getmembers() if m.name.endswith(("fi034.mp4", "nofi005.mp4"))]
        archive.extractall(tmp_path, members, filter="data")
    for path in sorted(tmp_path.rglob("*.mp4")):
        count = {}
        frames = VideoFile(str(path)).read(lambda n, rate, count=count: count.update(n=n) or [0, n // 2, n - 1])
        assert frames.shape[0] == 3
        with av.open(str(path)) as container:
            every = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
        assert count["n"] == len(every)
        expected = torch.from_numpy(np.stack([every[0], every[len(every) // 2], every[-1]])).permute(0, 3, 1, 2)
        assert torch.equal(frames, expected)


def test_folders_of_frames_in_the_order_of_their_numbers(tmp_path):
    folder = write_frames(tmp_path / "clip", frames=12)
    assert greys(FrameFolder(str(folder)).read(lambda count, rate: [0, 2, 10, 11])) == [0, 2, 10, 11]
    (folder / "f2.png").write_bytes(b"no picture")
    with pytest.raises(UnreadableSample, match=r"f2\.png"):
        FrameFolder(str(folder)).read(lambda count, rate: [2])


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [("MOST_FRAME_PIXELS", 255, "have 256 pixels"), ("MOST_CLIP_BYTES", 3 * 3 * 256, "a clip of 4 frames of it takes")],
)
def test_frames_and_clips_are_bounded(tmp_path, monkeypatch, name, value, reason):
    videos = FrameFolder(str(write_frames(tmp_path / "clip"))), VideoFile(str(write_video(tmp_path / "a.mp4", side=16)))
    for video in videos:
        assert len(video.read(lambda count, rate: [0, 1, 2, 3])) == 4
    monkeypatch.setattr(f"jepa.data.sources.decoders.{name}", value)
    for video in videos:
        with pytest.raises(UnreadableSample, match=reason):
            video.read(lambda count, rate: [0, 1, 2, 3])


def test_what_cannot_be_read_says_why(tmp_path):
    whole = write_video(tmp_path / "a.mp4").read_bytes()
    cases = {"empty.mp4": b"", "cut.mp4": whole[: len(whole) // 2], "text.mp4": b"these are words" * 100}
    reasons = {"empty.mp4": ["the file is empty"], "text.mp4": ["Invalid data"]}
    reasons["cut.mp4"] = ["Invalid data", "no pictures, only data"]  # as what FFmpeg takes the rest for
    for name, content in cases.items():
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UnreadableSample) as error:
            VideoFile(str(tmp_path / name)).read(lambda count, rate: [0])
        assert any(reason in error.value.reason for reason in reasons[name])
    with pytest.raises(UnreadableSample, match="it has no pictures, only audio"):
        VideoFile(str(write_sound(tmp_path / "sound.mp4"))).read(lambda count, rate: [0])
    with wave.open(str(tmp_path / "sound.avi"), "wb") as file:  # a sound file by a video's name
        file.setparams((1, 2, 8000, 0, "NONE", ""))
        file.writeframes(bytes(16000))
    with pytest.raises(UnreadableSample, match="only audio"):
        VideoFile(str(tmp_path / "sound.avi")).read(lambda count, rate: [0])
    with pytest.raises(UnreadableSample, match="No such file"):
        VideoFile(str(tmp_path / "absent.mp4")).read(lambda count, rate: [0])


def choose(count, rate=None, part=0, random=None, loop=False, **changes):
    settings = {"num_frames": 4, "frame_stride": 2, "image_size": 4, **GREYS, **changes}
    data = VideoData(source=lambda: Splits(train=[0], test=[0]), short_videos="loop" if loop else "repeat", **settings)
    return data.choose_frames(count, rate, part=part, random=random)


def test_which_frames_make_a_clip():
    assert choose(16) == [5, 7, 9, 11]  # from the middle: 9 places to start from, 0 to 9
    assert choose(7) == [0, 2, 4, 6]
    assert choose(5) == [0, 2, 4, 4]  # goes on with the last frame
    assert choose(5, loop=True) == [0, 2, 4, 1]
    assert choose(1) == [0, 0, 0, 0]
    assert choose(100, rate=30.0, fps=10.0, num_frames=3) == [47, 50, 53]
    assert choose(40, clips=2, part=0) == [7, 9, 11, 13]
    assert choose(40, clips=2, part=1) == [27, 29, 31, 33]
    random = torch.Generator().manual_seed(0)
    starts = {choose(16, random=random)[0] for _ in range(200)}
    assert starts == set(range(10))
    assert {choose(16, random=random, temporal_jitter=False)[0] for _ in range(9)} == {5}
    with pytest.raises(DataError, match=r"folders of frames do not: use data\.frame_stride"):
        choose(16, fps=4.0)


def tree(root, kind=write_frames, splits=("train", "test"), count=3):
    suffix = "" if kind is write_frames else ".mp4"
    for split in splits:
        for name in ("run", "walk"):
            for number in range(count):
                kind(root / split / name / f"{split}{number}{suffix}")
    return root


def video_data(root, source=video_folder, **changes):
    settings = {"image_size": 16, "num_frames": 4, "frame_stride": 1, "batch_size": 4, **GREYS}
    return VideoData(source=source, root=str(root), **{**settings, **changes})


@pytest.mark.parametrize("kind", [write_frames, write_video])
def test_class_folders(tmp_path, kind):
    data = video_data(tree(tmp_path, kind))
    assert (data.spec.num_train, data.spec.num_test, data.spec.class_names) == (6, 6, ("run", "walk"))
    assert data.spec.input_shape == (3, 4, 16, 16)
    (batch,) = data.train_batches(seed=0, start_step=0, stop_step=1)
    assert batch["x"].shape == (4, 3, 4, 16, 16)
    assert batch["x"].dtype == torch.float32
    test = next(data.evaluation_batches("test", batch_size=6))
    assert test["label"].tolist() == [0, 0, 0, 1, 1, 1]
    with_val = tmp_path / "test"
    with_val.rename(tmp_path / "val")
    assert video_data(tmp_path).spec.num_test == 6
    shutil.rmtree(tmp_path / "val")
    held_out = video_data(tmp_path)
    assert (held_out.spec.num_train, held_out.spec.num_test) == (4, 2)


def test_without_classes(tmp_path):
    for number in range(4):
        write_frames(tmp_path / f"clip{number}")
    data = video_data(tmp_path)
    assert data.spec.classes is None
    assert data.spec.num_train + data.spec.num_test == 4
    assert "label" not in next(data.evaluation_batches("test", batch_size=1))


@pytest.mark.faults
def test_lists_may_not_leave_the_folder(tmp_path):
    root = tmp_path / "data"
    for number in range(4):
        write_frames(root / f"in{number}", frames=2)
    write_frames(tmp_path / "out", frames=2)
    (root / "link").symlink_to(tmp_path / "out")
    (tmp_path / "same").symlink_to(root)
    inside = ["in0", "./in1", f"{root}/in2", "in0/../in3"]
    list_ = root / "list.csv"
    list_.write_text("\n".join(f"{path} {number % 2}" for number, path in enumerate(inside)))
    for place in (root, tmp_path / "same", None):
        data = VideoData(
            source=video_folder, root=place and str(place), csv=str(list_), image_size=8, num_frames=2, **GREYS
        )
        assert len(next(data.evaluation_batches("train", batch_size=9))["x"]) == data.spec.num_train
    for path in ("../out", f"{tmp_path}/out", "link", "in0/../../out", "link/../in3", "..", "a\0b"):
        for header, where in (("", 3), ("path,label\n", 4)):
            apart = "," if header else " "
            list_.write_text(
                header + "".join(f"{each}{apart}{n % 2}\n" for n, each in enumerate([*inside[:2], path, "in3"]))
            )
            with pytest.raises(DataError, match=f"line {where}: .*data.allow_outside=true"):
                video_data(root, csv=str(list_))
            if "\0" not in path:
                assert video_data(root, csv=str(list_), allow_outside=True).spec.num_train
    with pytest.raises(ValueError, match=r"data\.csv, which is not set"):
        video_data(root, allow_outside=True)
    for content in (b"\xff\xfe\x00", b"a,b\n" + b'"x' * 200_000):
        list_.write_bytes(content)
        with pytest.raises(DataError, match=r"list.csv is no list that can be read"):
            video_data(root, csv=str(list_))


def test_folders_that_do_not_fit(tmp_path):
    with pytest.raises(DataError, match=r"holds no videos \(\.mp4"):
        video_data(tmp_path)
    with pytest.raises(DataError, match=r"data\.root is not set"):
        video_folder()
    with pytest.raises(DataError, match="is not a folder"):
        video_data(tmp_path / "absent")
    tree(tmp_path, splits=("train",))
    write_frames(tmp_path / "train" / "loose")
    with pytest.raises(DataError, match=r"holds 1 videos \(loose\) beside the folders run, walk"):
        video_data(tmp_path)
    shutil.rmtree(tmp_path / "train" / "loose")
    (tmp_path / "train" / "sit").mkdir()
    with pytest.raises(DataError, match="no videos in the class folders sit"):
        video_data(tmp_path)
    shutil.rmtree(tmp_path / "train" / "sit")
    write_frames(tmp_path / "test" / "swim" / "a")
    with pytest.raises(DataError, match="the classes swim of the test split are not in train, which has run, walk"):
        video_data(tmp_path)


@pytest.mark.faults
def test_bad_videos_give_way_to_the_next(tmp_path):
    tree(tmp_path, write_video, count=4)
    write_sound(tmp_path / "train" / "run" / "sound.mp4")
    data = video_data(tmp_path, max_bad_share=0.2)
    for batch in data.train_batches(seed=0, start_step=0, stop_step=3):
        assert batch["x"].shape == (4, 3, 4, 16, 16)
    assert list(data.bad_samples.values()) == ["it has no pictures, only audio"]
    with pytest.raises(DataError, match="1 of 9 samples"):
        list(video_data(tmp_path, max_bad_share=0.0).train_batches(seed=0, start_step=0, stop_step=3))


def test_all_frames_are_changed_alike():
    pixels = torch.randint(0, 256, (1, 3, 20, 24), dtype=torch.uint8).expand(6, -1, -1, -1)
    augment = Augment(crop_scale=(0.3, 0.6), horizontal_flip=0.5, color_jitter=0.5, blur=0.5, rotation=10.0)

    class Still:
        def __len__(self):
            return 8

        def __getitem__(self, index):
            return TensorVideo(pixels), 0

    data = video_data(".", source=lambda root: Splits(Still(), Still(), ("a",)), augment=augment, views=2)
    (batch,) = data.train_batches(seed=0, start_step=0, stop_step=1)
    views = batch["views"]  # (B, V, C, T, H, W)
    assert views.shape == (4, 2, 3, 4, 16, 16)
    assert torch.allclose(views, views[:, :, :, :1].expand_as(views), atol=1e-5)
    assert not torch.allclose(views[:, 0], views[:, 1])


def test_several_clips_of_a_video_are_samples(tmp_path):
    tree(tmp_path, count=2)
    data = video_data(tmp_path, clips=3, num_frames=2)
    assert (data.spec.num_train, data.spec.num_test) == (12, 12)
    x = next(data.evaluation_batches("test", batch_size=3))["x"]  # the first video: 6 frames in 3 parts
    assert (x[:, 0, :, 0, 0] * 25.5).round().long().tolist() == [[0, 1], [2, 3], [4, 5]]


def test_the_stream_does_not_depend_on_workers(tmp_path):
    tree(tmp_path)
    augment = Augment(horizontal_flip=0.5)
    alone, helped = (video_data(tmp_path, num_workers=n, augment=augment, num_frames=2) for n in (0, 2))
    batches = [list(d.train_batches(seed=1, start_step=2, stop_step=4)) for d in (alone, helped)]
    assert all(torch.equal(a["x"], b["x"]) for a, b in zip(*batches))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"num_frames": 0}, "data.num_frames must be at least 1, got 0"),
        ({"fps": 0.0}, "data.fps=0.0 must be positive"),
        ({"short_videos": "skip"}, "data.short_videos=skip: expected one of repeat, loop"),
        ({"channels": 2}, "data.channels=2: expected one of 1, 3"),
        ({"image_size": 0}, "data.image_size=0 is neither a side"),
    ],
)
def test_wrong_settings(tmp_path, changes, message):
    with pytest.raises(ValueError, match=message):
        video_data(tmp_path, **changes)


def test_moving_mnist(shared_dir):
    root = str(shared_dir / "mnist")
    splits = moving_mnist(root=root, train_clips=30, test_clips=5, length=12, others_brightness=0.5)
    assert (len(splits.train), len(splits.test), len(splits.class_names)) == (30, 5, 10)
    video, label = splits.train[7]
    again, _ = moving_mnist(root=root, train_clips=50, test_clips=5, length=12).train[7]
    assert torch.equal(video.frames, again.frames)
    assert video.frames.shape == (12, 1, 64, 64)
    assert not torch.equal(video.frames[0], video.frames[5])
    assert not torch.equal(splits.test[0][0].frames, splits.train[0][0].frames)
    assert not torch.equal(moving_mnist(root=root, length=12, seed=1).train[7][0].frames, video.frames)
    one = moving_mnist(root=root, digits=1, length=12)
    pixels, index = one.train[3][0].frames, one.train[3][1]
    assert 0 <= index <= 9
    assert len({int(frame.sum()) for frame in pixels}) == 1  # a whole digit in every frame
    assert 0 <= label <= 9
    with pytest.raises(ValueError, match="smaller than a digit"):
        moving_mnist(root=root, canvas=20)


def test_small_crops_of_a_clip_come_beside_its_views_and_leave_them_as_they_were():
    ramp = torch.arange(20.0)[:, None, None, None] + torch.zeros(20, 1, 16, 16)
    clips = [(TensorVideo(ramp.to(torch.uint8)), 0)] * 4
    crops = {"local_views": 3, "local_size": 4, "local_augment": Augment(crop_scale=(0.1, 0.4))}
    batches = []
    for settings in ({"views": 2}, {"views": 2, **crops}, crops):
        data = VideoData(
            source=lambda: Splits(train=clips, test=clips, class_names=("one",)),
            **{"image_size": 8, "channels": 1, "num_frames": 4, "frame_stride": 1, **GREYS},
            **{"augment": Augment(crop_scale=(0.5, 1.0)), "batch_size": 4, **settings},
        )
        batches.append(next(data.train_batches(seed=0, start_step=0, stop_step=1)))
    plain, both, local = batches
    assert torch.equal(plain["views"], both["views"])
    assert torch.equal(local["views"], plain["views"][:, :1])
    assert both["local_views"].shape == data.blank_batch(4)["local_views"].shape == (4, 3, 1, 4, 4, 4)
    # Each frame is of one grey value: the crops show the frames of the first view.
    assert torch.allclose(both["local_views"].mean(dim=(2, 4, 5)), both["views"][:, :1].mean(dim=(2, 4, 5)), atol=1e-5)
    assert len(both["views"].mean(dim=(2, 4, 5))[:, :, 0].unique()) > 1
    assert "local_views" not in next(iter(data.view_batches("train", views=2, batch_size=4)))
    with pytest.raises(ValueError, match=r"data.local_views=3 needs data.local_size"):
        VideoData(source=None, image_size=8, num_frames=4, **GREYS, **{**crops, "local_size": None})
