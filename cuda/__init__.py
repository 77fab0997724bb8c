"""CUDA sources and the headers that the CPU build shares, installed as `ilo_lightning.cuda` (see `setup.py`)."""
