"""What the loggers are told, against what can be worked out from the points themselves."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.loggers import Logger

from ilo_lightning.method_config import method_from_config
from ilo_lightning.operators import Denoising, GaussianNoise, measure
from ilo_lightning.problem import InverseProblem
from ilo_lightning.solve import solve
from tests.networks import small_stylegan2


class Memory(Logger):
    def __init__(self) -> None:
        super().__init__()
        self.points: dict[int, dict[str, float]] = {}

    name = "memory"
    version = ""

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        assert step is not None
        self.points[step] = dict(metrics)

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...


class Watch(pl.Callback):
    """Keeps the stage, the point after each step, and the centre of its ball."""

    def __init__(self) -> None:
        self.seen: list[tuple[InverseProblem, dict[str, torch.Tensor], dict[str, torch.Tensor]]] = []

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: InverseProblem, *args: Any) -> None:
        point = {name: tensor.detach().clone() for name, tensor in pl_module.point.tensors.items()}
        self.seen.append((pl_module.stage, point, dict(pl_module.center.tensors)))


@pytest.mark.parametrize("radius", [0.0, 0.02, 10.0])
def test_distances_are_those_of_the_projected_points(radius: float):
    """In relative radii of the activation: 1 where the ball is small, far below where it is large, never above."""
    generator = small_stylegan2(dtype=torch.float64)
    operator, rngs = Denoising(generator.image_shape), [torch.Generator().manual_seed(i) for i in range(3)]
    truth = torch.rand(3, *generator.image_shape, dtype=torch.float64, generator=torch.Generator().manual_seed(9)) - 0.5
    measurement = measure(operator, GaussianNoise(0.0), truth, rngs)
    method = method_from_config(
        name="ilo", layers=[0, 1], steps=[4, 8], lr=0.1, free=["latent", "activation"], radius=radius
    )
    memory, watch = Memory(), Watch()
    found = solve(
        generator,
        operator,
        measurement,
        method,
        ["a", "b", "c"],
        callbacks=[watch],
        loggers=[memory],
        log_every=3,
        trainer={"accelerator": "cpu"},
    )
    assert list(memory.points) == [0, 3, 6, 9, 11]
    histories = torch.stack([solution.history for solution in found.solutions])
    for step, point in memory.points.items():
        stage, tensors, center = watch.seen[step]
        assert point["data_fit"] == pytest.approx(float(histories[:, step].mean()))
        assert point["loss"] == pytest.approx(point["data_fit"])
        assert point["stage"] == (0 if step < 4 else 1) and point["layer"] == stage.layer
        assert ("distance_activation" in point) == (step >= 4)
        if step >= 4:
            moved = (tensors["activation"] - center["activation"]).abs().flatten(1).sum(1)
            size = radius * center["activation"].abs().flatten(1).sum(1)
            expected = moved / size if radius else torch.ones(3)
            assert point["distance_activation"] == pytest.approx(float(expected.mean()))
            assert point["surface_activation"] == pytest.approx(float((expected > 0.999).double().mean()))
    last = memory.points[11]
    if radius == 10:
        assert last["distance_activation"] < 0.5 and last["surface_activation"] == 0
    else:
        assert last["surface_activation"] == 1
    rates = [memory.points[step]["lr"] for step in (0, 3)]
    assert rates == pytest.approx([0.1 * method.schedule[0].factor(step) for step in (0, 3)])
