"""State dicts from disk, for networks whose code the user has."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor, nn

from .containers import find, open_checkpoint, sha256
from .stored import CheckpointError, StoredTensor


def read_state_dict(checkpoint: str | Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The tensors of a ``.safetensors`` file or of a state dict that ``torch.save`` wrote, and their provenance
    (path and SHA-256). Nothing that a file carries is executed.

    Raises:
        CheckpointError: if the file is missing, damaged, or holds something else.
    """
    try:
        path = find(checkpoint)
        with open_checkpoint(path) as content:
            found = _state_dict(content.data)
            if found is None and isinstance(content.data, dict):  # beside an epoch, a loss, …
                inside = [part for value in content.data.values() if (part := _state_dict(value))]
                found = inside[0] if len(inside) == 1 else None
            if found is None:
                raise CheckpointError("holds no state dict (names with tensors)")
            tensors = {name: stored.load() for name, stored in found.items()}
        return tensors, {"checkpoint": str(checkpoint), "sha256": sha256(path)}
    except CheckpointError as error:
        raise CheckpointError(f"generator.checkpoint={checkpoint}: {error}") from error


def _state_dict(value: object) -> dict[str, StoredTensor] | None:
    if isinstance(value, dict) and value and all(isinstance(part, StoredTensor) for part in value.values()):
        return {str(name): part for name, part in value.items()}
    return None


def load_weights(network: nn.Module, checkpoint: str | Path) -> dict[str, str]:
    """Load a file's tensors into a network; returns their provenance.

    Raises:
        CheckpointError: if the file can't be read, or its names or shapes differ from the network's.
    """
    tensors, provenance = read_state_dict(checkpoint)
    expected = {name: tuple(tensor.shape) for name, tensor in network.state_dict().items()}
    given = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    missing, unknown = [n for n in expected if n not in given], [n for n in given if n not in expected]
    other = [f"{n} {given[n]} for {expected[n]}" for n in expected if n in given and given[n] != expected[n]]
    differences = [
        f"{what} {', '.join(names[:3])}{' …' if len(names) > 3 else ''}"
        for what, names in (("lacks", missing), ("has unknown", unknown), ("has", other))
        if names
    ]
    if differences:
        raise CheckpointError(f"generator.checkpoint={checkpoint}: does not fit these blocks: {'; '.join(differences)}")
    network.load_state_dict(tensors)
    return provenance
