"""The Hydra configuration groups, installed as `ilo_lightning.conf` (see `setup.py`)."""
