# ilo-lightning with its CUDA kernels compiled:   docker build -t ilo .   docker run --gpus all ilo solve task=denoising …
#
# Not built by its authors, who have no container engine at hand: tests/test_container.py runs the same commands in a
# fresh environment, without the first (the system's packages) and without a GPU.
FROM nvidia/cuda:12.8.1-devel-ubuntu22.04

RUN apt-get update && apt-get install -y --no-install-recommends g++ git python3-dev python3-venv
COPY . /opt/ilo-lightning
ENV TORCH_CUDA_ARCH_LIST="8.0;9.0" CUDA_HOME=/usr/local/cuda TORCH_EXTENSIONS_DIR=/opt/kernels
ENV PATH=/opt/ilo/bin:$PATH
RUN python3 -m venv /opt/ilo
RUN /opt/ilo/bin/python -m pip install --no-cache-dir "/opt/ilo-lightning[slurm]"
RUN ilo build-ops cpu cuda
RUN ilo --version

ENTRYPOINT ["ilo"]
