"""The same pictures from files, from packed tars and from parquet, and clips of a video beside their decoding alone."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from benchmark_timing import ROOT

from jepa import load_config
from jepa.config.build import build_data

PICTURES = ("data.image_size=224", "data.batch_size=64", "data.num_workers=0")
FRAMES, SHOWN = 240, 16  # of a made video, and of a clip of 224 pixels


def stores(folder: str, scratch: Path) -> dict[str, Callable[[], Any]]:
    """Calls that make the next 64 samples of one view, from three kinds of storage."""
    from datasets import Dataset, Features, Image, Value

    pack = [sys.executable, str(ROOT / "scripts" / "pack.py"), "data=image_folder"]
    pack += [f"data.root={folder}", f"output={scratch / 'packed'}"]
    subprocess.run(pack, check=True, stdout=subprocess.DEVNULL)
    paths = sorted(Path(folder).rglob("*.jpg"))
    rows = {
        "image": [{"bytes": path.read_bytes(), "path": path.name} for path in paths],
        "label": [path.parent.name for path in paths],
    }
    features = Features({"image": Image(), "label": Value("string")})
    (scratch / "parquet").mkdir()
    Dataset.from_dict(rows, features=features).to_parquet(scratch / "parquet" / "train-00000.parquet")
    data = {
        "files": ("data=image_folder", f"data.root={folder}", "data.augment.horizontal_flip=0.5"),
        "packed": ("data=packed", f"data.root={scratch / 'packed'}", "data.image.augment.horizontal_flip=0.5"),
        "parquet": (
            "data=hf",
            f"data.path={scratch / 'parquet'}",
            "data.column=image",
            "data.label_column=label",
            "data.image.augment.horizontal_flip=0.5",
        ),
    }
    return {name: next_batch(*PICTURES, *overrides) for name, overrides in data.items()}


def clips(scratch: Path) -> dict[str, Callable[[], Any]]:
    """Calls that read 8 clips of a made H.264 video of 320 x 240 pixels, and that decode as many of its frames."""
    import av

    rng, root = np.random.default_rng(0), scratch / "videos"
    scene = rng.integers(0, 256, (300, 400, 3), dtype=np.uint8).repeat(2, 0).repeat(2, 1)
    root.mkdir()
    for name in ("a.mp4", "b.mp4"):
        with av.open(str(root / name), "w") as file:
            stream = file.add_stream("libx264", rate=30, options={"g": "30"})
            stream.width, stream.height, stream.pix_fmt = 320, 240, "yuv420p"
            for number in range(FRAMES):
                frame = av.VideoFrame.from_ndarray(
                    np.ascontiguousarray(scene[number : number + 240, number : number + 320])
                )
                file.mux(stream.encode(frame))
            file.mux(stream.encode(None))

    def decode() -> None:
        """As many frames as 8 clips of 16 frames, each fourth frame taken, lie in."""
        for _ in range(8):
            with av.open(str(root / "a.mp4")) as file:
                for _, frame in zip(range(4 * SHOWN), file.decode(video=0)):
                    frame.to_ndarray(format="rgb24")

    options = ("data.image_size=224", "data.batch_size=8", "data.num_workers=0", f"data.num_frames={SHOWN}")
    ours = next_batch("data=video_folder", "model=video", f"data.root={root}", *options, "data.frame_stride=4")
    return {"decoder": decode, "ours": ours}


def next_batch(*overrides: str) -> Callable[[], Any]:
    """A call that makes the next training batch of a configuration's data."""
    batches = build_data(load_config(list(overrides))).train_batches(seed=0, start_step=0, stop_step=10**6)
    return lambda: next(batches)
