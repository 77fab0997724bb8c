"""The part of the packaging that pyproject.toml cannot say: found packages together with the mapping of two folders.

``conf/`` and ``cuda/`` stay at the top of the repository, where people look for them, and are installed as
``ilo_lightning.conf`` and ``ilo_lightning.cuda``.
"""

from setuptools import find_packages, setup

FOLDERS = {"ilo_lightning.conf": "conf", "ilo_lightning.cuda": "cuda"}

setup(packages=[*find_packages(include=["ilo_lightning", "ilo_lightning.*"]), *FOLDERS], package_dir=FOLDERS)
