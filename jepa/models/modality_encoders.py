"""Encoders of several modalities behind the interface of one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from torch import Tensor, nn

from jepa.models.trunk_sharing import same_trunk, share_trunk
from jepa.types import Grid
from jepa.utils.tensors import token_valid

Inputs = Mapping[str, Tensor]
"""Modality -> inputs (B, ...)."""


class ModalityEncoders(nn.Module):
    """Encoders of several modalities as one (`jepa.types.Encoder`), whose input is {name: x} with a single name.

    encoders: modality -> encoder, all of the same width.
    shared_trunk: use the blocks and the final norm of the first encoder for all; each keeps its stem and positions.
        Only for `TransformerEncoder`s of the same shape.

    A sample that is NaN or padding throughout is missing; see `present`.
    Raises ValueError if the widths differ or the trunks cannot be shared.
    """

    def __init__(self, encoders: Mapping[str, nn.Module], *, shared_trunk: bool = False) -> None:
        super().__init__()
        widths = {name: encoder.embed_dim for name, encoder in encoders.items()}
        if len(widths) < 2 or len(set(widths.values())) > 1:
            raise ValueError(f"model.encoders: got the widths {widths}, expected two or more encoders of one width")
        self.encoders = nn.ModuleDict(encoders)
        self.embed_dim: int = next(iter(widths.values()))
        self.depth: int | None = min(getattr(encoder, "depth", 0) for encoder in encoders.values()) or None
        self.token_values: int | None = None
        if shared_trunk:
            first = next(iter(encoders.values()))
            if not all(hasattr(e, "encode") and same_trunk(first, e) for e in encoders.values()):
                raise ValueError(
                    "model.shared_trunk=true needs a TransformerEncoder for every modality, all of the same embed_dim, "
                    "depth, num_heads and mlp_ratio"
                )
            share_trunk(encoders.values())

    def grid(self, x: Inputs) -> Grid:
        """Return the token grid of {name: x}."""
        encoder, values = self._select(x)
        return tuple(encoder.grid(values))

    def token_valid(self, x: Inputs) -> Tensor | None:
        """Return which tokens (B, N) bool of {name: x} are not padding; None if its encoder takes no padding."""
        return token_valid(*self._select(x))

    def present(self, x: Inputs) -> Tensor:
        """Return which samples (B,) bool of {name: x} are not missing: neither all NaN nor all padding."""
        valid = self.token_valid(x)
        if valid is not None:
            return valid.any(dim=1)
        (values,) = x.values()
        return ~values.isnan().flatten(1).all(dim=1)

    def forward(
        self,
        x: Inputs,
        keep: Tensor | None = None,
        valid: Tensor | None = None,
        layers: Sequence[int] | None = None,
    ) -> Tensor | list[Tensor]:
        """Return the features of {name: x}; arguments as of every encoder."""
        encoder, values = self._select(x)
        return encoder(values, keep=keep, valid=valid, layers=layers)

    def _select(self, x: Inputs) -> tuple[nn.Module, Tensor]:
        """Return the encoder of {name: x}, and x as that encoder takes it."""
        ((name, values),) = x.items()
        encoder = self.encoders[name]
        if values.is_floating_point() and not hasattr(encoder, "token_valid"):
            values = values.nan_to_num()  # a missing sample; its features get no weight
        return encoder, values
