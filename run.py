"""Reconstruct images: ``python run.py task=inpainting data.path=FOLDER`` (see README; ``--help`` lists the options)."""

import sys

from ilo_lightning.cli import main

if __name__ == "__main__":
    main(["solve", *sys.argv[1:]])
