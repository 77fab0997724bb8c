"""What a command's exit code says. Interrupted commands exit with 128 + the signal."""

DONE, CRASHED, REFUSED, SOME_FAILED = 0, 1, 2, 3
REQUEUE = 75
"""Of a SLURM job in a container: all is saved, and since it can't ask SLURM itself, whoever started the container is to
put it back into the queue (conf/hydra/launcher/slurm_container.yaml does). EX_TEMPFAIL of sysexits.h."""


def of_many(codes: list[int]) -> int:
    """Of a command that did several things: that of all of them if it is one, the highest of an interruption, else 3:
    some failed, and the others are done."""
    interrupted = [code for code in codes if code > 128]
    if interrupted:
        return max(interrupted)
    return next(iter(codes), DONE) if len(set(codes)) <= 1 else SOME_FAILED
