"""Wrong keys, options and values are answered with the right ones, and words of guides with ours."""

from __future__ import annotations

import functools
import re
import shlex
from pathlib import Path
from typing import Literal

import pytest
from omegaconf import OmegaConf

import jepa
from jepa import load_config
from jepa.config.build import ANY_FOUND, built_model, filled, to_plain
from jepa.config.check import check_config, check_values, source_of
from jepa.config.command import run_command
from jepa.config.compose import compose_with_choices
from jepa.config.help import WIDTH, help_text
from jepa.config.keys import Keys
from jepa.config.words import find_word, table, words
from jepa.utils.errors import UserError

ROOT = Path(__file__).resolve().parents[2]

ANSWERS = {
    # Words of guides.
    "epochs=3": "trainer.max_epochs=3",
    "+lr=1e-3": "optimizer.lr=1e-3",
    "epoch=3": "trainer.max_epochs=3",
    "optimizer.learning_rate=1": "optimizer.lr=1",
    "trainer.batch_size=8": "data.batch_size=8",
    "+trainer.epochs=3": "trainer.max_epochs=3",
    "training.epochs=3": "trainer.max_epochs=3",
    "gradient_accumulation_steps=4": "trainer.micro_batch_size=16",
    "batch_size=8 gradient_accumulation_steps=4": "data.batch_size=32 trainer.micro_batch_size=8",
    "mixed_precision=true": "trainer.precision=auto",
    "fp16=false": "trainer.precision=fp32",
    "mask_ratio=0.75": "model/mask=random model.mask.context_share=0.25",
    "early_stopping=true": "callbacks=early_stopping",
    "config.debug=true": "trainer=debug",
    "encoder_type=vit_small": "model/encoder=vit_small",
    "tokenizer=bert": "data=text_csv data.tokenizer=bert-base-uncased",
    "wandb=true": "logger=[console,jsonl,tensorboard,wandb]",
    # Wrong keys.
    "data.batchsize=3": "data.batch_size=3",
    "model.encoder.patch=4": "model.encoder.patch_size=4",
    "max_epochs=3": "trainer.max_epochs=3",
    "scheduler.lr.peak=1": "scheduler.lr=1",
    "evaluation.knn.k=3": "evaluation.probes.knn.k=3",
    "callbacks.early_stopping.patience=5": "callbacks=early_stopping callbacks.early_stopping.patience=5",
    "logger.wandb.project=x": "logger=[console,jsonl,tensorboard,wandb] logger.wandb.project=x",
    "data.path=x": "data=hf data.path=x",
    "trainer.optimizer=adamw": "optimizer=adamw",
    "trainer.resume=auto": "resume=auto",
    "optimizer.name=sgd": "optimizer=sgd",
    "model.encoder=vit_small": "model/encoder=vit_small",
    "encoder=vit_small": "model/encoder=vit_small",
    "dataset=mnist": "data=mnist",
    "hydra.run.dirr=x": "hydra.run.dir",
    # Wrong options.
    "model=vit_small": "model/encoder=vit_small",
    "model=vitt": "model=vit",
    "model=ijepa": "model=vit",
    "model=adamw": "optimizer=adamw",
    "data=mnits": "data=mnist",
    "data=/a/b": "data=image_folder data.root=/a/b",
    "logger=[console,wand]": "logger=wandb",
    "optimizer=adamW": "optimizer=adamw",
    "callbacks=earlystopping": "callbacks=early_stopping",
    "model/mask=rand": "model/mask=random",
    "sweep=bayes": "sweep=optuna",
}
"""What is typed -> what it must be answered with after "Did you mean"."""

