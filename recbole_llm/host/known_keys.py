"""Which models and setting keys RecBole 1.2.1 knows, read from its files without importing it.

RecBole's ``Config`` takes any key, and a misspelt one is as silent as a right one. A key counts as
known here when RecBole lists it, gives it a default, or has code that reads it.
"""

from __future__ import annotations

import ast
import importlib.util
import re
import sys
import warnings
from collections.abc import Iterable
from functools import cache
from pathlib import Path

import yaml

from recbole_llm.errors import SettingsError, did_you_mean

# What `run_recbole` itself takes; these never pass through the code that is scanned below.
_COMMAND_LINE_KEYS = frozenset(
    {"model", "dataset", "config_files", "nproc", "ip", "port", "world_size", "group_offset"}
)
# Attributes of a `Config` that are not settings; its methods are told from settings by their call.
_CONFIG_MEMBERS = frozenset(
    {"external_config_dict", "final_config_dict", "parameters", "yaml_loader"}
)
_CLASS = re.compile(r"^class (\w+)", re.MULTILINE)
_CONFIG_NAMES = frozenset({"config", "final_config_dict", "external_config_dict"})


def model_names() -> dict[str, str]:
    """RecBole's models, without importing any of them.

    Returns:
        The lower-case module name (``"lightgcn"``) to the class name (``"LightGCN"``).
    """
    return {module: class_name for module, (class_name, _) in _model_files().items()}


def recbole_keys(model_class_or_name: str | type) -> frozenset[str]:
    """The setting keys that have an effect when RecBole runs this model.

    Args:
        model_class_or_name: the name of one of RecBole's models, or any model class; a class
            also brings the keys that its own module and those of its base classes read.

    Returns:
        The keys of RecBole's ``argument_list`` and property files, those that its code outside
        the models reads, and those that the model's modules read.

    Raises:
        SettingsError: RecBole has no model of this name.
    """
    if isinstance(model_class_or_name, str):
        names_and_files = [_model_of_name(model_class_or_name)]
    else:
        names_and_files = _models_of_class(model_class_or_name)
    keys = set(_shared_keys())
    for class_name, _ in names_and_files:
        keys |= _default_keys(class_name)
    for path in _with_imported_models(file for _, file in names_and_files):
        keys |= _keys_read_by(path)
    return frozenset(keys)


def check_keys(
    given: Iterable[str], known: Iterable[str], *, strict: bool, model: str | None = None
) -> list[str]:
    """Report the keys that a user gave and nobody reads.

    Args:
        given: the user's keys, as in ``config.external_config_dict``.
        known: the keys that have an effect.
        strict: every unknown key is an error, as it is for our own models. Otherwise only one
            that is near a known key is, unless another of RecBole's models knows it: one file of
            settings may serve several models.
        model: the model's name, for the message.

    Returns:
        One warning for each unknown key that is let through, in the order given.

    Raises:
        SettingsError: there are keys that are not let through; its one line names them all.
    """
    known = frozenset(known)
    unknown = [key for key in dict.fromkeys(given) if key not in known]
    suggestions = {key: did_you_mean(key, sorted(known)) for key in unknown}
    if strict:
        errors = unknown
    else:
        errors = [key for key in unknown if suggestions[key] and key not in _keys_of_all_models()]
    if errors:
        raise SettingsError(
            "; ".join(f"unknown setting `{key}`{suggestions[key]}" for key in errors)
        )
    readers = "RecBole" if model is None else f"RecBole or its model {model}"
    return [
        f"setting `{key}` is not known to {readers}; it is ignored{suggestions[key]}"
        for key in unknown
    ]


@cache
def _recbole_folder() -> Path:
    spec = importlib.util.find_spec("recbole")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("needs `recbole`; run `pip install recbole==1.2.1`")
    return Path(spec.origin).parent


def properties_folder() -> Path:
    """RecBole's folder of default settings, of its models and of data sets it knows."""
    return _recbole_folder() / "properties"


@cache
def _model_files() -> dict[str, tuple[str, Path]]:
    """Lower-case module name -> class name and file, by the rule of RecBole's ``get_model``."""
    found = {}
    for path in sorted(_recbole_folder().glob("model/*_recommender/*.py")):
        # By the text: to parse every model's file takes most of a second of each start.
        for name in _CLASS.findall(path.read_text(encoding="utf-8")):
            if name.lower() == path.stem:
                found[path.stem] = (name, path)
    return found


def _model_of_name(name: str) -> tuple[str, Path]:
    found = _model_files().get(name.lower())
    if found is None:
        raise SettingsError(
            f"RecBole has no model `{name}`{did_you_mean(name, model_names().values())}"
        )
    if found[0] != name:  # get_model finds the module, and then no class of this name in it
        raise SettingsError(f"RecBole has no model `{name}`; did you mean `{found[0]}`?")
    return found


def _models_of_class(model_class: type) -> list[tuple[str, Path]]:
    """The class and its bases with the files of their modules, where they have one."""
    modules = ((base.__name__, sys.modules.get(base.__module__)) for base in model_class.__mro__)
    files = ((name, getattr(module, "__file__", None) or "") for name, module in modules)
    return [(name, Path(file)) for name, file in files if file.endswith(".py")]


