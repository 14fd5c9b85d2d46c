"""Any checkpoint as a model whose features can be looked at: ours, published, bare, named, or none at all.

    source = find_source("outputs/.../")            # what it is, and the configuration it may hold
    opened = source.open(build=build_model_of, given={}, image_size=(8, 8), channels=1)
    opened.model.encode_target(x)                   # (B, N, D)

Whatever was detected, adapted or left alone is told in `lines`; what does not fit is refused.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from torch import nn

from jepa.checkpoint.load import load_state, locate
from jepa.config.stored import flatten
from jepa.interop.bare import check_given, open_exported, open_vit
from jepa.interop.layouts import CARD, Layout, read_layout
from jepa.interop.named import open_hugging_face, open_timm
from jepa.interop.networks import FrozenNetworks
from jepa.interop.opened import Kind, Opened, check_trust, collapse_of, foreign_code
from jepa.interop.published import image_size_of, load_published_weights, published_config
from jepa.interop.video import clip_of, is_video, open_video, told_of_video, video_config
from jepa.utils.errors import CheckpointError, UserError


@dataclass
class Source:
    """What a checkpoint is, before a model is made of it.

    config: the configuration it holds (model, loss, data, ...); None where it holds none.
    """

    name: str
    kind: Kind
    path: Path | None = None
    layout: Layout | None = None
    config: dict[str, Any] | None = None

    def open(
        self,
        *,
        build: Callable[[], nn.Module] | None = None,
        given: Mapping[str, Any] | None = None,
        image_size: tuple[int, int] | None = None,
        channels: int | None = None,
    ) -> Opened:
        """The model with its weights.

        build: makes the model, for `random`, and for runs where it is not that of the stored configuration.
        given: what the command line says of the model (`jepa.config.stored.given_model`).
        image_size, channels: of the pictures that it will see; None, where there are none yet, takes its own.

        Raises CheckpointError that lists what does not fit, UserError for what is missing or contradicts the file.
        """
        given = given or {}
        if build is None:
            build = self._build_stored
        if self.kind in ("timm", "hf"):
            opened = self._named(given, image_size, channels)
        elif self.kind == "random":
            opened = Opened(self.name, "random", build(), build, ["random weights"], {"random": True})
            opened.channels, opened.image_size = channels, image_size
        else:
            opened = {"run": self._run, "published": self._published, "encoder": self._encoder}[self.kind](
                given, image_size, **({"build": build} if self.kind == "run" else {})
            )
        opened.model.eval()
        if channels is not None and opened.channels not in (None, channels):
            raise UserError(
                f"data.channels={channels}, but {self.name} takes {opened.channels}: add "
                f"data.channels={opened.channels}" + (" (grey pictures are repeated)" if opened.channels == 3 else "")
            )
        own = opened.image_size
        if image_size is not None and own not in (None, image_size) and self.kind in ("run", "published", "encoder"):
            opened.lines.append(f"made for pictures of {_by(own)} pixels, used on {_by(image_size)}")
        return opened

    def _build_stored(self) -> nn.Module:
        if self.config is None or "model" not in self.config:
            raise UserError(f"checkpoint={self.name} needs the configuration of a model")
        loss = instantiate(self.config["loss"], _convert_="all")
        return instantiate(self.config["model"], _partial_=True, _convert_="all")(loss=loss)

    def _run(self, given: Mapping[str, Any], image_size: Any, build: Callable[[], nn.Module]) -> Opened:
        content = self.layout.content
        stored = content["config"]["model"]
        flat = flatten(stored)
        for key, value in given.items():
            if flat.get(key) != value:
                raise UserError(
                    f"model.{key}={value}, but the model of {self.path} has {flat.get(key, 'no such value')}: its "
                    "configuration is stored with its weights; leave it out"
                )
        model = build()
        load_state(model, content["model"], self.path)
        lines = [f"checkpoint of this project at step {content.get('step')}: {stored.get('_target_')}"]
        if foreign := foreign_code(content["config"]):
            lines.append(f"built with code from outside this repository: {', '.join(foreign)}")
        data, encoder = content["config"].get("data", {}), stored.get("encoder")
        return Opened(
            self.name,
            "run",
            model,
            build,
            lines,
            {"model": stored},
            encoder=encoder if _is_ours(encoder) else None,
            image_size=_pair(data.get("image_size")),
            channels=data.get("channels"),
            step=content.get("step"),
            metrics=dict(content.get("metrics") or {}),
            data=data or None,
            stopped=content.get("ended"),
            collapse=collapse_of(content),
        )

    def _published(self, given: Mapping[str, Any], image_size: Any) -> Opened:
        if is_video(self.layout.parts["encoder"]):
            return self._published_video(given)
        parts, known = self.layout.parts, {"encoder.image_size", "encoder.name"}
        config = published_config(parts, given, self.path)
        used = {f"{part}.{name}" for part in ("encoder", "predictor") for name in config[part]} | known
        _refuse_unknown(given, used, self.path)
        own = _pair(image_size_of(parts["encoder"], self.path))
        model = instantiate(config, _convert_="all")
        load_published_weights(model, parts, self.path)
        encoder = config["encoder"]
        lines = [
            *self.layout.lines,
            f"I-JEPA of width {encoder['embed_dim']}, depth {encoder['depth']}, {encoder['num_heads']} heads (as "
            f"given), patches of {encoder['patch_size']} pixels; its position table is of pictures of {_by(own)}",
        ]
        if given.get("predictor.num_heads") is None:
            lines.append(f"predictor with {encoder['num_heads']} heads, those of the encoder, as published")
        return Opened(
            self.name,
            "published",
            model,
            lambda: instantiate(config, _convert_="all").eval(),
            lines,
            {"model": config},
            encoder=encoder,
            image_size=own,
            channels=encoder["channels"],
        )

    def _published_video(self, given: Mapping[str, Any]) -> Opened:
        parts = self.layout.parts
        config = video_config(parts, given, self.path, self.layout.target_name)
        _refuse_unknown(given, {*flatten({k: config[k] for k in ("encoder", "predictor")})}, self.path)
        model = instantiate(config, _convert_="all")
        load_published_weights(model, parts, self.path)
        encoder, clip = config["encoder"], clip_of(parts["encoder"], self.path)
        lines = [*self.layout.lines, told_of_video(config, clip)]
        if given.get("predictor.num_heads") is None:
            lines.append(f"predictor with {encoder['num_heads']} heads, those of the encoder; V-JEPA 2 has 12")
        return Opened(
            self.name,
            "published",
            model,
            lambda: instantiate(config, _convert_="all").eval(),
            lines,
            {"model": config},
            encoder=encoder,
            image_size=None if clip is None else (clip[1], clip[1]),
            channels=encoder["stem"]["channels"],
        )

    def _encoder(self, given: Mapping[str, Any], image_size: tuple[int, int] | None) -> Opened:
        if CARD in self.layout.metadata:
            return self._exported(given)
        parts = {name: part for name, part in self.layout.parts.items() if name != "predictor"}
        lines, built = list(self.layout.lines), {}
        for name, weights in parts.items():
            if is_video(weights):
                encoder, config, told = open_video(weights, given, self.path, self.layout.target_name)
            else:
                encoder, config, told = open_vit(weights, given, self.path, image_size)
            built[name] = encoder
            lines += [f"{name}: {line}" for line in told] if len(parts) > 1 else told
        extra = {"name": None, "image_size": None, "num_heads": None}
        _refuse_unknown(given, {f"encoder.{name}" for name in flatten({**extra, **config})}, self.path)
        if set(built) == {"target_encoder"}:
            lines.append("it holds the network that makes the targets alone: context and target are both that one")
        first = next(iter(parts.values()))

        def fresh() -> nn.Module:
            if "_target_" in config:
                return FrozenNetworks(encoder=instantiate(config, _convert_="all")).eval()
            encoder, _, _ = open_vit(first, given, self.path, image_size, load=False)
            return FrozenNetworks(encoder=encoder).eval()

        trained = built.get("encoder", built.get("target_encoder"))
        other = built.get("target_encoder") if "encoder" in built else None
        return Opened(
            self.name,
            "encoder",
            FrozenNetworks(encoder=trained, target_encoder=other),
            fresh,
            lines,
            {"encoder": config},
            encoder=config if "_target_" in config else None,
            image_size=_pair(config.get("image_size", config.get("img_size"))),
            channels=config.get("channels", config.get("in_chans", config.get("stem", {}).get("channels"))),
        )

    def _exported(self, given: Mapping[str, Any]) -> Opened:
        encoder, card = open_exported(self.layout.parts["encoder"], self.layout.metadata[CARD], self.path)
        config = card["encoder"]
        check_given(config, given, "encoder", self.path)
        _refuse_unknown(given, {f"encoder.{name}" for name in config}, self.path)
        return Opened(
            self.name,
            "encoder",
            FrozenNetworks(encoder=encoder),
            lambda: FrozenNetworks(encoder=instantiate(config, _convert_="all")).eval(),
            [f"encoder exported from {card.get('source')} (its {card.get('network')} network)"],
            {"encoder": config},
            encoder=config,
            image_size=_pair(config["image_size"]),
            channels=config["channels"],
            step=card.get("step"),
            data=card.get("data"),
        )

    def _named(self, given: Mapping[str, Any], image_size: Any, channels: int | None) -> Opened:
        if given:
            raise UserError(f"model.{next(iter(given))}: the name {self.name} says what the model is; leave it out")
        if image_size is None or channels is None:
            raise UserError(f"checkpoint={self.name} needs data= (or data.image_size and data.channels)")
        name = self.name.partition(":")[2]
        named = (open_timm if self.kind == "timm" else open_hugging_face)(name, image_size, channels)
        return Opened(
            self.name,
            self.kind,
            FrozenNetworks(encoder=named.encoder),
            lambda: FrozenNetworks(encoder=named.fresh()),
            list(named.lines),
            {"name": self.name, "image_size": image_size},
            image_size=image_size,
            channels=named.channels,
            mean=named.mean,
            std=named.std,
        )


def find_source(name: str) -> Source:
    """What a checkpoint is: a run folder or file, `timm:<name>`, `hf:<name or folder>`, or `random`.

    Raises CheckpointError when nothing is there, or the file cannot be read or is of no known layout.
    """
    kind, colon, rest = name.partition(":")
    if name == "random":
        return Source(name, "random")
    if colon and kind in ("timm", "hf"):
        if not rest:
            raise UserError(f"checkpoint={name}: expected {kind}:<name>")
        return Source(name, kind)
    try:
        path = locate(name)
    except CheckpointError as error:
        raise CheckpointError(
            f"checkpoint={name}: {error}; expected a run folder, a file, timm:<name>, hf:<name or folder> or random"
        ) from None
    layout = read_layout(path)
    source = Source(name, layout.kind, path, layout)
    if layout.kind == "run":
        source.config = dict(layout.content["config"])
        check_trust(source.config, source.path, Path(source.name))
    elif CARD in layout.metadata:
        source.config = _card_config(layout.metadata[CARD])
    return source


def _card_config(header: str) -> dict[str, Any] | None:
    """The data of an exported encoder's header, whose damage is told when it is opened."""
    try:
        card = json.loads(header)
        return {"data": card["data"]} if card.get("data") else None
    except (ValueError, LookupError, AttributeError):
        return None


def _is_ours(encoder: Any) -> bool:
    return isinstance(encoder, Mapping) and str(encoder.get("_target_", "")).startswith("jepa.models.")


def _refuse_unknown(given: Mapping[str, Any], known: set[str], path: Path) -> None:
    """Raise UserError for values that say nothing about a file's encoder and predictor."""
    relevant = [key for key in given if key.startswith(("encoder.", "predictor."))]
    training = ("dropout", "attention_dropout", "drop_path")
    for key in relevant:
        if key not in known and key.rpartition(".")[2] not in training and given[key] is not None:
            raise UserError(f"model.{key}={given[key]}: {path} takes no such value; expected one of {sorted(known)}")


def _pair(size: Any) -> tuple[int, int] | None:
    """(height, width) of a side or a pair; None of none."""
    if size is None:
        return None
    return (size, size) if isinstance(size, int) else tuple(size)


def _by(size: tuple[int, int]) -> str:
    return f"{size[0]} x {size[1]}"
