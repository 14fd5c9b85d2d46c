"""Words of other projects and guides, and how the same is written here; docs/words.md shows the table."""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

YES, NO = ("true", "yes", "on", "1"), ("false", "no", "off", "0", "none", "null")


@dataclass(frozen=True)
class Word:
    """Names that others give to one thing.

    here: how it is written, with {} for the value; without {} a switch, and "" for what needs no setting.
    values: values that change as well, "*" for all others; or a function of the value.
    """

    names: str
    here: str
    note: str = ""
    values: Mapping[str, str] | Callable[[str], str] = field(default_factory=dict)

    def written(self, value: str) -> list[str]:
        """Return the overrides that say it with a value."""
        plain = "true" if value.lower() in YES else "false" if value.lower() in NO else value.lower()
        if callable(self.values):
            value = self.values(value)
        elif plain == "false" and "{}" not in self.here:
            return []
        else:
            value = self.values.get(plain, self.values.get("*", value))
        return self.here.format(value).split()


def _share(value: str) -> str:
    """Return 1 - value, `<1 - value>` of what is no number."""
    try:
        return f"{1 - float(value):.6g}"
    except ValueError:
        return f"<1 - {value}>"


PRECISION = {"true": "auto", "false": "fp32", "16": "fp16", "float16": "fp16", "bfloat16": "bf16", "32": "fp32"}
PRECISION |= {"16-mixed": "fp16", "bf16-mixed": "bf16", "float32": "fp32"}
WANDB = "logger=[console,jsonl,tensorboard,wandb]"

