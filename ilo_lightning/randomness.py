"""Random numbers that depend on what they are for, and on nothing else.

A seed is the SHA-256 of a list of parts such as ``(seed, image content, "noise")``. So an image gets the same numbers
in any batch, on any device and in any order of work, and no generator state needs saving.
"""

from __future__ import annotations

import hashlib
import struct

import torch

SeedPart = str | int | bytes | float


def derive_seed(*parts: SeedPart) -> int:
    """A seed in [0, 2⁶³) from the SHA-256 of ``parts``.

    The encoding is unambiguous: every part carries its type and its length, so ``("ab", "c")``, ``("a", "bc")`` and
    ``(1,)``, ``(1.0,)``, ``("1",)`` all give different seeds. Python's ``hash()`` is not used: it changes per process.

    Raises:
        TypeError: if a part is not a str, int, bytes or float (booleans and tensors are refused).
    """
    digest = hashlib.sha256()
    for part in parts:
        tag, content = _encode(part)
        digest.update(tag + len(content).to_bytes(8, "big") + content)
    return int.from_bytes(digest.digest()[:8], "big") >> 1


def generator_for(*parts: SeedPart) -> torch.Generator:
    """A CPU generator seeded by :func:`derive_seed`; draw on the CPU, then move: devices draw different numbers.

    torch's CPU generator keeps only the low 32 bits of a seed, so of N generators about N²/2³³ pairs are the same.
    """
    return torch.Generator(device="cpu").manual_seed(derive_seed(*parts))


def _encode(part: SeedPart) -> tuple[bytes, bytes]:
    match part:
        case bool():
            pass
        case str():
            return b"s", part.encode()
        case bytes():
            return b"b", part
        case int():
            return b"i", str(part).encode()
        case float():
            return b"f", struct.pack(">d", part)
    raise TypeError(f"a seed is derived from str, int, bytes and float parts, got {part!r} of {type(part).__name__}")
