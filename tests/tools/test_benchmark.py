"""scripts/benchmark.py: what is compared is the same mathematics, and a ratio that fell is shown."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch

from jepa.losses import Objective, SmoothL1
from jepa.masks import MultiBlockMask
from jepa.models import EMATarget, MaskedJEPA, Predictor, vision_transformer
from jepa.optim import Constant


@pytest.fixture
def scripts(monkeypatch, request):
    monkeypatch.syspath_prepend(str(request.config.rootpath / "scripts"))


def test_the_published_step_is_ours(scripts):
    from benchmark_published import PublishedStep

    encoder = vision_transformer(image_size=16, channels=1, patch_size=4, embed_dim=32, depth=2, num_heads=2)
    model = MaskedJEPA(
        encoder=encoder,
        predictor=partial(Predictor, embed_dim=16, depth=2),
        target=partial(EMATarget, momentum=Constant(value=0.9)),
        mask=MultiBlockMask(num_targets=2, min_context=2),
        loss=partial(Objective, terms={"prediction": {"weight": 1.0, "term": SmoothL1()}}),
    )
    sizes = {"side": 16, "patch": 4, "channels": 1, "width": 32, "depth": 2, "heads": 2}
    step = PublishedStep(sizes, (16, 2, model.predictor.blocks[0].attn.num_heads), torch.device("cpu"))

    def renamed(network) -> dict[str, torch.Tensor]:
        names = {"patch_embed.proj": "embed", "attn.": "", "mlp.": "", "vit.": ""}
        found = {}
        for name, value in network.state_dict().items():
            for ours, theirs in names.items():
                name = name.replace(ours, theirs)
            found[name] = value
        return found

    step.encoder.load_state_dict(renamed(encoder), strict=False)
    step.target.load_state_dict(renamed(encoder), strict=False)
    step.predictor.load_state_dict(renamed(model.predictor), strict=False)
    x = torch.randn(3, 1, 16, 16)
    [mask] = model.mask_sampler.masker(3, (4, 4), generator=torch.Generator().manual_seed(0))
    latents = model.latents(x, [mask])
    loss = model.loss(latents)["loss"]
    loss.backward()
    assert step(x, mask, torch.autocast("cpu", enabled=False)) == pytest.approx(loss.item(), abs=1e-6)


def test_what_needs_a_gpu_runs_within_its_budget(scripts, monkeypatch):
    import benchmark_gpu

    monkeypatch.setattr(benchmark_gpu, "SECONDS", 0.01)
    monkeypatch.setattr(benchmark_gpu, "SHORTEST", 10**6)  # nothing is compiled
    monkeypatch.setattr(benchmark_gpu, "MODELS", dict(list(benchmark_gpu.MODELS.items())[:1]))
    rows = {row["name"]: row for row in benchmark_gpu.gpu(100, device="cpu", tiny=True, tests=False)}
    name = "ijepa_vits16_224"
    assert rows.keys() == {"matrix_product", name, f"{name}_published", f"{name}_compiled"}
    assert rows[name]["precision"] == "bf16"
    assert 0 < rows[name]["utilisation"] < 2
    assert min(rows[name][key] for key in ("samples_per_second", "gflop_per_sample", "peak_memory_gib")) > 0
    assert rows[f"{name}_published"]["ratio_to_published"] > 0
    assert rows[f"{name}_compiled"]["skipped"] == "the budget is spent"
    [spent] = [row for row in benchmark_gpu.gpu(0, device="cpu", tiny=True, tests=False) if row["name"] == name]
    assert spent["skipped"] == "the budget is spent"


def test_ratios_that_fell(scripts, tmp_path, capsys, monkeypatch):
    import benchmark

    def results(ratio: float, utilisation: float):
        numbers = {"ratio_to_published": ratio, "utilisation": utilisation, "shares": {"loop": 0.1}}
        return {"step": [{"name": "a", "precision": "fp32", **numbers}]}

    (tmp_path / "old").write_text(json.dumps(results(1.2, 0.9)))
    (tmp_path / "new").write_text(json.dumps(results(1.0, 0.85)["step"]))  # as of step alone
    monkeypatch.setattr("sys.argv", ["benchmark.py", "compare", str(tmp_path / "old"), str(tmp_path / "new")])
    benchmark.main()
    assert (
        capsys.readouterr().out == "step.a fp32.ratio_to_published: 1.200 -> 1.000\n1 of 2 ratios fell by over 10 %\n"
    )


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["compare", "a"], "expected table FILE.json, or compare OLD.json NEW.json"),
        (["table", "a"], "a is damaged: it cannot be read"),
        (["masks", "--rounds=3"], "--rounds: none of masks takes it"),
        (["step", "--rounds=0"], "--rounds=0: expected a number above 0"),
        (["input", "--folder=a"], "--folder=a is not a folder"),
    ],
)
def test_wrong_arguments_are_named(scripts, tmp_path, capsys, monkeypatch, given, message):
    import benchmark

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["benchmark.py", *given])
    with pytest.raises(SystemExit):
        benchmark.main()
    assert message in capsys.readouterr().err


def test_what_is_interrupted_keeps_its_results_and_peers_are_installed_anew(scripts, tmp_path, monkeypatch):
    import benchmark
    import benchmark_peers

    def interrupt(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    results, environment = tmp_path / "new" / "results.json", tmp_path / "peers"
    monkeypatch.setattr("sys.argv", ["benchmark.py", "masks", "ddp", f"--json={results}"])
    monkeypatch.setattr(benchmark, "MEASUREMENTS", {"masks": lambda: {"milliseconds": 1}, "ddp": interrupt})
    with pytest.raises(KeyboardInterrupt):
        benchmark.main()
    assert json.loads(results.read_text()) == {"masks": {"milliseconds": 1}}
    monkeypatch.setattr(benchmark_peers, "ENVIRONMENT", environment)
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").touch()  # of an installation that was interrupted
    calls: list[list[str]] = []
    monkeypatch.setattr(
        benchmark_peers.subprocess, "run", lambda call, **_: (environment.mkdir(exist_ok=True), calls.append(call))
    )
    for _ in range(2):
        with benchmark_peers.Peers() as peers:
            assert peers._installed
    assert [call[1] for call in calls] == ["venv", "pip"]


def test_the_page_has_the_committed_results(scripts, request):
    import benchmark

    root = request.config.rootpath
    rows = json.loads((root / "scripts" / "results" / "benchmark.json").read_text())["step"]
    assert benchmark.table(rows) in (root / "docs" / "speed.md").read_text()


def test_what_a_model_costs_on_paper_is_what_its_step_costs(scripts, request):
    from benchmark_scaling import BATCH, RATE, on_paper

    rows = json.loads((request.config.rootpath / "scripts" / "results" / "benchmark.json").read_text())["step"]
    name = "ijepa_vits16_224"
    row = on_paper(name)
    assert row["gflop_per_sample"] == pytest.approx(
        next(r for r in rows if r["name"] == name)["gflop_per_sample"], rel=0.02
    )
    seconds = 2 / 3 * BATCH / 8 * row["gflop_per_sample"] * 1e9 / RATE
    assert row["gigabytes_per_second"][8] == pytest.approx(7 / 8 * 8 * row["trained_millions"] / 1e3 / seconds)
