"""Reconstruct images: ``python run.py task=inpainting data.path=FOLDER`` (see README; ``--help`` lists the options)."""

from ilo_lightning.main import entry_point

if __name__ == "__main__":
    entry_point()
