"""What happens around a step: stages, constraints, best iterate, checkpoints, history, curves, pictures,
samples, progress, plug-and-play."""

from .best_iterate import BestIterate
from .checkpoint import ResumeCheckpoint
from .curves import Curves
from .discrepancy import Discrepancy
from .history import History
from .l1_projection import L1Projection
from .plug_and_play import PlugAndPlay
from .progress import Progress
from .samples import PosteriorSamples
from .sphere import Spheres
from .stage_ends import StageEnds
from .stage_schedule import StageSchedule

__all__ = [
    "BestIterate",
    "Curves",
    "Discrepancy",
    "History",
    "L1Projection",
    "PlugAndPlay",
    "PosteriorSamples",
    "Progress",
    "ResumeCheckpoint",
    "Spheres",
    "StageEnds",
    "StageSchedule",
]
