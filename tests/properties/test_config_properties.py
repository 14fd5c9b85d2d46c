"""Whatever is given as an override is composed or refused in words, and any path can be resumed."""

from __future__ import annotations

import contextlib
import itertools
import os

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from jepa import load_config
from jepa.config.build import to_plain
from jepa.config.compose import known_keys
from jepa.config.overrides import override_value, quoted, with_quoted_paths
from jepa.utils.errors import UserError

pytestmark = pytest.mark.faults

syntax = st.text("ab1=.,:'\"\\(){}[]$~+@/- \n\té", max_size=8)
texts = syntax | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
names = texts.filter(lambda name: name.strip("./") and not set(name) & set("/\0") and name not in ("auto", "null"))
numbers = itertools.count()


@given(names)
@example("a\\")
@example("it's")
@example("a\\'b")
@example("${oc.env:HOME}")
@example("\\${a}")
@example("1e3")
@example("true")
def test_quotes_give_a_value_back_unchanged(text):
    override = OverridesParser.create().parse_override(f"resume={quoted(text)}")
    config = OmegaConf.create({"resume": override.value()})
    assert config.resume == text
    assert override_value([f"resume={quoted(text)}"], "resume") == text


@pytest.fixture(scope="module")
def stored():
    """The configuration of a run."""
    return to_plain(load_config(["loss=mse"]))


@settings(max_examples=2)
@given(name=names, quote=st.sampled_from(["", "'", '"']))
@example(name="123", quote="")
@example(name="a=b,c(d", quote="")
@example(name="with größe", quote='"')
@example(name="it's", quote="'")
@example(name="a\\", quote="")
@example(name="${a}", quote="")
def test_any_folder_can_be_resumed(tmp_path, stored, name, quote):
    parent = tmp_path / f"{next(numbers)}"
    try:
        (parent / name).mkdir(parents=True)
    except (OSError, UnicodeError):
        return  # no name of a folder
    (parent / name / "config.yaml").write_text(OmegaConf.to_yaml(stored))
    given_name = quoted(name) if quote == "'" else f'"{name}"' if quote else name
    if quote == '"' and set(name) & set('\\"$'):
        return  # which ask for an escape within quotes
    before = os.getcwd()
    os.chdir(parent)
    try:
        config = load_config([f"resume={given_name}"])
        assert config.resume == name
        assert to_plain(config)["loss"] == stored["loss"]
        assert override_value(with_quoted_paths([f"resume={given_name}"]), "resume") == name
    finally:
        os.chdir(before)


keys = st.sampled_from([*known_keys(), "resume", "init_from", "hydra.run.dir", "hydra/launcher"])
signs = st.sampled_from(["", "", "", "+", "++", "~"])
values = syntax | texts | st.sampled_from(["null", "1", "[1,2]", "{a:1}", "${x}", "choice(1,2)", "1,2"])
overrides = st.builds("{}{}={}".format, signs, keys, values) | st.builds("~{}".format, keys) | texts


@settings(max_examples=25)
@given(st.lists(overrides, min_size=1, max_size=2))
@example([""])
@example(["resume=\0"])
@example([f"resume={'a' * 300}"])
@example(["init_from=\0"])
@example(["=1"])
@example(["data=1"])
@example(["trainer=null"])
@example(["trainer.seed={a:1}"])
@example(["+trainer._target_=1"])
@example(["model=[a"])
@example(["data._target_=[]", "data.x=1"])
def test_an_override_is_composed_or_refused_in_words(given_overrides):
    with contextlib.suppress(UserError):
        assert isinstance(load_config(given_overrides), DictConfig)
