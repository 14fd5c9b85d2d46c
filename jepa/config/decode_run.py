"""What `scripts/decode.py` draws: a run's checkpoint and data are opened here, decoded, and laid out as a PNG."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf
from PIL import Image
from torch import Tensor

from jepa.config.build import build
from jepa.config.open_checkpoint import open_checkpoint
from jepa.config.report_run import BATCH, Networks, decoded_samples, networks_of, show
from jepa.evaluation.features import evaluation_mode
from jepa.report.report_pictures import decoded_cells
from jepa.report.sample_media import CLIP_FRAMES, Medium
from jepa.report.state_decoder import decode_states
from jepa.trainer.precision import Precision, resolve_device
from jepa.utils.errors import UserError
from jepa.utils.files import check_output, write_atomic
from jepa.utils.pixels import pixel_statistics, to_pixels
from jepa.visualise.sheets import fitted, plot, sheet

TRAJECTORIES, STEPS = 4, 16  # that are drawn of world models; of more steps some, evenly spaced
TRAIN_WINDOWS, TEST_WINDOWS = 1000, 32
WIDTH = 232  # pixels of a sample; of clips twice as many, or more


def decode_run(config: DictConfig) -> list[Path]:
    """Decode what a checkpoint's features and predictions hold, and return the PNG files that were written.

    That is `output`; of models of several modalities one for each, with its name at the end of the stem.

    Raises UserError for a model that predicts nothing that can be drawn, and for what cannot be read or written.
    """
    output = Path(config.output)
    check_output(output, OmegaConf.select(config, "checkpoint"))
    if (name := str(OmegaConf.select(config, "checkpoint"))).startswith(("timm:", "hf:")):
        raise UserError(f"checkpoint={name} is an encoder, which predicts nothing: expected a run folder")
    loaded, joined = open_checkpoint(config, data="splits")
    for line in loaded.lines:
        print(line, flush=True)
    data, device, seed = build(joined, "data"), resolve_device(joined.trainer.device), joined.trainer.seed
    pages = {}
    if hasattr(loaded.model, "rollout"):
        with evaluation_mode(loaded.model):
            pages[output] = world_sheet(loaded.model.to(device), data, device)
    else:
        precision = Precision(joined.trainer.precision, device)
        precision.choose_attention(loaded.model)
        with precision.kernels(), precision.autocast():
            for networks in networks_of(loaded, data, build(joined, "evaluation"), device, seed):
                end = f"_{networks.modality}" if networks.modality else ""
                with evaluation_mode(networks.trained):
                    pages[output.with_stem(output.stem + end)] = masked_sheet(networks)
    pages = {path: page for path, page in pages.items() if page is not None}
    if not pages:
        raise UserError(
            f"checkpoint={loaded.source} holds a {type(loaded.model).__name__} whose predictions cannot be drawn: "
            "expected a run on images, video, sound or series whose model predicts the features of a target behind "
            "masks (model=vit, video, audio, series; no model/target=teacher), or a world model (model=world)"
        )
    for path, page in pages.items():
        write_atomic(path, lambda file, page=page: Image.fromarray(page).save(file, "PNG"))
    return list(pages)


def masked_sheet(networks: Networks) -> np.ndarray | None:
    """Return pixels (H, W, 3): samples, what is seen of them, what is predicted, and what their features hold.

    None of models that predict nothing behind masks, and of inputs that have no picture.
    """
    split, model = "test" if networks.data.spec.num_test else "train", networks.trained
    first = next(networks.batches(split, BATCH))["x"].cpu()
    medium = Medium(networks.data, model.encoder, first)
    shown = show(networks, split, []) if medium.kind is not None and hasattr(model.encoder, "grid") else None
    decoded = decoded_samples(networks, shown, medium)
    if decoded is None:
        return None
    tiles, captions = [], []
    for x, cells in zip(shown.x, decoded_cells(shown, decoded, medium.kind)):
        for caption, colours, drawn in cells:
            tiles.append(tile(medium, x, colours, drawn))
            captions.append(caption.replace("\n", ", "))
    whole, predicted = decoded.explained
    orange = "; orange: not seen" if medium.kind == "series" else ""
    head = (
        f"A small decoder, fitted to frozen features of training samples, step {networks.step:,}. Of the variance of "
        f"the input behind the mask it tells {predicted:.0%} from predictions, and {whole:.0%} from the features that "
        f"the target makes of all of it. Grey: neither seen nor predicted{orange}."
    )
    return sheet(tiles, captions, head, columns=4)


def tile(medium: Medium, x: Tensor, colours: np.ndarray | None, drawn: Tensor | None) -> Image.Image:
    """Return a picture of a sample, or of what is `drawn` in its place, under the colours (*grid, 4) of its tokens."""
    shown, share = x if drawn is None else drawn, medium.real_share(x)
    if medium.kind == "series":
        image = plot(shown.float().cpu())
    else:
        pixels = medium.frames(shown, moving=False, share=share)[0]
        width = max(2 * WIDTH, 64 * min(x.shape[1], CLIP_FRAMES)) if medium.kind == "video" else WIDTH
        ratio = 0.5 if medium.kind == "sound" else pixels.shape[0] / pixels.shape[1]
        image = fitted(pixels, (width, max(1, round(width * ratio))))
    if colours is not None:
        over = Image.fromarray(np.ascontiguousarray(medium.layout(colours)))
        over = over.resize((round(image.width / share), image.height), Image.Resampling.NEAREST)
        image.paste(over, mask=over)  # without what lies over padding
    return image


def world_sheet(model: Any, data: Any, device: torch.device) -> np.ndarray:
    """Return pixels (H, W, 3): of held-out trajectories the frames, what their states hold, and what roll-outs do.

    Raises UserError for observations that are no pictures.
    """
    if len(data.observation_shape) != 3:
        raise UserError(
            f"data: its observations are vectors of {data.observation_shape[0]} values and no pictures: expected "
            "frames (C, H, W); python scripts/evaluate.py scores what states know of vectors"
        )

    def batches(split: str, limit: int) -> Iterator[dict[str, Tensor]]:
        for batch in data.evaluation_batches(split, batch_size=BATCH, limit=limit):
            yield {name: batch[name].to(device) for name in ("x", "actions")}

    decoded = decode_states(model, batches("train", TRAIN_WINDOWS), batches("test", TEST_WINDOWS))
    horizon = decoded.frames.shape[1]
    steps = np.linspace(0, horizon - 1, min(horizon, STEPS)).round().astype(int).tolist()
    rows = {"frame": decoded.frames, "its state": decoded.own, "roll-out": decoded.rolled_out}
    drawn = torch.stack([each[:TRAJECTORIES, steps] for each in rows.values()], dim=1)  # (n, 3, k, C, H, W)
    low, high = (end(drawn[:, :1], dim=(0, 1, 2, 4, 5)).view(-1, 1, 1) for end in (torch.amin, torch.amax))
    drawn, statistics, said = drawn.clamp(low, high), pixel_statistics(data), "What is faint is in doubt."
    if drawn.shape[3] not in (1, 3):  # false colours: what is faint, as it is in doubt, shall be seen
        drawn, statistics = ((drawn - low) / (high - low).clamp(min=1e-6)).sqrt(), None
        said = "Brightness goes with the square root, so that one sees what is faint, as it is in doubt."
    pixels = to_pixels(drawn.flatten(0, 2), statistics)
    captions = [f"{name}, step {step + 1}" for _ in drawn for name in rows for step in steps]
    first, last = ([each[place] for each in (decoded.explained, decoded.explained_rolled_out)] for place in (0, -1))
    head = (
        "Held-out trajectories, three rows each: frames; what a small decoder, fitted to states of training frames, "
        "makes of the state of each; and of states that are rolled out from what comes before step 1, under the true "
        f"actions. Of the variance of the frames it tells {first[0]:.0%} from their own states and {first[1]:.0%} from "
        f"roll-outs at step 1, {last[0]:.0%} and {last[1]:.0%} at step {horizon}. {said}"
    )
    return sheet([fitted(each) for each in pixels], captions, head, columns=len(steps))
