import pytest
import torch
from torch import nn

from jepa.types import DataSpec, Latents


class BarData:
    """Noisy pictures (1, 8, 8) of which class 0 is bright on the left and class 1 on the right; with both streams."""

    def __init__(self, train: int = 96, test: int = 48, bright: float = 0.6, noise: float = 1.0):
        generator = torch.Generator().manual_seed(0)
        self.spec = DataSpec(train, test, (1, 8, 8), 2)
        self.batch_size, self.noise, self.splits = 16, noise, {}
        for split, size in {"train": train, "test": test}.items():
            labels = torch.arange(size) % 2
            x = torch.randn(size, 1, 8, 8, generator=generator)
            x[..., :4] += (labels == 0)[:, None, None, None] * bright
            x[..., 4:] += (labels == 1)[:, None, None, None] * bright
            self.splits[split] = x, labels

    def evaluation_batches(self, split, *, batch_size, limit=None):
        x, labels = (tensor[:limit].split(batch_size) for tensor in self.splits[split])
        for each, label in zip(x, labels):
            yield {"x": each, "label": label}

    def train_batches(self, *, seed, start_step, stop_step):
        x, labels = self.splits["train"]
        for step in range(start_step, stop_step):
            index = torch.randperm(len(x), generator=torch.Generator().manual_seed(seed % 2**31 + step))
            index = index[: self.batch_size]
            yield {"views": x[index, None].expand(-1, 2, -1, -1, -1), "label": labels[index]}

    def view_batches(self, split, *, views, batch_size, limit, seed):
        random = torch.Generator().manual_seed(seed % 2**31)
        for x in self.splits[split][0][:limit].split(batch_size):
            noise = torch.randn(len(x), views, *x.shape[1:], generator=random)
            yield {"views": x[:, None] + self.noise * noise}


class RowEncoder(nn.Module):
    """Rows of the picture as tokens, through residual blocks and a final norm."""

    def __init__(self, embed_dim: int = 8, depth: int = 5):
        super().__init__()
        self.embed_dim, self.depth = embed_dim, depth
        self.embed = nn.Linear(8, embed_dim)
        self.blocks = nn.ModuleList(nn.Linear(embed_dim, embed_dim) for _ in range(depth))
        self.norm = nn.LayerNorm(embed_dim)
        self.calls = 0

    def forward(self, x, keep=None, valid=None, layers=None):
        self.calls += 1
        tokens, outputs = self.embed(x[:, 0]), []
        for block in self.blocks:
            tokens = tokens + block(tokens).tanh()
            outputs.append(self.norm(tokens))
        return outputs[-1] if layers is None else [outputs[number] for number in layers]


class RowModel(nn.Module):
    """A network with a target of its own, whose masks leave out the rows of one half in turn."""

    def __init__(self, seed: int = 0, **options):
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            self.encoder = RowEncoder(**options)
            self.target = nn.Module()
            self.target.encoder = RowEncoder(**options).requires_grad_(False)

    def encode_target(self, x, layers=None):
        return self.target.encoder(x, layers=layers)

    def prepare(self, batch, rng):
        return {**batch, "rng": rng}

    def forward(self, batch):
        views = batch["views"]
        tokens = self.encoder(views.flatten(0, 1)).unflatten(0, views.shape[:2])  # (b, V, 8, D)
        halves = [tokens[:, :, :4].mean(dim=2), tokens[:, :, 4:].mean(dim=2)]
        return Latents(embeddings=torch.cat(halves, dim=1).transpose(0, 1))


@pytest.fixture
def bars() -> BarData:
    return BarData()


@pytest.fixture
def row_model() -> RowModel:
    return RowModel()


@pytest.fixture
def make_row_model():
    return RowModel
