"""Whether Weights & Biases can be reached: decided before any work, without ever asking, within seconds."""

from __future__ import annotations

import os
import re
import sys

from ..errors import first_line
from .base import LoggerError

MODES = ("online", "offline", "disabled")


def choose_mode(wanted: str | None) -> tuple[str, str | None]:
    """online, offline or disabled, and what is to be said about it; never asks, and waits seconds at most.

    Args:
        wanted: one of them, or None for ``WANDB_MODE`` and the settings that ``wandb online | offline`` keeps.

    Raises:
        LoggerError: if wandb is missing, the API key is malformed or W&B refuses it, or it is told to be online without
            one.
    """
    if "wandb" not in sys.modules:  # what an ancestor's W&B has left there may be gone by now
        os.environ.pop("WANDB_SERVICE", None)
    try:
        import wandb
        from wandb.errors import AuthenticationError
    except ImportError:
        raise LoggerError("logger=wandb: the package wandb is missing; pip install wandb") from None

    told = wanted or os.environ.get("WANDB_MODE")
    try:
        settings = wandb.setup(wandb.Settings(silent=True)).settings
    except Exception:  # WandbServiceConnectionError, of a private module: this process's own service has ended
        if os.environ.pop("WANDB_SERVICE", None) is None:
            raise
        settings = wandb.setup(wandb.Settings(silent=True)).settings
    mode = {"dryrun": "offline", "run": "online"}.get(told or settings.mode, told or settings.mode)
    if mode not in MODES:
        raise LoggerError(f"logger.mode={mode}: expected one of {', '.join(MODES)}")
    if mode != "online":
        return mode, None
    settings.mode = "online"  # or login() looks at WANDB_MODE, whatever we were told
    try:
        if wandb.login(prompt=False, verify=True):
            return "online", None
    except AuthenticationError as error:
        message = first_line(error)
        refused = re.search(r"error 40[13]", message)
        if refused or not message.startswith(("Failed to authenticate with", "An error occurred while checking")):
            reason = f"{settings.base_url} refuses the login ({refused[0]})" if refused else message
            raise LoggerError(
                f"logger=wandb: {reason}; correct WANDB_API_KEY or run `wandb login`, or use logger.mode=offline"
            ) from None
        remark = f"W&B: no answer from {settings.base_url}; logging offline, as WANDB_MODE=offline does at once"
        return "offline", remark
    if told == "online":
        raise LoggerError(
            "logger=wandb: told to be online, but not logged in; run `wandb login`, or use logger.mode=offline"
        )
    return "offline", None
