# An image of internvideo_jax, for TPUs, GPUs or the CPU:
#
#     docker build --build-arg ACCELERATOR=tpu --build-arg EXTRAS=remote,text --tag IMAGE .
#
# ACCELERATOR is tpu, cuda or cpu; EXTRAS are those of pyproject.toml, with commas.
ARG PYTHON=3.12

FROM python:${PYTHON}-slim AS build
ARG ACCELERATOR=cpu
ARG EXTRAS=remote
ENV PIP_NO_CACHE_DIR=1 PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_ROOT_USER_ACTION=ignore
RUN python -m venv /venv
ENV PATH=/venv/bin:$PATH
WORKDIR /build
# The libraries first: a layer that a change of the code does not touch.
COPY pyproject.toml README.md LICENSE ./
RUN case "$ACCELERATOR" in cpu) extras="$EXTRAS" ;; tpu | cuda) extras="$ACCELERATOR,$EXTRAS" ;; \
      *) echo "ACCELERATOR=$ACCELERATOR: expected tpu, cuda or cpu" >&2; exit 2 ;; esac && \
    mkdir internvideo_jax data_pipelines && \
    touch internvideo_jax/__init__.py data_pipelines/__init__.py && \
    pip install --quiet ".[$extras]" && \
    pip uninstall --quiet --yes internvideo-jax && \
    rm -rf build internvideo_jax data_pipelines internvideo_jax.egg-info
COPY configs configs
COPY data_pipelines data_pipelines
COPY internvideo_jax internvideo_jax
RUN pip install --quiet --no-deps .

FROM python:${PYTHON}-slim
COPY --from=build /venv /venv
ENV PATH=/venv/bin:$PATH PYTHONUNBUFFERED=1
RUN useradd --create-home --uid 1000 ivj
USER ivj
WORKDIR /home/ivj
# No entry point: launchers and `docker run IMAGE ivj train ...` give the whole command.
CMD ["ivj", "--help"]