@cache
def listed_keys() -> frozenset[str]:
    """The keys that RecBole lists for every model: most of those that anybody gives."""
    return _COMMAND_LINE_KEYS | _argument_list() | _yaml_keys(properties_folder() / "overall.yaml")


@cache
def _shared_keys() -> frozenset[str]:
    """The keys that are known whatever the model is."""
    keys = set(listed_keys())
    yaml_files = [
        *(properties_folder() / "dataset").glob("*.yaml"),
        *(properties_folder() / "quick_start_config").glob("*.yaml"),
    ]
    for path in yaml_files:
        # url.yaml and kg_url.yaml map data sets to addresses, they hold no settings.
        if not path.stem.endswith("url"):
            keys |= _yaml_keys(path)
    for path in _recbole_folder().rglob("*.py"):
        if not path.parent.name.endswith("_recommender"):
            keys |= _keys_read_by(path)
    return frozenset(keys)


@cache
def _keys_of_all_models() -> frozenset[str]:
    """The keys that any of RecBole's models knows."""
    keys: set[str] = set()
    for class_name, path in _model_files().values():
        keys |= _default_keys(class_name) | _keys_read_by(path)
    return frozenset(keys)


def _argument_list() -> set[str]:
    # Read as text: Config appends a data set's keys to the lists of the imported module.
    lists = [
        ast.literal_eval(node.value)
        for node in _parsed(_recbole_folder() / "utils" / "argument_list.py").body
        if isinstance(node, ast.Assign)
    ]
    return {key for names in lists for key in names}


def _default_keys(class_name: str) -> frozenset[str]:
    """The keys of a model's own property file; none where it has no such file."""
    for path in (properties_folder() / "model").glob("*.yaml"):
        # In lower case: the class LightGBM comes with lightgbm.yaml.
        if path.stem.lower() == class_name.lower():
            return _yaml_keys(path)
    return frozenset()


@cache
def _yaml_keys(path: Path) -> frozenset[str]:
    return frozenset(yaml.safe_load(path.read_text(encoding="utf-8")) or ())


def _with_imported_models(paths: Iterable[Path]) -> set[Path]:
    """The files, and those of RecBole's models that they import (ConvNCF builds a BPR)."""
    waiting = list(paths)
    reached: set[Path] = set()
    while waiting:
        path = waiting.pop()
        if path not in reached:
            reached.add(path)
            waiting += _imported_models(path)
    return reached


@cache
def _imported_models(path: Path) -> frozenset[Path]:
    model_files = _model_files()
    imported = set()
    for node in ast.walk(_parsed(path)):
        match node:
            case ast.ImportFrom(module=str(module), names=imports) if module.startswith(
                "recbole.model."
            ):
                # The model is the module, or a name that the package re-exports.
                names = {module.rpartition(".")[2], *(alias.name.lower() for alias in imports)}
                imported |= {model_files[name][1] for name in names & model_files.keys()}
    return frozenset(imported)


def _parsed(path: Path) -> ast.Module:
    with warnings.catch_warnings():
        # Escapes such as "\p" in RecBole's source; the category depends on Python's release.
        warnings.simplefilter("ignore", DeprecationWarning)
        warnings.simplefilter("ignore", SyntaxWarning)
        return ast.parse(path.read_text(encoding="utf-8"))


@cache
def _keys_read_by(path: Path) -> frozenset[str]:
    """The constant keys with which a file reads or sets a ``Config``."""
    nodes = list(ast.walk(_parsed(path)))
    called = {id(node.func) for node in nodes if isinstance(node, ast.Call)}
    attributes = {
        node.attr
        for node in nodes
        if isinstance(node, ast.Attribute)
        and id(node) not in called
        and node.attr not in _CONFIG_MEMBERS
        and _is_config(node.value)
    }  # config.key
    key_expressions = (expression for node in nodes for expression in _key_expressions(node))
    return frozenset(attributes) | {
        expression.value
        for expression in key_expressions
        if isinstance(expression, ast.Constant) and isinstance(expression.value, str)
    }


def _key_expressions(node: ast.AST) -> list[ast.expr]:
    """The expressions that stand where a ``Config`` or its dict takes a key."""
    match node:
        case ast.Subscript(value=config, slice=key) if _is_config(config):  # config["key"]
            return [key]
        case ast.Compare(left=key, ops=[ast.In() | ast.NotIn()], comparators=[config]) if (
            _is_config(config)
        ):  # "key" in config
            return [key]
        case ast.Call(func=ast.Attribute(value=config, attr="get"), args=[key, *_]) if _is_config(
            config
        ):  # config.final_config_dict.get("key")
            return [key]
    return []


def _is_config(node: ast.expr) -> bool:
    """Whether an expression is ``config``, ``self.config``, ``config.final_config_dict``, …."""
    match node:
        case ast.Name(id=name) | ast.Attribute(attr=name):
            return name in _CONFIG_NAMES
    return False
