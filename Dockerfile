# syntax=docker/dockerfile:1
# The server, without weights: they come from the hub into /models when it first starts.
#   docker build -t chroma-plugin:gpu .                          PyTorch with its CUDA libraries
#   docker build -t chroma-plugin:cpu --build-arg DEVICE=cpu .   PyTorch for CPUs, a tenth of it
FROM python:3.11-slim-bookworm AS build
ARG DEVICE=gpu
WORKDIR /src
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
COPY constraints.txt ./
RUN --mount=type=cache,target=/root/.cache/pip \
    if [ "$DEVICE" = cpu ]; then export PIP_EXTRA_INDEX_URL=https://download.pytorch.org/whl/cpu; fi; \
    pip install --constraint constraints.txt torch
COPY pyproject.toml README.md LICENSE ./
COPY examples/pipecat_webrtc.py examples/
COPY chroma_plugin chroma_plugin
RUN --mount=type=cache,target=/root/.cache/pip \
    pip install --constraint constraints.txt ".[server]"

FROM python:3.11-slim-bookworm
RUN useradd --uid 10001 --create-home chroma && install --directory --owner chroma /voices /models
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH HF_HOME=/models PYTHONUNBUFFERED=1
USER 10001
WORKDIR /home/chroma
VOLUME ["/voices", "/models"]
EXPOSE 8000
HEALTHCHECK --interval=10s --timeout=3s --start-period=5m --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=2)"]
# Beyond its own machine the server needs $CHROMA_API_KEY: without one it says so and ends.
ENTRYPOINT ["chroma-plugin", "serve", "--host", "0.0.0.0", "--voices", "/voices"]
