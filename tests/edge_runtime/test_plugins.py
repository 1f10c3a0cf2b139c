"""Names found among installed entry points, and local `module:function` texts; what is not there is said plainly."""

from __future__ import annotations

import math

import pytest

from edge_runtime import plugins
from edge_runtime.errors import ConfigError, MissingPackageError
from edge_runtime.train.config import DATASETS, MODELS


def test_names_are_sorted_and_hold_what_the_package_registers() -> None:
    found = plugins.names(MODELS)
    assert found == sorted(found)
    assert {"char_gru", "digits_cnn", "lenet", "mlp", "watch_cnn"} <= set(found)


@pytest.mark.parametrize("group", [DATASETS, MODELS, "hedgerow.commands"])
def test_every_registered_name_loads(group: str) -> None:
    for name in plugins.names(group):
        assert plugins.load(group, name) is not None


def test_a_name_that_is_not_registered_is_refused_with_those_that_are() -> None:
    with pytest.raises(ConfigError, match=r"no 'leenet' among the installed hedgerow.models: .*lenet"):
        plugins.load(MODELS, "leenet")


def test_a_group_that_nobody_fills_is_empty() -> None:
    assert plugins.names("hedgerow.nothing") == []
    with pytest.raises(ConfigError, match="none"):
        plugins.load("hedgerow.nothing", "x")


def test_a_peers_word_is_never_taken_for_an_import_path() -> None:
    with pytest.raises(ConfigError):
        plugins.load(MODELS, "os:getcwd")


def test_load_entry_finds_the_named_object() -> None:
    assert plugins.load_entry("math:sqrt") is math.sqrt


@pytest.mark.parametrize(
    "entry", ["", "math", "math:", ":sqrt", "math.sqrt", "math:a.b", "math:sqrt()", "math:a:b", ".math:sqrt", "..:sqrt"]
)
def test_a_malformed_entry_is_refused_with_the_form(entry: str) -> None:
    with pytest.raises(ConfigError, match=r"package\.module:function"):
        plugins.load_entry(entry)


def test_an_entry_in_a_missing_module_says_what_is_missing() -> None:
    with pytest.raises(MissingPackageError, match="no_such_module_here"):
        plugins.load_entry("no_such_module_here.inner:make")


def test_an_entry_that_its_module_lacks_is_refused() -> None:
    with pytest.raises(ConfigError, match="module math has no squareroot"):
        plugins.load_entry("math:squareroot")
