# CPU:  docker build -t robench .
# CUDA: docker build -t robench --build-arg TORCH_INDEX=https://pypi.org/simple .   (then docker run --gpus all)
FROM python:3.11-slim
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
# OpenCV, which makes the corruptions of ImageNet-C, needs these libraries of the system. Debian removes old versions of
# packages, and pyproject.toml holds those of Python's, so none is pinned here.
# hadolint ignore=DL3008
RUN apt-get update && apt-get install -y --no-install-recommends libgl1 libglib2.0-0 && rm -rf /var/lib/apt/lists/*
WORKDIR /robench
COPY . .
# hadolint ignore=DL3013
RUN pip install --no-cache-dir --index-url "$TORCH_INDEX" --extra-index-url https://pypi.org/simple torch torchvision \
  && pip install --no-cache-dir .
RUN useradd --create-home --uid 1000 robench
USER 1000
WORKDIR /home/robench
ENTRYPOINT ["robench"]
CMD ["--help"]
