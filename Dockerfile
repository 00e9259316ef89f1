# syntax=docker/dockerfile:1
# Images that the chart in helm/diffgemma runs; `make image TARGET=cpu` builds one.
#   build  diffgemma-engine and diffgemma-serve for GPUs, on NVIDIA's Triton image: what the chart runs
#   serve  without the packages that lower and compile: for engines built elsewhere (engine.source prebuilt or image)
#   cpu    both commands on a plain Python image, no GPU
# Each for linux/amd64 and linux/arm64. A release pins every base by its digest:
#   make image BUILD_ARGS='TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.09-py3@sha256:...'

# 26.09 is tritonserver 2.73.0, the newest; its Ubuntu 24.04 has the Python 3.12 that its own stub loads. (24.10, which is
# nvidia-pytriton 0.7.0's, has published vulnerabilities: SECURITY.md.)
ARG TRITON_IMAGE=nvcr.io/nvidia/tritonserver:26.09-py3
ARG PYTHON_IMAGE=docker.io/library/python:3.11.16-slim-bookworm@sha256:528257d48c1da0dcecc2e725d1ae34498d60c965f1241e39cd6a85a8859bdf84
ARG UV_IMAGE=ghcr.io/astral-sh/uv:0.11.7@sha256:240fb85ab0f263ef12f492d8476aa3a2e4e1e333f7d67fbdd923d00a506a516a

FROM ${UV_IMAGE} AS uv

# ---------------------------------------------------------------------------------------------------------------- cpu
FROM ${PYTHON_IMAGE} AS cpu-environment
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=/opt/diffgemma
RUN uv venv --python /usr/local/bin/python3.11 /opt/diffgemma
# torch first, from the index of its CPU builds: PyPI's x86_64 build is the CUDA one. A layer of its own: it seldom changes.
# hadolint ignore=DL3059
RUN uv pip install --index-url https://download.pytorch.org/whl/cpu torch==2.13.0
COPY pyproject.toml README.md LICENSE /src/
COPY nemo_diffgemma /src/nemo_diffgemma
COPY trtllm_build /src/trtllm_build
COPY triton_repo /src/triton_repo
RUN uv pip install '/src[serve,export]' torch==2.13.0

FROM ${PYTHON_IMAGE} AS cpu
# AOTInductor compiles the network's pieces with g++ where the engine is built. Versions: those of the pinned base's release.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 diffgemma \
    && useradd --uid 10001 --gid 10001 --home-dir /home/diffgemma --create-home --shell /usr/sbin/nologin diffgemma
COPY --from=cpu-environment /opt/diffgemma /opt/diffgemma
# hadolint takes the TOKEN in TOKENIZERS for a secret
# hadolint ignore=DL3064
ENV PATH=/opt/diffgemma/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TOKENIZERS_PARALLELISM=false
# the wheels of this platform are whole, before anybody pulls the image
RUN diffgemma-serve --help >/dev/null && diffgemma-engine --help >/dev/null
USER 10001:10001
WORKDIR /home/diffgemma
CMD ["diffgemma-serve", "--help"]

# ---------------------------------------------------------------------------------------------- serve and build: CUDA
FROM ${TRITON_IMAGE} AS cuda-environment
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
COPY --from=uv /uv /usr/local/bin/uv
ENV UV_COMPILE_BYTECODE=1 UV_LINK_MODE=copy UV_NO_CACHE=1 UV_PYTHON_DOWNLOADS=never VIRTUAL_ENV=/opt/diffgemma
# the base's own Python, which its stub loads
RUN uv venv --python /usr/bin/python3.12 /opt/diffgemma
# torch first, from the index that has CUDA 13 builds for both platforms: PyPI's arm64 build knows no GPU
# hadolint ignore=DL3059
RUN uv pip install --index-url https://download.pytorch.org/whl/cu130 torch==2.13.0
COPY pyproject.toml README.md LICENSE /src/
COPY nemo_diffgemma /src/nemo_diffgemma
COPY trtllm_build /src/trtllm_build
COPY triton_repo /src/triton_repo
RUN uv pip install '/src[serve,tensorrt-rtx]' torch==2.13.0
# One tritonserver an image, the base's: the wheel's and what that loads goes.
# hadolint ignore=DL3059
RUN site=/opt/diffgemma/lib/python3.12/site-packages \
    && rm -r "$site/pytriton/tritonserver" "$site/nvidia_pytriton.libs"

FROM cuda-environment AS build-environment
RUN uv pip install '/src[export]' torch==2.13.0

FROM ${TRITON_IMAGE} AS cuda
SHELL ["/bin/bash", "-o", "pipefail", "-c"]
# Triton (the language) compiles a launcher in C for each kernel where it runs, AOTInductor C++ where the engine is built.
# hadolint ignore=DL3008
RUN apt-get update \
    && apt-get install --yes --no-install-recommends g++ \
    && rm -rf /var/lib/apt/lists/*
RUN groupadd --gid 10001 diffgemma \
    && useradd --uid 10001 --gid 10001 --home-dir /home/diffgemma --create-home --shell /usr/sbin/nologin diffgemma
# hadolint ignore=DL3064
ENV PATH=/opt/diffgemma/bin:/opt/tritonserver/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1 \
    TOKENIZERS_PARALLELISM=false
# the base's entrypoint prints a banner and checks licences; the chart names its commands
ENTRYPOINT []
WORKDIR /home/diffgemma
CMD ["diffgemma-serve", "--help"]

FROM cuda AS build
COPY --from=build-environment /opt/diffgemma /opt/diffgemma
RUN diffgemma-serve --help >/dev/null && diffgemma-engine --help >/dev/null
USER 10001:10001

FROM cuda AS serve
COPY --from=cuda-environment /opt/diffgemma /opt/diffgemma
# a stub whose libraries are missing would only be noticed when the first model loads
RUN diffgemma-serve --help >/dev/null \
    && ldd /opt/tritonserver/backends/python/triton_python_backend_stub >/tmp/libraries \
    && ! grep 'not found' /tmp/libraries && rm /tmp/libraries
USER 10001:10001
