"""What a source returns."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from jepa.data.stream import Samples


@dataclass(frozen=True)
class Splits:
    """Training and test samples, whose items are (input, label).

    An input is what the data class takes: of `ImageData` a PIL image or a uint8 tensor (C, H, W). class_names[label]
    names a label; None says that the data has no labels, and every label is None.
    """

    train: Samples
    test: Samples
    class_names: tuple[str, ...] | None = None


class TensorImages:
    """Images in memory, uint8 (N, C, H, W), and their labels, int64 (N,) or None.

    As all have one size, `ImageData` augments them a batch at a time.
    """

    def __init__(self, images: Tensor, labels: Tensor | None) -> None:
        self.images = images
        self.labels = labels

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> tuple[Tensor, int | None]:
        return self.images[index], None if self.labels is None else int(self.labels[index])