OTHERS = {
    "optimizer.lr=abc": "^optimizer.lr=abc: torch.optim.AdamW expects a number$",
    "data.hints.patch_size=abc": "^data.hints.patch_size=abc: .* expects a whole number or a list",
    "trainer.precision=bf17": "expects auto, fp32, bf16 or fp16$",
    "data.batch_size=1.5": "^data.batch_size=1.5: .* expects a whole number$",
    "model.encoder=null": "^model.encoder=null: .* expects Module$",
    "grad_scaler=true": "fp16 scales the loss by itself",
    "trainer.max_epochs": "^trainer.max_epochs: expected key=value",
    "epochs": r"expected key=value, without spaces: trainer.max_epochs=\.\.\.",
    "data=mnist,cifar10": "needs -m: python train.py -m data=mnist,cifar10",
    "trainer.tf32=true,false": "^trainer.tf32=true,false: .* -m trainer.tf32=true,false",
    "+trainer.max_epochs=3": "leave out the [+]",
    "hydra.launcher.partition=x": "with hydra/launcher=slurm",
    "resume=a${z}": "there is no key z",
    "init_from=a${z}": "^init_from: .*there is no key z",
    "foo=1": "^foo=1: there is no such key. Sections and keys: data, model",
    "+foo=1": "there is no such key",
    "data.transform=x": "^data.transform=x: there is no such key. data takes source, image_size",
    "'data.hints={size: small, tubelet: 2}'": "^data.hints.tubelet: there is no such key",
    "'data.root=a<b'": "^data.root=a<.*quote",
    "model.mask.target_scale=[0.1": r"^model.mask.target_scale=\[0.1",
    "data=series_csv data.root=/a": r"go with model=series: python train.py data=series_csv data.root=/a model=series$",
    "model=text data=audio_folder 'data.root=a b'": "data=audio_folder 'data.root=a b' model=audio$",
    "experiment=digits data=ucr data.root=x data.name=y": "train.py data=ucr data.root=x data.name=y model=series$",
    "model=lejepa data=text_lines data.root=x": "data.root=x model=lejepa model/encoder=text$",
    "data=paired_coco data.root=x model.predictor.depth=2": "model.predictor.depth=2 model=crossmodal_captions$",
    "data=mix +data@data.parts.a=fsdd": "^data.parts.a.spectrogram.sample_rate: .*there is no key data.sample_rate",
}
"""What is typed -> a pattern of the message."""


def answer(typed: str) -> str:
    """The message about a command line."""

    def check():
        whole = filled(load_config(shlex.split(typed)), ANY_FOUND)
        check_config(to_plain(whole), source=functools.partial(source_of, whole))

    with pytest.raises(UserError) as error:
        check()
    message = str(error.value)
    assert message.count("\n") < 3, message
    assert not re.search(r"search path|full_key|hydra\.cc|struct|\+\w+=\w", message.replace(typed, "")), message
    return message


@pytest.mark.parametrize("typed", ANSWERS)
def test_the_right_one_is_named(typed):
    message = answer(typed)
    first = message.splitlines()[0]
    assert first.startswith(tuple(word.split("=")[0] for word in typed.split()))
    assert first.partition("Did you mean ")[2] == f"{ANSWERS[typed]}?", message


@pytest.mark.parametrize("typed", OTHERS)
def test_other_mistakes(typed):
    assert re.search(OTHERS[typed], answer(typed), re.MULTILINE)


SAMPLES = {"data": "mnist", "model/encoder": "vit_tiny", "model/mask": "random", "loss": "mse", "optimizer": "sgd"}
SAMPLES |= {"scheduler": "cosine", "trainer.device": "cpu", "trainer.precision": "fp16", "mask_ratio": "0.75"}
"""Key or word -> a value that it takes; of others a number."""


def test_every_word_leads_to_what_a_run_takes():
    """As advice that leads to a refusal is none."""
    keys, together = Keys(*compose_with_choices([])), []
    for word in words():
        names = word.names.split()
        value = SAMPLES.get(names[0]) or SAMPLES.get(word.here.partition("=")[0], "8")
        right, note = keys.suggestion(f"{names[0]}={value}")
        assert not any(keys.has(name) for name in names)
        assert all(find_word(name) is word for name in names)
        if right[:1] and right[0].startswith("data=") and len(right) > 1:  # other data
            load_config([*right, "model=text"])
        elif right and "my.yaml" not in note:
            together += keys.accumulated(right)
    assert len(together) > 40
    load_config(together)


def test_no_word_stands_twice():
    names = [name.replace("_", "") for word in words() for name in word.names.split()]
    assert len(names) == len(set(names))


