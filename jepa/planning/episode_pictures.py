"""Episodes to look at: a GIF of agents, and their plans and costs over the room.

Of worlds whose states begin with a place (x, y) in pixels of the observation, which shows the agent and the walls.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from fractions import Fraction
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from jepa.planning.episodes import Episodes, World
from jepa.planning.policies import Planned
from jepa.utils.errors import UserError
from jepa.utils.lazy_import import lazy_import

av = lazy_import("av")
SCALE = 4  # pixels of a picture for one of an observation
HEAD, GAP = 16, 6
WALL, PATH, PLAN, GOAL = (73, 80, 87), (28, 126, 214), (232, 89, 12), (47, 158, 68)
AFTER = 10  # steps that are shown after all have arrived
MILLISECONDS = 80  # of a frame


def check_drawable(world: World, key: str) -> None:
    """Raise UserError for a world that cannot be drawn. key: of the number of pictures, which 0 turns off."""
    shape = tuple(world.reset(world.start).shape[1:])
    if not (hasattr(world, "places") and len(shape) == 3 and shape[0] == 2):
        raise UserError(
            f"{key}: pictures take a world with `places` whose observations show agent and walls, (2, H, W), and these "
            f"are {shape}: set {key}=0"
        )


def imagined(view: Any, world: World, policy: Planned) -> dict[int, dict[int, np.ndarray]]:
    """Return step -> episode -> places (H, 2) whose states are the closest to those that the model predicts."""
    found: dict[int, dict[int, np.ndarray]] = {}
    known = {}
    for step, plans in policy.trace.items():
        for row, (_, predicted) in plans.items():
            if row not in known:
                known[row] = world.places(row).flatten(0, 1), view.landscape(world, row)[1].flatten(0, 1)
            places, states = known[row]
            found.setdefault(step, {})[row] = places[torch.cdist(predicted, states).argmin(dim=1)].numpy()
    return found


def frames(
    episodes: Episodes, goal: Tensor, near: float, plans: dict[int, dict[int, np.ndarray]], every: int = 2
) -> list[Image.Image]:
    """Return pictures of the episodes whose observations were kept, side by side, at every so many steps.

    goal: (n, 2). near: distance at which an agent has arrived. plans: what `imagined` returns, drawn until the next.
    """
    kept = len(episodes.observations[0])
    arrived = [int(row.nonzero()[0]) if row.any() else len(row) for row in episodes.distances[:kept] < near]
    last = min(len(episodes.observations), max(arrived) + 1 + AFTER)
    pictures, shown = [], {}
    for step in range(last):
        shown |= plans.get(step, {})
        if step % every and step != last - 1:
            continue
        tiles = [_tile(episodes, goal, near, row, step, shown.get(row)) for row in range(kept)]
        width, height = tiles[0].size
        page = Image.new("RGB", (kept * (width + GAP) - GAP, height), "white")
        for row, tile in enumerate(tiles):
            page.paste(tile, (row * (width + GAP), 0))
        pictures.append(page)
    return pictures


def _tile(episodes: Episodes, goal: Tensor, near: float, row: int, step: int, plan: np.ndarray | None) -> Image.Image:
    """Return the room of one episode at a step: path in blue, what is planned in orange, green where it has arrived."""
    agent, walls = episodes.observations[step][row].float() / 255
    colours = 255 - walls[..., None] * (255 - torch.tensor(WALL).float())
    colours = colours * (1 - agent[..., None]) + torch.tensor(PATH).float() * agent[..., None]
    pixels = colours.round().byte().numpy()
    room = Image.fromarray(pixels).resize((pixels.shape[1] * SCALE, pixels.shape[0] * SCALE), Image.Resampling.NEAREST)
    draw = ImageDraw.Draw(room)
    path = _on_picture(episodes.states[row, : step + 1, :2].numpy())
    if len(path) > 1:
        draw.line([tuple(point) for point in path], fill=PATH, width=2)
    for x, y in () if plan is None else _on_picture(plan):
        draw.ellipse((x - 2, y - 2, x + 2, y + 2), fill=PLAN)
    (x, y), ring = _on_picture(goal[row, None, :2].numpy())[0], near * SCALE
    draw.ellipse((x - ring, y - ring, x + ring, y + ring), outline=GOAL, width=3)
    tile = Image.new("RGB", (room.width, room.height + HEAD), "white")
    tile.paste(room, (0, HEAD))
    said = f"step {step}" + (", at the goal" if step and episodes.distances[row, step - 1] < near else "")
    ImageDraw.Draw(tile).text((2, 2), said, fill="black", font=ImageFont.load_default())
    return tile


def _on_picture(places: np.ndarray) -> np.ndarray:
    return (places + 0.5) * SCALE


def gif(pictures: Sequence[Image.Image]) -> bytes:
    """Return pictures as a GIF that goes round, the last one standing for a second."""
    duration, buffer = [MILLISECONDS] * (len(pictures) - 1) + [1000], io.BytesIO()
    pictures[0].save(
        buffer, "GIF", save_all=True, append_images=list(pictures[1:]), duration=duration, loop=0, optimize=True
    )
    return buffer.getvalue()


def mp4(pictures: Sequence[Image.Image]) -> bytes:
    """Return pictures as an MP4 at the pace of the GIF, the last one standing for a second. It takes PyAV."""
    buffer, (width, height) = io.BytesIO(), pictures[0].size
    with av.open(buffer, "w", format="mp4") as file:
        codec = "libx264" if "libx264" in av.codecs_available else "mpeg4"
        stream = file.add_stream(codec, rate=Fraction(1000, MILLISECONDS))
        stream.width, stream.height, stream.pix_fmt = width - width % 2, height - height % 2, "yuv420p"  # which halves
        for picture in (*pictures, *pictures[-1:] * (1000 // MILLISECONDS - 1)):
            frame = av.VideoFrame.from_image(picture.crop((0, 0, stream.width, stream.height)))
            file.mux(stream.encode(frame))
        file.mux(stream.encode())
    return buffer.getvalue()


def plans_and_costs(
    view: Any, world: World, episodes: Episodes, policy: Planned, plans: dict[int, dict[int, np.ndarray]]
) -> bytes:
    """Return a PNG: of each kept episode the first plan over the room, and what it costs to be at each place.

    The costs are the model's distance to the goal, beside the length of the way there.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    kept = len(episodes.observations[0])
    figure = Figure(figsize=(10, 3.4 * kept + 0.6), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots(kept, 3, squeeze=False, sharex=True, sharey=True)
    for row in range(kept):
        _draw_plan(axes[row, 0], world, episodes, policy, plans, row)
        places = world.places(row)
        flat = places.flatten(0, 1)
        way = world.way(flat, torch.full((len(flat),), row)).view(places.shape[:2])
        titles = ("model: cost of being at a place", "truth: length of the way to the goal, px")
        for axis, costs, title in zip(axes[row, 1:], (view.landscape(world, row)[0], way), titles):
            drawn = axis.contourf(places[..., 0], places[..., 1], costs, levels=16, cmap="viridis")
            figure.colorbar(drawn, ax=axis, shrink=0.8)
            _draw_room(axis, world, row)
            axis.set_title(title, fontsize=9)
    for axis in axes[-1]:
        axis.set_xlabel("x, px")
    for axis in axes[:, 0]:
        axis.set_ylabel("y, px")
    figure.legend(*axes[0, 0].get_legend_handles_labels(), loc="outside lower left", ncols=3, fontsize=8)
    figure.suptitle(
        "Where the model believes its first plan leads, and how far from the goal (green) it believes places to be",
        fontsize=10,
    )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _draw_plan(axis: Any, world: World, episodes: Episodes, policy: Planned, plans: Any, row: int) -> None:
    """Draw the first plan of an episode: as the model imagines it, where it leads, and the path of the episode."""
    _draw_room(axis, world, row)
    x, y = episodes.states[row, :, :2].T
    axis.plot(x, y, color="#1c7ed6", label="path taken")
    state, places = world.start[row, None], [world.start[row]]
    for action in policy.trace[0][row][0].unflatten(-1, (-1, len(world.low))).flatten(0, 1):
        state = world.move(state, action[None], torch.tensor([row]))
        places.append(state[0])
    axis.plot(*torch.stack(places)[:, :2].T, color="#868e96", linestyle="--", label="first plan, really")
    axis.plot(*plans[0][row].T, "o", color="#e8590c", markersize=3, label="first plan, as imagined")
    axis.plot(*world.start[row, :2], "s", color="#1c7ed6", markersize=7)
    state = "solved" if bool(episodes.solved[row]) else "not solved"
    axis.set_title(f"episode {row}: {state}", fontsize=9)


def _draw_room(axis: Any, world: World, row: int) -> None:
    """Draw the walls of an episode's room and its goal."""
    walls = world.observed(world.goal[row, None], torch.tensor([row]))[0, 1].float().numpy()
    axis.imshow(np.ma.masked_less(walls, 128), cmap="gray", vmin=0, vmax=510, interpolation="nearest", zorder=3)
    axis.plot(*world.goal[row, :2], "o", color="#2f9e44", markersize=9, markeredgecolor="white", zorder=4)
    axis.set(aspect="equal", xlim=(-0.5, walls.shape[1] - 0.5), ylim=(walls.shape[0] - 0.5, -0.5))  # y goes down
