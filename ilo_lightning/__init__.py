"""Intermediate Layer Optimization for inverse problems with deep generative models, on PyTorch Lightning.

The names below are loaded on first use: importing the package alone imports no PyTorch, and ``ilo --help`` is instant.
"""

from __future__ import annotations

import sys
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .building import load_method
    from .generators.base import LatentPoint, LayeredGenerator
    from .generators.checkpoints import load_generator
    from .generators.stylegan2 import StyleGAN2
    from .method import Method
    from .problem import InverseProblem
    from .schedule import Schedule, Stage
    from .solution import Solution
    from .solve import solve

__version__ = "0.2.0"

__all__ = [
    "InverseProblem",
    "LatentPoint",
    "LayeredGenerator",
    "Method",
    "Schedule",
    "Solution",
    "Stage",
    "StyleGAN2",
    "__version__",
    "load_generator",
    "load_method",
    "solve",
]

_MODULE_OF = {
    "InverseProblem": ".problem",
    "LatentPoint": ".generators.base",
    "LayeredGenerator": ".generators.base",
    "Method": ".method",
    "Schedule": ".schedule",
    "Solution": ".solution",
    "Stage": ".schedule",
    "StyleGAN2": ".generators.stylegan2",
    "load_generator": ".generators.checkpoints",
    "load_method": ".building",
    "solve": ".solve",
}


if not TYPE_CHECKING:  # a type checker would take every misspelt name for one of these

    def __getattr__(name: str) -> object:
        if name not in _MODULE_OF:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = getattr(import_module(_MODULE_OF[name], __name__), name)
        globals()[name] = value
        return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


class _Package(ModuleType):
    """``ilo_lightning.solve`` is the function, in whatever order modules are imported.

    Python binds a submodule in its package when it is first imported, which would put the module ``solve`` over the
    function ``solve``.
    """

    def __setattr__(self, name: str, value: object) -> None:
        if not (name in _MODULE_OF and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
