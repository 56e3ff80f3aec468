# Serving and training in a container. Everything is installed from the package index that pip is set to.
#   docker build --target cpu -t project .
#   docker run --rm -p 127.0.0.1:8000:8000 -v "$PWD/outputs:/work/outputs" project
#   docker run --rm --no-healthcheck -v "$PWD/outputs:/work/outputs" project project-train model=cnn
#   docker build --target cuda -t project:cuda . && docker run --rm --gpus all … project:cuda
# For x86-64, PyPI's torch includes CUDA. An index with CPU wheels makes the CPU image smaller by gigabytes:
#   docker build --target cpu --build-arg PIP_EXTRA_INDEX_URL=INDEX -t project .
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG PIP_EXTRA_INDEX_URL=
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1
WORKDIR /build
RUN python -m venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH
COPY pyproject.toml README.md ./
COPY conf conf
COPY src src
# hadolint ignore=DL3013
RUN pip install ".[serve]" \
    && python -m compileall -q /opt/venv/lib

FROM python:${PYTHON}-slim AS cpu
# A user without rights, whose number is that of the first user of most machines: mounted folders stay writable.
RUN useradd --uid 1000 --create-home project \
    && mkdir -p /work/outputs /work/data \
    && chown -R project:project /work
COPY --from=build /opt/venv /opt/venv
ENV PATH=/opt/venv/bin:$PATH PYTHONUNBUFFERED=1
WORKDIR /work
USER 1000
EXPOSE 8000
VOLUME ["/work/outputs", "/work/data"]
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=120s \
    CMD ["python", "-m", "project.inference.serve.health", "http://127.0.0.1:8000"]
CMD ["project-serve", "run=last", "host=0.0.0.0", "port=8000"]

FROM cpu AS cuda
# The CUDA libraries come with torch; the driver is that of the machine (NVIDIA's container runtime).
ENV NVIDIA_VISIBLE_DEVICES=all NVIDIA_DRIVER_CAPABILITIES=compute,utility
CMD ["project-serve", "run=last", "host=0.0.0.0", "port=8000", "accelerator=cuda"]
