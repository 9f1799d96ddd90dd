# The image of cluster.yaml and jobs/kubernetes/rayjob.yaml: `docker build --tag raygen:latest .`
# The wheels of torch bring cuBLAS, cuDNN and NCCL; `base` has the CUDA runtime and what the driver looks for, and is
# gigabytes smaller than `runtime`. Its version is that of cuda-toolkit in requirements.lock.
ARG CUDA=nvidia/cuda:13.2.1-base-ubuntu24.04

# Packages come from a stage of its own, so that neither the installer nor its caches are in the image.
FROM ${CUDA} AS packages
RUN apt-get update \
 && apt-get install --yes --no-install-recommends python3.12 python3.12-venv \
 && rm -rf /var/lib/apt/lists/*
RUN python3.12 -m venv /opt/venv && python3.12 -m venv /opt/uv \
 && /opt/uv/bin/python -m pip install --quiet --no-cache-dir 'uv>=0.5'
COPY requirements.lock /opt/requirements.lock
RUN /opt/uv/bin/uv pip install --quiet --no-cache --python /opt/venv/bin/python --compile-bytecode --require-hashes \
    -r /opt/requirements.lock

FROM ${CUDA}
# `ray up` copies its files with rsync into the container, and reaches the other nodes from it by ssh.
RUN apt-get update \
 && apt-get install --yes --no-install-recommends ca-certificates openssh-client python3.12 rsync \
 && rm -rf /var/lib/apt/lists/* \
 && useradd --create-home --uid 1001 raygen
COPY --from=packages /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:${PATH} \
    RAY_USAGE_STATS_ENABLED=0
# Code is last: a change of it makes layers of some megabytes, not of gigabytes.
WORKDIR /opt/raygen
COPY pyproject.toml README.md LICENSE ./
COPY jobs jobs
COPY raygen raygen
RUN python -m pip install --quiet --no-cache-dir --no-index --no-deps --no-build-isolation --editable . \
 && python -m compileall -q raygen
# By number, so that `runAsNonRoot` of Kubernetes can check it.
USER 1001
WORKDIR /home/raygen
CMD ["raygen", "--help"]
