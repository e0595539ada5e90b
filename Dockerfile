# One image that trains and serves: `docker run IMAGE train`, `docker run IMAGE serve`.
# Any Debian or Ubuntu base with Python 3.11 to 3.13 in its packages will do. CUDA's libraries come
# with the PyTorch wheels, the driver from the host.
ARG BASE_IMAGE=nvidia/cuda:13.0.3-base-ubuntu24.04

FROM ${BASE_IMAGE} AS python
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*

FROM python AS venv
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv
RUN python3 -m venv /opt/venv
COPY requirements.lock /tmp/
RUN /opt/venv/bin/pip install --require-hashes --no-compile --no-cache-dir -r /tmp/requirements.lock \
 && find /opt/venv -name __pycache__ -prune -exec rm -r {} +
# Bytecode of what `serve` imports, and of nothing else: 22 MB that halve the time to the first ping.
RUN /opt/venv/bin/python -c "import torch, safetensors.torch, pydantic, PIL.Image, flask, gunicorn.app.wsgiapp, gunicorn.workers.gthread"

FROM python AS program
COPY --from=venv /opt/venv /opt/venv
# /opt/ml belongs to the platform, so the program is elsewhere. HOME is writable for every user.
ENV PATH=/opt/program/container:/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NO_ALBUMENTATIONS_UPDATE=1 \
    ALBUMENTATIONS_OFFLINE=1 \
    ALBUMENTATIONS_NO_TELEMETRY=1
WORKDIR /opt/program
COPY pyproject.toml requirements.txt README.md LICENSE ./
COPY code/ code/
RUN pip install --no-deps --no-build-isolation --no-compile --no-cache-dir --editable . \
 && chmod -R a+rX .
COPY --chmod=755 container/ container/

FROM program AS test
COPY requirements/ requirements/
COPY requirements.lock ./
RUN pip install --require-hashes --no-compile --no-cache-dir -r requirements/dev.lock
COPY Makefile ./
COPY tests/ tests/
# Whoever runs it: the folder belongs to root.
ENV HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis
CMD ["pytest", "-p", "no:cacheprovider"]

# The last stage is what a build without --target makes: the product, without tests.
FROM program
CMD ["train"]
