# One image that trains and serves: `docker run IMAGE train`, `docker run IMAGE serve`.
# Any Debian or Ubuntu base with Python 3.11 to 3.13 in its packages will do. CUDA's libraries come
# with the PyTorch wheels, the driver from the host.
ARG BASE_IMAGE=nvidia/cuda:13.0.3-base-ubuntu24.04
# cu130: drivers from 580. cu126: drivers from 525 and cards before Turing. cpu: no GPU; see docs/start.md.
ARG TORCH_CUDA=cu130

# What platforms run, and what the wheels are for, wherever the image is built.
FROM --platform=linux/amd64 ${BASE_IMAGE} AS python
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3 \
 && rm -rf /var/lib/apt/lists/* /var/cache/apt/* /var/log/*

FROM python AS empty-venv
RUN apt-get update \
 && DEBIAN_FRONTEND=noninteractive apt-get install -y --no-install-recommends python3-venv
RUN python3 -m venv /opt/venv

FROM empty-venv AS wheels-cu130
COPY requirements.lock /tmp/
RUN /opt/venv/bin/pip install --require-hashes --no-compile --no-cache-dir -r /tmp/requirements.lock

# Of the other builds: everything but PyTorch, which has no hashes there.
FROM empty-venv AS without-torch
COPY requirements-cpu.lock /tmp/
RUN /opt/venv/bin/pip install --require-hashes --no-compile --no-cache-dir -r /tmp/requirements-cpu.lock

# PyTorch in the locked version from TORCH_INDEX, an index of its builds for CUDA 12.6.
FROM without-torch AS wheels-cu126
ARG TORCH_INDEX
COPY requirements.lock /tmp/
RUN : "${TORCH_INDEX:?name the index of the builds for CUDA 12.6}" \
 && sed -nE 's/^((torch|torchvision)==[^ ]+).*/\1+cu126/p' /tmp/requirements.lock > /tmp/torch.txt \
 && /opt/venv/bin/pip install --no-compile --no-cache-dir --index-url "$TORCH_INDEX" -r /tmp/torch.txt

# From TORCH_INDEX, an index of the builds without CUDA; or, in the version that is there, from the folder TORCH_WHEELS.
FROM without-torch AS wheels-cpu
ARG TORCH_INDEX
ARG TORCH_WHEELS
COPY requirements.lock ${TORCH_WHEELS:-requirements.lock} /tmp/torch/
RUN if [ -n "$TORCH_WHEELS" ]; then set -- --no-index --find-links /tmp/torch torch; \
    else : "${TORCH_INDEX:?name the index of the builds without CUDA, or TORCH_WHEELS, a folder with one of them}"; \
      set -- --index-url "$TORCH_INDEX" "$(sed -nE 's/^(torch==[^ ]+).*/\1+cpu/p' /tmp/torch/requirements.lock)"; fi \
 && /opt/venv/bin/pip install --no-compile --no-cache-dir "$@"

FROM wheels-${TORCH_CUDA:-cu130} AS venv
# What nothing here can use: packages' tests, PyTorch's test programs, and, without a compiler, headers, static
# libraries and Triton (`torch.compile`).
RUN cd /opt/venv/lib/python3*/site-packages \
 && rm -rf torch/include triton triton-*.dist-info nvidia/*/include \
 && find torch/bin -type f ! -name torch_shm_manager -delete \
 && find . -name '*.a' -delete \
 && find . -type d \( -name tests -o -name test -o -name __pycache__ \) -prune -exec rm -r {} +
# Bytecode of what `serve` imports, and of nothing else: 22 MB that halve the time to the first ping.
RUN /opt/venv/bin/python -c "import torch, safetensors.torch, pydantic, PIL.Image, flask, gunicorn.app.wsgiapp, gunicorn.workers.gthread"

FROM python AS program
COPY --from=venv /opt/venv /opt/venv
# /opt/ml belongs to the platform, so the program is elsewhere. HOME is writable for every user. NVIDIA's base would
# have its container runtime refuse an older driver without a line in the log; `train` and `serve` say what helps.
ENV PATH=/opt/program/container:/opt/venv/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin \
    HOME=/tmp \
    PYTHONUNBUFFERED=1 \
    PYTHONDONTWRITEBYTECODE=1 \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    NVIDIA_DISABLE_REQUIRE=true \
    NO_ALBUMENTATIONS_UPDATE=1 \
    ALBUMENTATIONS_OFFLINE=1 \
    ALBUMENTATIONS_NO_TELEMETRY=1
WORKDIR /opt/program
COPY pyproject.toml requirements.txt README.md LICENSE ./
COPY requirements/export.txt requirements/
COPY code/ code/
RUN pip install --no-deps --no-build-isolation --no-compile --no-cache-dir --editable . \
 && PYTHONDONTWRITEBYTECODE= python3 -c "import alexmri.serving.app, alexmri.serving.gunicorn_config, alexmri.serving.start, alexmri.model.predictor" \
 && chmod -R a+rX .
COPY --chmod=755 container/ container/
# A carriage return makes "no such file" of an executable's first line.
RUN if grep -rl "$(printf '\r')" container; then \
      echo "these files have Windows line endings; check them out with LF (.gitattributes)" >&2; exit 1; fi

FROM program AS test
COPY requirements/ requirements/
COPY requirements.lock ./
RUN pip install --require-hashes --no-compile --no-cache-dir -r requirements/dev.lock
COPY Makefile ./
COPY tests/ tests/
# Whoever runs it: the folder belongs to root.
ENV HYPOTHESIS_STORAGE_DIRECTORY=/tmp/hypothesis
CMD ["pytest", "-p", "no:cacheprovider"]

# What is in the image: `make sbom` takes the file out.
FROM program AS inventory
COPY requirements/sbom.txt bench/sbom.py /tmp/
RUN pip install --no-compile --no-cache-dir --target /tmp/tools -r /tmp/sbom.txt \
 && python3 /tmp/sbom.py /tmp/tools /tmp/alexmri.cdx.json

FROM scratch AS sbom
COPY --from=inventory /tmp/alexmri.cdx.json /

# The last stage is what a build without --target makes: the product, without tests.
FROM program
ARG SOURCE
ARG REVISION
LABEL com.amazonaws.sagemaker.capabilities.accept-bind-to-port=true \
      org.opencontainers.image.title=alexmri \
      org.opencontainers.image.version=0.2.0 \
      org.opencontainers.image.licenses=MIT \
      org.opencontainers.image.source=${SOURCE} \
      org.opencontainers.image.revision=${REVISION}
CMD ["train"]
