# The server of minillm.
#
#   docker build -t minillm:cpu --build-arg TORCH_INDEX=URL .    URL: PyTorch's index of wheels for CPUs, which are small
#   docker build -t minillm:gpu --target gpu .                   wheels with CUDA, and what Triton compiles with
#   docker run --rm -p 127.0.0.1:8000:8000 -v ./models:/models:ro minillm:cpu --weights /models/NAME
#
# Inside it listens to all; -p says to whom outside. Give --api-keys before that is more than this machine.

FROM python:3.12-slim AS base
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PYTHONUNBUFFERED=1
RUN useradd --uid 10001 --create-home minillm
WORKDIR /src
COPY pyproject.toml README.md LICENSE ./
COPY minillm minillm
COPY kernels kernels
COPY weights weights
VOLUME /models
EXPOSE 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=30s --timeout=5s --start-period=10m --retries=3 \
    CMD ["python", "-c", "import urllib.request as r; r.urlopen('http://127.0.0.1:8000/health', timeout=4)"]
ENTRYPOINT ["python", "-m", "minillm.serve", "--host", "0.0.0.0", "--port", "8000"]

FROM base AS gpu
RUN apt-get update \
    && apt-get install --yes --no-install-recommends gcc libc6-dev \
    && rm -rf /var/lib/apt/lists/*
RUN pip install '.[serve,gpu,spm]'
WORKDIR /home/minillm
USER minillm

FROM base AS cpu
ARG TORCH_INDEX=""
RUN pip install ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} 'torch>=2.11'
RUN pip install '.[serve,spm]'
WORKDIR /home/minillm
USER minillm
