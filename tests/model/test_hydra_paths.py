"""Paths on the command line mean themselves, whatever characters they have."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import example, given, settings
from hypothesis import strategies as st

from nemo_diffgemma.errors import FieldError
from nemo_diffgemma.hydra_config import compose_config
from nemo_diffgemma.hydra_paths import check_paths, quote_paths
from nemo_diffgemma.training.config import CONF, load_config

PARSER = OverridesParser.create()
NAMES = st.text(st.characters(exclude_characters="\n\r\0", exclude_categories=["Cs"]), min_size=1, max_size=12).filter(
    lambda name: (
        name.strip() != "" and name != "null" and name[0] not in "~'\"" and not name.endswith("/") and "/.." not in name
    )
)


@settings(max_examples=300, deadline=None)
@given(name=NAMES)
@example(name="a b")
@example(name="a=b,c#d")
@example(name="[x] y")
@example(name='it\'s "so"')
@example(name="größe/日本")
@example(name="back\\slash\\'s\\")
@example(name="$HOME: 5%")
@example(name="1e5")
@example(name="true")
def test_any_name_is_read_as_it_is(name: str) -> None:
    (quoted,) = quote_paths([f"run={name}"])
    assert str(PARSER.parse_override(quoted).value()) == name
    # processes started from here read what has been quoted
    assert quote_paths([quoted]) == [quoted]


@settings(max_examples=150, deadline=None)
@given(names=st.lists(NAMES.filter(lambda n: "," not in n and n.strip() == n and n[0] != "["), min_size=1, max_size=3))
@example(names=["a b.jsonl", "c=d.jsonl"])
def test_a_list_is_a_list_of_such_names(names: list[str]) -> None:
    (quoted,) = quote_paths([f"data.train=[{','.join(names)}]"])
    assert [str(item) for item in PARSER.parse_override(quoted).value()] == names
    assert quote_paths([quoted]) == [quoted]


@pytest.mark.parametrize(
    ("given", "meant"),
    [
        ("run='a b'", "a b"),
        ('run="a,b"', "a,b"),
        ("run=a/", "a"),
        ("run=/", "/"),
        ("run=/a/../b/c", "/b/c"),
        ("run=../c/..d", "../c/..d"),
        ("run=null", "None"),
        ("run='it", "'it"),
        ("data.train=[a b,'c,d', e/ ]", "['a b', 'c,d', 'e']"),
        ("data.train=[ a , ' b']", "['a', ' b']"),
        ("data.train=[ ]", "[]"),
        ("data.train=[ab]*.jsonl", "[ab]*.jsonl"),
        ("data.train=a.jsonl,b.jsonl", "a.jsonl,b.jsonl"),
        ("checkpoint=[x]", "[x]"),
        ("calibration=a=b", "a=b"),
    ],
)
def test_what_hydra_has_a_grammar_for_is_read_by_it(given: str, meant: str) -> None:
    (quoted,) = quote_paths([given])
    assert str(PARSER.parse_override(quoted).value()) == meant


def test_home_is_found_and_others_values_are_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    assert quote_paths(["run=~/a b", "out=~", "optim.lr=~/1", "data.train=[~/x,y]", "resume"]) == [
        "run='/home/me/a b'",
        "out='/home/me'",
        "optim.lr=~/1",
        "data.train=['/home/me/x','y']",
        "resume",
    ]


def test_a_file_that_is_called_like_a_list_or_a_quotation_is_that_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("[a]", "'b'"):
        (tmp_path / name).touch()
        (quoted,) = quote_paths([f"data.train={name}"])
        assert str(PARSER.parse_override(quoted).value()) == name


def test_spaces_around_an_item_are_part_of_a_name_that_has_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (" a", " b", "b"):
        (tmp_path / name).touch()
    assert quote_paths(["data.train=[ a, b]"]) == ["data.train=[' a','b']"]


@pytest.mark.parametrize("given", ["run=", "output= ", "data.train="])
def test_an_empty_path_is_refused(given: str) -> None:
    with pytest.raises(FieldError, match=r"cannot be used; allowed: a path; fix: pass .*unset variable"):
        quote_paths([given])


@pytest.mark.parametrize("given", ["[a,]", "[,a]", "[a,,b]", "[ , ]"])
def test_an_empty_item_is_refused(given: str) -> None:
    with pytest.raises(FieldError, match=r"^data.train: .*allowed: a list of paths, none empty; fix: pass"):
        quote_paths([f"data.train={given}"])


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become a user who may not enter a folder")
@pytest.mark.parametrize("key", ["held_out", "checkpoint", "output"])
def test_a_folder_that_may_not_be_entered_is_refused(key: str, tmp_path: Path) -> None:
    (closed := tmp_path / "closed").mkdir()
    closed.chmod(0o700)
    for place in (tmp_path, *tmp_path.parents):  # pytest's own are its user's alone
        if place.stat().st_uid == 0 and place.name.startswith(("pytest-", tmp_path.name)):
            place.chmod(0o755)
    os.seteuid(65534)
    try:
        for path in (closed, closed / "file.jsonl"):
            with pytest.raises(
                FieldError, match=rf"^{key}: .*Permission denied.*folders user \d+ may enter; fix: pass"
            ):
                check_paths({key: str(path)})
    finally:
        os.seteuid(0)


def test_paths_come_through_to_the_configuration(tmp_path: Path, text_checkpoint: Path) -> None:
    names = ["a=b, c#d.jsonl", 'e\'f "g" [h].jsonl']
    for name in names:
        (tmp_path / name).write_text("{}\n")
    options = ["data=chat", "data.max_tokens=64", f"init_from={text_checkpoint}/", f"run={tmp_path}/r=1, #2/"]
    config = load_config([*options, f"data.train={tmp_path}/{names[0]}"])
    assert config.data.train == (tmp_path / names[0],)
    assert (config.run, config.output) == (tmp_path / "r=1, #2", tmp_path / "r=1, #2" / "checkpoint")
    assert config.init_from == text_checkpoint
    listed = f"['{tmp_path}/{names[0]}',{tmp_path}/{names[1]}]"
    assert load_config([*options, f"data.train={listed}"]).data.train == tuple(tmp_path / name for name in names)
    assert load_config([*options, f"data.train={tmp_path}/*.jsonl"]).data.train == tuple(tmp_path / n for n in names)


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("data.train", r"^command line: 'data.train'.*key=value"),
        ("+x=1", r"^command line: '\+x=1'.*of a key that there is.*fix: pass x=1$"),
        ("~optim", r"^command line: '~optim'.*fix: leave it out$"),
        ("=3", r"^command line: '=3'.*key=value"),
        ("optim.lr=1,2", r"^optim.lr: '1,2'.*allowed: one value; fix: pass one, or quote it"),
        ("optim.lr=[", r"^optim.lr: '\['.*a value that Hydra reads.*fix: quote it"),
        ("run=a${b}", r"^run: .*Interpolation key 'b' not found.*fix: write \\\$\{"),
        ("optim.lr=???", r"^optim.lr: '\?\?\?'.*still missing; fix: leave it out$"),
        ("optim.betas=[0.9,???]", r"^optim.betas: .*still missing; fix: leave it out$"),
        ("x=1", r"^x: '1'.*allowed: model, data, .*threads; fix: see --help$"),
        ("data.train.foo=3", r"^data.train.foo: '3'.*allowed: data.train, .*fix: pass data.train=\.\.\.$"),
    ],
)
def test_a_broken_override_is_one_line(override: str, said: str) -> None:
    with pytest.raises(FieldError, match=said) as caught:
        compose_config(CONF, "train", [override])
    assert "\n" not in str(caught.value)