def test_the_page_shows_the_table():
    assert table() in (ROOT / "docs" / "words.md").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (
            "--epochs 100 --batch-size 64 --learning-rate 1e-3",
            "python train.py trainer.max_epochs=100 data.batch_size=64 optimizer.lr=1e-3",
        ),
        ("data=mnist --lr=3 -m", "python train.py data=mnist optimizer.lr=3 -m"),
        ("--data mnist --fp16 --trainer.tf32 true", "data=mnist trainer.precision=fp16 trainer.tf32=true"),
        ("--batch-size 8 --gradient-accumulation-steps 4", "data.batch_size=32 trainer.micro_batch_size=8"),
        ("--config my.yaml", "python train.py my.yaml"),
        ("--frobnicate 3", "--frobnicate: there is no such option"),
    ],
)
def test_options_with_dashes(monkeypatch, capsys, arguments, expected):
    monkeypatch.setattr("sys.argv", ["train.py", *arguments.split()])
    with pytest.raises(SystemExit):
        run_command(lambda: None)
    (line, *notes) = capsys.readouterr().err.splitlines()
    assert expected in line
    assert len(notes) <= 1


def test_help_shows_what_is_chosen():
    text = help_text(["data=mnist", "model=lejepa"], None, "config")
    assert max(map(len, text.splitlines())) <= WIDTH
    for line in ("Keys of data=mnist:", "  data.image_size=28", "Keys of model=lejepa:", "  trainer.max_epochs=100"):
        assert line in text
    assert "submitit" not in text
    assert re.search(r"^model/encoder +audio.*", text, re.MULTILINE)
    assert "\nwandb" not in text
    assert "Groups" not in help_text([], None, "status")


def test_a_file_of_deltas(tmp_path):
    path = tmp_path / "my.yaml"
    path.write_text(
        "defaults: [{override /data: mnist}, {loss: mse}, _self_]\nmodel/encoder: vit_tiny\nlogger: [jsonl]\n"
        "trainer: {max_epochs: 2, tf32: true}\noptimizer: {lr: 1e-3, betas: [0.9, 0.95]}\n"
        'data: {root: "it\'s, here"}\ncallbacks: {mine: {_target_: slow.Slow, seconds: 1}}\nresume: auto\n'
    )
    config = load_config(path)
    assert config == load_config(str(path)) == load_config([str(path)])
    assert (config.data.root, config.data.image_size, list(config.loss.terms)) == ("it's, here", 28, ["prediction"])
    assert (config.trainer.max_epochs, config.trainer.tf32, config.optimizer.lr) == (2, True, 1e-3)
    assert (config.optimizer.betas, list(config.logger), config.resume) == ([0.9, 0.95], ["jsonl"], "auto")
    assert (config.model.encoder.embed_dim, config.callbacks.mine.seconds) == (192, 1)
    assert load_config([str(path), "trainer.max_epochs=5"]).trainer.max_epochs == 5
    assert load_config(config.overrides) == config  # what a run stores
    for text, message in {
        "epochs: 3": r"Did you mean trainer.max_epochs=3\?",
        "trainer: {max_epoch: 3}": r"Did you mean trainer.max_epochs=3\?",
        "defaults: [other]": "defaults: other: expected a group and its option",
        "overrides: []": "is the configuration of a run: go on with it by resume=",
        "- 1": "holds a list",
    }.items():
        path.write_text(text)
        with pytest.raises(UserError, match=message):
            load_config(path)
    with pytest.raises(UserError, match=r"nothing.yaml is not a file"):
        load_config("nothing.yaml")


def test_data_of_actions_go_with_world_models():
    for data in ("data=two_rooms", "data=trajectories"):
        with pytest.raises(UserError, match=f"they go with model=world: python train.py {data} model=world"):
            built_model(load_config([data]))


def test_values_of_scripts():
    config = OmegaConf.create({"episodes": "2", "cost": 3, "pairs": "both"})
    for kinds, message in (
        ({"episodes": int}, "episodes='2': expected a whole number"),
        ({"cost": dict}, "cost=3: expected {key: value}"),
        ({"pairs": Literal["validation", "test"]}, "pairs=both: expected validation or test"),
    ):
        with pytest.raises(UserError, match=message):
            check_values(config, kinds)


def test_the_trainer_by_the_name_of_guides(tiny, tmp_path):
    options = [*tiny, "trainer.max_steps=2", "evaluation=none", "logger=[]", f"run_dir={tmp_path}/run"]
    trainer = jepa.JEPATrainer(load_config(options))
    assert type(trainer) is jepa.Trainer
    assert trainer.train()["train/loss"] > 0
    assert trainer.step == 2
    with pytest.raises(UserError, match=r"JEPATrainer\(list\): expected a composed configuration"):
        jepa.JEPATrainer(options)