WORDS = (
    Word("epochs num_epochs n_epochs max_epoch num_train_epochs total_epochs", "trainer.max_epochs={}"),
    Word("steps num_steps max_iters iterations num_iterations total_steps training_steps", "trainer.max_steps={}"),
    Word("batch_size bs train_batch_size global_batch_size per_device_train_batch_size", "data.batch_size={}"),
    Word(
        "gradient_accumulation_steps gradient_accumulation accumulate_grad_batches accumulation_steps accum_iter "
        "grad_accum grad_accum_steps",
        "trainer.micro_batch_size=<data.batch_size/{}>",
        "micro_batch_size = data.batch_size / (accumulation steps x devices), where data.batch_size counts all of them",
    ),
    Word("lr learning_rate base_lr peak_lr init_lr", "optimizer.lr={}"),
    Word("min_lr final_lr eta_min", "scheduler.min_lr={}"),
    Word("weight_decay wd", "optimizer.weight_decay={}"),
    Word("warmup warmup_epochs num_warmup_epochs", "scheduler.warmup_epochs={}"),
    Word("warmup_steps num_warmup_steps", "scheduler.warmup_epochs=null scheduler.warmup_steps={}"),
    Word("ema ema_decay ema_momentum ema_start tau momentum_teacher", "model.target.momentum.start={}"),
    Word(
        "grad_clip clip_grad max_grad_norm gradient_clip gradient_clipping gradient_clip_val clip_grad_norm",
        "trainer.grad_clip_norm={}",
    ),
    Word("workers num_workers dataloader_num_workers", "data.num_workers={}"),
    Word("device accelerator", "trainer.device={}", values={"gpu": "cuda"}),
    Word("devices gpus num_gpus n_gpus", "trainer.devices={}", "torchrun --nproc_per_node=2 train.py starts two"),
    Word("nodes num_nodes nnodes", "trainer.nodes={}"),
    Word("distributed ddp multi_gpu", "trainer=ddp", "torchrun --nproc_per_node=2 train.py starts two processes"),
    Word("fsdp", "trainer=fsdp", "torchrun --nproc_per_node=2 train.py starts two processes"),
    Word("seed random_seed", "trainer.seed={}"),
    Word("mixed_precision amp use_amp precision dtype", "trainer.precision={}", values=PRECISION),
    Word("fp16 half", "trainer.precision={}", values={"true": "fp16", "false": "fp32"}),
    Word("bf16 use_bfloat16", "trainer.precision={}", values={"true": "bf16", "false": "fp32"}),
    Word("grad_scaler scaler", "", "trainer.precision=fp16 scales the loss by itself: nothing to set"),
    Word(
        "gradient_checkpointing grad_checkpointing use_gradient_checkpointing use_activation_checkpointing",
        "trainer.activation_checkpointing={}",
    ),
    Word("compile torch_compile use_compile", "trainer.compile={}"),
    Word(
        "early_stopping early_stop",
        "callbacks={}",
        "callbacks.early_stopping.patience counts measurements of val/loss",
        {"false": "none", "*": "early_stopping"},
    ),
    Word(
        "patience early_stopping_patience",
        "callbacks=early_stopping callbacks.early_stopping.patience={}",
    ),
    Word(
        "save_frequency save_freq save_every save_interval checkpoint_frequency checkpoint_freq checkpoint_interval "
        "checkpoint_every",
        "trainer.save_every_epochs={}",
        "trainer.save_every_steps counts steps",
    ),
    Word("save_top_k keep_best", "trainer.best_k={}"),
    Word("log_frequency log_freq log_interval log_every_n_steps logging_steps print_freq", "trainer.log_every={}"),
    Word(
        "eval_frequency eval_freq eval_every eval_interval val_frequency val_interval check_val_every_n_epoch",
        "trainer.validate_every_epochs={}",
        "evaluation.every_epochs is that of the probes",
    ),
    Word("resume_from resume_from_checkpoint resume_path ckpt_path", "resume={}"),
    Word(
        "checkpoint ckpt pretrained pretrained_path load_from weights",
        "init_from={}",
        "resume=<run folder> goes on with a run",
        {"true": "<file>", "false": "null"},
    ),
    Word("name run_name experiment_name exp_name", "hydra.run.dir=outputs/{}"),
    Word("output_dir out_dir output save_dir log_dir work_dir", "hydra.run.dir={}"),
    Word("dataset dataset_name", "data={}"),
    Word(
        "data_path data_dir data_root dataset_path dataset_root root",
        "data.root={}",
        "data=image_folder, video_folder, audio_folder, series_csv, text_lines say what is there",
    ),
    Word(
        "val_split validation_split val_ratio val_fraction split_ratio",
        "data.source.val_fraction={}",
        "of folders of your own",
    ),
    Word("image_size img_size input_size resolution", "data.image_size={}"),
    Word("patch_size", "model.encoder.patch_size={}"),
    Word("encoder encoder_type encoder_name arch architecture backbone model_name model_type", "model/encoder={}"),
    Word("embed_dim hidden_size hidden_dim d_model", "model.encoder.embed_dim={}"),
    Word("depth num_layers n_layers", "model.encoder.depth={}"),
    Word("num_heads n_heads heads", "model.encoder.num_heads={}"),
    Word("predictor_depth pred_depth", "model.predictor.depth={}"),
    Word("predictor_embed_dim pred_emb_dim predictor_dim", "model.predictor.embed_dim={}"),
    Word("mask masking mask_type masking_strategy", "model/mask={}"),
    Word(
        "mask_ratio masking_ratio",
        "model/mask=random model.mask.context_share={}",
        "context_share is what is seen, 1 - mask_ratio",
        _share,
    ),
    Word(
        "tokenizer tokenizer_name",
        "data.tokenizer={}",
        "for data=text_lines and data=text_csv; of data=hf data.text.tokenizer",
        {"bert": "bert-base-uncased"},
    ),
    Word("max_length max_len max_seq_length seq_len sequence_length", "data.max_length={}"),
    Word("loss_type loss_fn loss_function criterion", "loss={}"),
    Word("opt optim optimizer_type optimizer_name", "optimizer={}"),
    Word("lr_scheduler lr_schedule scheduler_type sched", "scheduler={}"),
    Word("wandb use_wandb", WANDB),
    Word("wandb_project project_name", f"{WANDB} logger.wandb.project={{}}"),
    Word("debug debug_mode", "trainer=debug"),
    Word("config config_file config_path", "{}", "a file of deltas is one of the options: python train.py my.yaml"),
)
"""By the key here."""

