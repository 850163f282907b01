"""Encoders by name: texts in, rows of length 1 out.

To add one, write a file with a class that does what :class:`Encoder` says and a factory, and add
a line to `ENCODERS`; or, from outside, call :func:`register`.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from recbole_llm.encoders.base import Encoder, EncoderOptions, NetworkOptions, TextRows
from recbole_llm.encoders.bert import build_bert
from recbole_llm.encoders.lexical import build_lexical
from recbole_llm.encoders.rows import narrow
from recbole_llm.errors import SettingsError, did_you_mean

__all__ = [
    "ENCODERS",
    "Encoder",
    "EncoderOptions",
    "NetworkOptions",
    "TextRows",
    "build",
    "narrow",
    "register",
]

#: Name -> factory; it gets what stands after the colon (None without one) and the options.
ENCODERS: dict[str, Callable[[str | None, EncoderOptions], Encoder]] = {
    "bert": build_bert,
    "lexical": build_lexical,
}

# What a bare path in the setting is a model of.
_OF_A_PATH = "bert"


def register(name: str, factory: Callable[[str | None, EncoderOptions], Encoder]) -> None:
    """Adds an encoder to `ENCODERS`.

    Args:
        name: the word for the setting ``encoder``.
        factory: called with what the user gave after ``name:`` (or None) and the options. It
            raises `SettingsError` where that cannot be right, and leaves slow work for later.

    Raises:
        ValueError: the name is taken, or the setting could not hold it.
        TypeError: ``factory`` cannot be called.
    """
    if not callable(factory):
        raise TypeError(f"encoder `{name}`: the factory must be callable, got {factory!r}")
    if name in ENCODERS:
        raise ValueError(f"encoder `{name}` is {ENCODERS[name]!r} already, got {factory!r} too")
    if not name.isidentifier():
        raise ValueError(f"an encoder's name is one word, got `{name}` for {factory!r}")
    ENCODERS[name] = factory


def build(spec: str, options: EncoderOptions) -> Encoder:
    """Makes the encoder that a user asks for; nothing slow is loaded yet.

    Args:
        spec: ``name`` or ``name:argument``, such as ``bert``, ``lexical``, ``bert:./my_model``. A
            bare folder or hub name (``organisation/model``) means ``bert:…``.
        options: how the run goes.

    Returns:
        An encoder, not fitted.

    Raises:
        SettingsError: there is no such encoder, or it cannot take that argument.
        TypeError: what a registered factory made is no encoder.
    """
    name, _, argument = spec.partition(":")
    if name not in ENCODERS and _is_path(name):
        name, argument = _OF_A_PATH, spec
    if name not in ENCODERS:
        raise SettingsError(
            f"`encoder`: there is no `{name}`; it is one of {', '.join(sorted(ENCODERS))}, or a "
            f"model's folder{did_you_mean(name, ENCODERS)}"
        )
    encoder = ENCODERS[name](argument or None, options)
    if not isinstance(encoder, Encoder):
        raise TypeError(f"encoder `{name}`: {ENCODERS[name]!r} made {encoder!r}, not an Encoder")
    return encoder


def _is_path(name: str) -> bool:
    return "/" in name or os.sep in name or (name != "" and Path(name).is_dir())
