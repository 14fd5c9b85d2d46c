"""One peer's training step, in its own environment: reads a line for each step, prints its seconds.

lightly_ijepa: lightly's I-JEPA parts as its example puts them together, on the numbers of tokens that it is given.
stable_ijepa: stable-pretraining's IJEPA, which draws its own masks (blocks that do not overlap) and predicts all blocks
in one pass, as our `joint`; its moving average is updated by a callback, here by its method.
"""

from __future__ import annotations

import copy
import json
import sys
import time

import torch
from torch.nn import functional as F


def vision_transformer(sizes: dict) -> torch.nn.Module:
    """timm's ViT, as both peers take it."""
    from timm.models.vision_transformer import VisionTransformer

    side, patch, width = sizes["shape"][-1], sizes["patch"], sizes["width"]
    more = {"depth": sizes["depth"], "num_heads": sizes["heads"], "class_token": False, "num_classes": 0}
    return VisionTransformer(img_size=side, patch_size=patch, embed_dim=width, global_pool="", **more)


def lightly_ijepa(sizes: dict, x: torch.Tensor):
    from lightly.models.modules import IJEPAPredictorTIMM, MaskedVisionTransformerTIMM
    from lightly.models.utils import update_momentum

    patches = (sizes["shape"][-1] // sizes["patch"]) ** 2
    vit = vision_transformer(sizes)
    student = MaskedVisionTransformerTIMM(vit=vit).to(x.device)
    predictor = IJEPAPredictorTIMM(
        num_patches=patches,
        depth=sizes["predictor_depth"],
        mlp_dim=sizes["width"],
        predictor_embed_dim=sizes["predictor_width"],
        num_heads=sizes["heads"],
    ).to(x.device)
    teacher = copy.deepcopy(student).requires_grad_(False)
    optimizer = torch.optim.AdamW([*student.parameters(), *predictor.parameters()], lr=1e-4)

    def indices(count: int) -> torch.Tensor:
        return torch.stack([torch.randperm(patches)[:count].sort()[0] for _ in range(len(x))]).to(x.device)

    def step() -> None:
        update_momentum(student, teacher, m=0.996)
        seen, hidden = indices(sizes["context"]), [indices(sizes["tokens"]) for _ in range(sizes["blocks"])]
        with torch.no_grad():
            features = teacher.encode(x)
            features = F.layer_norm(features, (features.shape[-1],))
            targets = torch.cat(
                [features.gather(1, h.unsqueeze(-1).expand(-1, -1, features.shape[-1])) for h in hidden]
            )
        loss = F.smooth_l1_loss(predictor(student.encode(x, idx_keep=seen), [seen], hidden), targets)
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def stable_ijepa(sizes: dict, x: torch.Tensor):
    from stable_pretraining.methods import IJEPA

    vit = vision_transformer(sizes)
    model = IJEPA(vit, predictor_embed_dim=sizes["predictor_width"], predictor_depth=sizes["predictor_depth"])
    model = model.to(x.device).train()
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-4)

    def step() -> None:
        model(x).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        model.encoder.update_teacher()

    return step


if __name__ == "__main__":
    peer, sizes = sys.argv[1], json.loads(sys.argv[2])
    torch.set_num_threads(sizes["threads"])
    x = torch.randn(sizes["shape"], device=sizes["device"])
    step = {"lightly_ijepa": lightly_ijepa, "stable_ijepa": stable_ijepa}[peer](sizes, x)
    for _ in sys.stdin:
        begun = time.perf_counter()
        with torch.autocast(sizes["device"], dtype=torch.bfloat16, enabled=sizes["bf16"]):
            step()
        if sizes["device"] == "cuda":
            torch.cuda.synchronize()
        print("seconds", time.perf_counter() - begun, flush=True)
