"""Errors on one line, as messages and records have them."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
    """Of an error's message, without a full stop; its type's name where it has none."""
    return next(iter(str(error).strip().splitlines()), "").rstrip(".") or type(error).__name__


def titled(error: BaseException) -> str:
    """``Type: first line of the message``."""
    name, first = type(error).__name__, first_line(error)
    return name if first == name else f"{name}: {first}"


def one_line(error: BaseException) -> str:
    """``Type: message``, all of it on one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
