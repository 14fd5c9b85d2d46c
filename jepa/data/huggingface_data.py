"""Any data set of the `datasets` library as the data of its column's kind.

python train.py model=text data=hf data.path=stanfordnlp/sst2 data.column=sentence data.label_column=label
python train.py data=hf data.path=photos.parquet data.column=image data.label_column=label
python train.py model=audio data=hf data.path=sounds.parquet data.column=audio data.label_column=label
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from jepa.data.data_module import DataModule
from jepa.data.sources.huggingface_rows import open_rows
from jepa.utils.errors import DataError
from jepa.utils.log_mel import LogMel


def hugging_face(
    *,
    path: str,
    column: str,
    label_column: str | None = None,
    name: str | None = None,
    train_split: str | None = None,
    test_split: str | None = None,
    test_fraction: float = 0.1,
    split_seed: int = 0,
    text: Callable[..., DataModule] | None = None,
    image: Callable[..., DataModule] | None = None,
    audio: Callable[..., DataModule] | None = None,
    vocab_size: int | None = 4096,
    max_length: int = 64,
    image_size: int | Sequence[int] = 224,
    channels: int = 3,
    sample_rate: int = 16000,
    seconds: float = 4.0,
    spectrogram: LogMel | None = None,
    views: int = 1,
    batch_size: int = 256,
    num_workers: int = 0,
    pin_memory: bool | Literal["auto"] = "auto",
    prefetch_factor: int = 2,
    max_bad_share: float = 0.1,
    hints: Mapping[str, Any] | None = None,
) -> DataModule:
    """Data of a column of strings, an Image column or an Audio column; the first eight arguments: see `open_rows`.

    text, image, audio: make the data of a column of that kind, called with `source=`, the arguments from views on, and
        those of their own: vocab_size and max_length of text, image_size and channels of pictures, sample_rate, seconds
        and spectrogram of sound. None: such columns are refused.

    Raises DataError for what is missing or damaged, and a column of no kind that can be read.
    """
    loader = DataModule(
        views=views,
        batch_size=batch_size,
        num_workers=num_workers,
        pin_memory=pin_memory,
        prefetch_factor=prefetch_factor,
        max_bad_share=max_bad_share,
        hints=hints,
    )  # which are checked before anything is read
    kind, splits = open_rows(
        path, column, label_column, name, train_split, test_split, test_fraction=test_fraction, split_seed=split_seed
    )
    make = {"text": text, "image": image, "audio": audio}[kind]
    if make is None:
        raise DataError(f"data.column={column} holds {kind}, but data.{kind}=null: set there how to read it")
    own = {
        "text": {"vocab_size": vocab_size, "max_length": max_length},
        "image": {"image_size": image_size, "channels": channels},
        "audio": {"sample_rate": sample_rate, "seconds": seconds, "spectrogram": spectrogram},
    }[kind]
    return make(source=lambda: splits, **own, **vars(loader))