OPTIONS = {
    "model": {"ijepa": "model=vit", "jepa": "model=vit", "vjepa": "model=video", "vjepa2": "model=video"}
    | {"vicreg": "model=lejepa loss=vicreg_views", "simclr": "model=lejepa loss=infonce_views", "bert": "model=text"}
    | {"resnet": "model/encoder=timm"},
    "model/encoder": {"transformer": "model/encoder=vit", "cnn": "model/encoder=timm", "resnet": "model/encoder=timm"},
    "loss": {"l2": "loss=mse", "huber": "loss=smooth_l1", "mae": "loss=l1", "ntxent": "loss=infonce"},
    "optimizer": {"lion": "optimizer=adamw"},
    "logger": {"none": "logger=[]", "wb": "logger=[console,jsonl,tensorboard,wandb]", "csv": "logger=[console,jsonl]"},
    "data": {"images": "data=image_folder", "imagefolder": "data=image_folder", "csv": "data=series_csv"}
    | {
        "huggingface": "data=hf",
        "imagenet1k": "data=imagenet",
        "videos": "data=video_folder",
        "text": "data=text_lines",
    }
    | {"audio": "data=audio_folder", "timeseries": "data=series_csv"},
    "evaluation": {"knn": "evaluation=frozen", "linear": "evaluation=frozen", "linearprobe": "evaluation=frozen"}
    | {"finetune": "evaluation=full_and_fine_tuning"},
    "sweep": {"bayes": "sweep=optuna", "bayesian": "sweep=optuna", "tpe": "sweep=optuna"},
    "trainer": {"multigpu": "trainer=ddp", "cuda": "trainer=gpu"},
}
"""Group -> names that others give to its options, without _ and -."""

TABLE = {name: word for word in WORDS for name in word.names.split()}
"""Every name of `WORDS`."""
PLAIN = {name.replace("_", ""): word for name, word in TABLE.items()}


def table() -> str:
    """Return the words as docs/words.md shows them."""
    rows = ["| elsewhere | here | |", "|---|---|---|"]
    for word in WORDS:
        names = ", ".join(f"`{name}`" for name in word.names.split())
        shown = "..." if callable(word.values) else word.values.get("*", word.values.get("true", "..."))
        here = " ".join(f"`{part}`" for part in word.here.format(shown).split())
        rows.append(f"| {names} | {here or 'nothing'} | {word.note} |")
    return "\n".join(rows)


def plain(name: str) -> str:
    """Return a name in small letters without _ and -."""
    return name.lower().replace("_", "").replace("-", "")


def find_word(name: str, cutoff: float = 1.0) -> Word | None:
    """Return what a name stands for; below a cutoff of 1 also one that is near ("epoch")."""
    close = difflib.get_close_matches(plain(name), PLAIN, n=1, cutoff=cutoff)
    return PLAIN[close[0]] if close else None


def closest(name: str, names: Iterable[str], cutoff: float = 0.6) -> str | None:
    """Return the name nearest to a misspelt one, or the one that has it as a word ("dim" -> "embed_dim").

    cutoff: how near, up to 1; only at 0.6 words count.
    """
    others = [other for other in names if other != name]
    by_plain = {plain(other): other for other in reversed(others)}
    close = difflib.get_close_matches(plain(name), by_plain, n=1, cutoff=cutoff)
    if close:
        return by_plain[close[0]]
    return next((other for other in others if cutoff == 0.6 and name in other.split("_")), None)


def accumulated(overrides: Sequence[str], batch_size: int | None) -> list[str]:
    """Return overrides with the accumulation of others as the micro-batches of a step.

    A batch size among them is that of others, a micro-batch; `batch_size` is that of the step.
    """
    parts = dict(override.partition("=")[::2] for override in overrides)
    size, steps = parts.get("data.batch_size", ""), parts.get("trainer.micro_batch_size", "")
    steps = steps.removeprefix("<data.batch_size/").removesuffix(">")
    if f"trainer.micro_batch_size=<data.batch_size/{steps}>" not in overrides or not steps.isdigit() or steps == "0":
        return list(overrides)
    if size.isdigit():
        parts |= {"data.batch_size": str(int(size) * int(steps)), "trainer.micro_batch_size": size}
    elif not size and batch_size is not None and batch_size % int(steps) == 0:
        parts["trainer.micro_batch_size"] = str(batch_size // int(steps))
    return [
        f"{key}={value}" if "=" in override else override for override, (key, value) in zip(overrides, parts.items())
    ]
