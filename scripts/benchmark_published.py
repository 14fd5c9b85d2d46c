"""The step of I-JEPA as the published code writes it (Assran et al. 2023), with our sizes: what ours is timed beside.

Attention by explicit products, a convolution for patches, all positions of every predicted block, masks drawn by loops
over samples and blocks, an optimizer that is not fused and the moving average parameter by parameter.
"""

from __future__ import annotations

import copy
import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from jepa.models.positions import sincos_positions
from jepa.types import Mask


class PublishedBlock(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.qkv, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        qkv = self.qkv(self.norm1(x)).reshape(batch, tokens, 3, self.heads, width // self.heads).permute(2, 0, 3, 1, 4)
        query, key, value = qkv[0], qkv[1], qkv[2]
        attention = (query @ key.transpose(-2, -1)) * (width // self.heads) ** -0.5
        mixed = (attention.softmax(dim=-1) @ value).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.proj(mixed)
        return x + self.fc2(F.gelu(self.fc1(self.norm2(x))))


class PublishedEncoder(nn.Module):
    def __init__(self, side: int, patch: int, channels: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Conv2d(channels, width, kernel_size=patch, stride=patch)
        self.register_buffer("positions", sincos_positions(width, (side // patch, side // patch)))
        self.blocks = nn.ModuleList(PublishedBlock(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, x: Tensor, keep: Tensor | None = None) -> Tensor:
        x = self.embed(x).flatten(2).transpose(1, 2) + self.positions
        if keep is not None:
            x = gather(x, keep)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)


class PublishedPredictor(nn.Module):
    def __init__(self, side: int, encoder_width: int, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.embed = nn.Linear(encoder_width, width)
        self.mask_token = nn.Parameter(torch.zeros(1, 1, width))
        self.register_buffer("positions", sincos_positions(width, (side, side)))
        self.blocks = nn.ModuleList(PublishedBlock(width, heads) for _ in range(depth))
        self.norm, self.project = nn.LayerNorm(width, eps=1e-6), nn.Linear(width, encoder_width)

    def forward(self, context: Tensor, mask: Mask) -> Tensor:
        x = self.embed(context) + self.positions[mask.context]
        blocks = mask.targets.shape[1]
        queries = self.mask_token + torch.cat([self.positions[mask.targets[:, m]] for m in range(blocks)], dim=0)
        x = torch.cat([x.repeat(blocks, 1, 1), queries], dim=1)
        for block in self.blocks:
            x = block(x)
        return self.project(self.norm(x)[:, mask.context.shape[1] :])


class PublishedStep:
    """A model, its optimizer and a moving average; called as step(x, mask) it makes one step.

    sizes: side, patch, channels, width, depth, heads of the encoder. predictor: width, depth, heads.
    """

    def __init__(self, sizes: dict[str, int], predictor: tuple[int, int, int], device: torch.device) -> None:
        self.encoder = PublishedEncoder(**sizes).to(device)
        self.grid = sizes["side"] // sizes["patch"]
        self.predictor = PublishedPredictor(self.grid, sizes["width"], *predictor).to(device)
        self.target = copy.deepcopy(self.encoder).requires_grad_(False)
        parameters = [*self.encoder.parameters(), *self.predictor.parameters()]
        self.optimizer = torch.optim.AdamW(parameters, lr=1e-4, weight_decay=0.04)

    def __call__(self, x: Tensor, mask: Mask, autocast: torch.autocast) -> float:
        drawn_by_loops(len(x), self.grid)  # for its time: both steps train on the same mask
        with autocast:
            with torch.no_grad():
                h = self.target(x)
                h = F.layer_norm(h, (h.size(-1),))
                h = torch.cat([gather(h, mask.targets[:, m]) for m in range(mask.targets.shape[1])], dim=0)
            loss = F.smooth_l1_loss(self.predictor(self.encoder(x, mask.context), mask), h)
        loss.backward()
        self.optimizer.step()
        self.optimizer.zero_grad()
        with torch.no_grad():
            for own, other in zip(self.target.parameters(), self.encoder.parameters()):
                own.data.mul_(0.996).add_(other.detach().data, alpha=1 - 0.996)
        return loss.item()


def gather(x: Tensor, index: Tensor) -> Tensor:
    """Return tokens (B, K, D) of (B, N, D) at (B, K)."""
    return torch.gather(x, 1, index.unsqueeze(-1).repeat(1, 1, x.size(-1)))


def drawn_by_loops(batch: int, side: int) -> list[list[Tensor]]:
    """Return the indices of a context and four target blocks for each sample, drawn one by one."""
    contexts, targets = [], []
    for _ in range(batch):
        hidden, blocks = torch.zeros(side, side, dtype=torch.int32), []
        for _ in range(4):
            area, ratio = side * side * (0.15 + 0.05 * torch.rand(1).item()), 0.75 + 0.75 * torch.rand(1).item()
            height = min(side - 1, max(1, round(math.sqrt(area * ratio))))
            width = min(side - 1, max(1, round(math.sqrt(area / ratio))))
            top = torch.randint(0, side - height, (1,)).item()
            left = torch.randint(0, side - width, (1,)).item()
            block = torch.zeros(side, side, dtype=torch.int32)
            block[top : top + height, left : left + width] = 1
            hidden += block
            blocks.append(torch.nonzero(block.flatten()).squeeze())
        seen = torch.zeros(side, side, dtype=torch.int32)
        height = width = max(1, round(side * math.sqrt(0.85 + 0.15 * torch.rand(1).item())))
        seen[: min(side, height), : min(side, width)] = 1
        contexts.append(torch.nonzero((seen * (hidden == 0)).flatten()).squeeze())
        targets += blocks
    return [contexts, targets]
