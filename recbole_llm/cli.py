"""The commands: ``run_recbole`` and ``recbole-llm``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
import yaml
from recbole import quick_start

from recbole_llm import cold_split, importing, serving_commands
from recbole_llm.errors import RecboleLLMError, SettingsError
from recbole_llm.host import split, tune
from recbole_llm.host.run import run
from recbole_llm.models import MODELS

_FLAGS = ("model", "dataset", "config_files", "nproc", "ip", "port", "world_size", "group_offset")


def run_recbole_command(arguments: Sequence[str] | None = None) -> int:
    """``run_recbole --model=… --dataset=… [--key=value …]``."""
    return _guarded(lambda: _run_recbole(sys.argv[1:] if arguments is None else arguments))


def recbole_llm_command(arguments: Sequence[str] | None = None) -> int:
    """``recbole-llm import …``, ``split …``, ``recommend …``, ``export …`` and ``tune …``."""
    return _guarded(lambda: _recbole_llm(sys.argv[1:] if arguments is None else arguments))


def _guarded(command: Callable[[], int]) -> int:
    try:
        return command()
    except RecboleLLMError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        pass  # with its frames the open progress bars end, which would write after the line below
    # A bar that was stopped while it ended has left its line open.
    print("\nstopped by Ctrl-C; what was saved before is kept", file=sys.stderr)
    return 130


def parse_arguments(arguments: Sequence[str]) -> dict[str, str]:
    """``--key=value`` arguments; RecBole's own flags may have a blank instead of the sign.

    Raises:
        SettingsError: an argument that RecBole would drop in silence.
    """
    values: dict[str, str] = {}
    rest = list(arguments)
    while rest:
        argument = rest.pop(0)
        name, sign, value = argument.removeprefix("--").partition("=")
        if not argument.startswith("--") or not name:
            raise SettingsError(f"cannot read `{argument}`; settings look like --key=value")
        if not sign:
            if not rest or rest[0].startswith("--"):
                raise SettingsError(f"`--{name}` has no value; write --{name}=value")
            if name not in _FLAGS:
                raise SettingsError(f"write --{name}={rest[0]}: with a blank it would be dropped")
            value = rest.pop(0)
        if values.get(name, value) != value:
            raise SettingsError(f"`--{name}` is given twice: {values[name]} and {value}")
        values[name] = value
    return values


def _run_recbole(arguments: Sequence[str]) -> int:
    if {"-h", "--help"} & set(arguments):
        print(
            "run_recbole --model=NAME --dataset=NAME [--config_files='a.yaml b.yaml'] [--key=value]"
        )
        return 0
    values = parse_arguments(arguments)
    files = values.pop("config_files", "").split()
    # A file may say what it is for, as `best.yaml` of a study does.
    named = {name: value for file in files for name, value in _named_in(file).items()}
    model = values.pop("model", named.get("model", "BPR"))
    dataset = values.pop("dataset", named.get("dataset", "ml-100k"))
    parallel = {name: values.pop(name) for name in _FLAGS if name in values}
    if _whole_number("nproc", parallel.get("nproc", "1")) > 1:
        _run_in_parallel(model, dataset, files, values, parallel)
        return 0
    saved = values.pop("saved", "True").lower() == "true"
    run(model, dataset, files, values, saved=saved)
    return 0


def _named_in(file: str) -> dict[str, str]:
    """The model and the data set that a file of settings names; a bad file is found later."""
    try:
        settings = yaml.safe_load(Path(file).read_text(encoding="utf-8"))
    except (OSError, ValueError, yaml.YAMLError):
        return {}
    named = settings if isinstance(settings, dict) else {}
    return {name: str(named[name]) for name in ("model", "dataset") if name in named}


def _run_in_parallel(
    model: str, dataset: str, files: list[str], values: dict[str, str], flags: dict[str, str]
) -> None:
    if model in MODELS:
        raise SettingsError(f"`nproc`: {model} is not trained by gradients; it takes one process")
    if not torch.cuda.is_available():
        raise SettingsError("`nproc`: RecBole trains in parallel on CUDA only; leave it out")
    numbers = {
        name: _whole_number(name, flags[name]) for name in flags if name not in ("ip", "port")
    }
    quick_start.run(
        model,
        dataset,
        config_file_list=files,
        config_dict=values,
        ip=flags.get("ip", "localhost"),
        port=flags.get("port", "5678"),
        **numbers,
    )


def _whole_number(flag: str, value: str) -> int:
    if not value.isdigit():
        raise SettingsError(f"`{flag}` must be a whole number, got {value!r}")
    return int(value)


def _recbole_llm(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(prog="recbole-llm")
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("import", help="make atomic files of your own tables")
    importing.add_arguments(command)
    command.set_defaults(run=importing.run, takes_settings=False)
    # No abbreviations: a setting of RecBole's may start like an option.
    command = commands.add_parser(
        "split", help="make a split with cold items or users", allow_abbrev=False
    )
    cold_split.add_arguments(command)
    command.set_defaults(run=split.run, takes_settings=True)
    command = commands.add_parser("recommend", help="recommend from a saved model")
    serving_commands.add_recommend_arguments(command)
    command.set_defaults(run=serving_commands.recommend, takes_settings=False)
    command = commands.add_parser("export", help="write vectors for an index of inner products")
    serving_commands.add_export_arguments(command)
    command.set_defaults(run=serving_commands.export, takes_settings=False)
    command = commands.add_parser(
        "tune", help="search a model's settings by a study", allow_abbrev=False
    )
    tune.add_arguments(command)
    command.set_defaults(run=tune.tune, takes_settings=True)
    args, rest = parser.parse_known_args(arguments)
    if rest and not args.takes_settings:
        parser.error(f"unrecognized arguments: {' '.join(rest)}")
    args.settings = parse_arguments(rest)
    args.arguments = list(arguments)
    return args.run(args)


if __name__ == "__main__":
    sys.exit(run_recbole_command())
