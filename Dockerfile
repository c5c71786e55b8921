# The image of Beam's Python workers (--sdk_container_image), and of the `imagebeam` command that launches them: the same
# packages on both sides, from the same lock as on a laptop.
#
#   docker build -t imagebeam:cpu .
#   docker build -t imagebeam:gpu --build-arg ACCELERATOR=gpu .
#   docker build -t imagebeam:tfio --target tfio --build-arg ACCELERATOR=tfio .    # docs/tensorflow_io.md
#   docker build -t imagebeam:rootless --target rootless .
#   docker build -t imagebeam:dataflow --target dataflow --build-arg ACCELERATOR=gpu .    # docs/dataflow.md
#
#   docker run --rm --entrypoint imagebeam imagebeam:cpu --help

# Beam's version is the lock's, Python's minor is the image's below: tests/project/test_project.py holds them together.
FROM apache/beam_python3.11_sdk:2.77.0 AS beam
FROM apache/beam_python3.11_sdk:2.72.0 AS beam-tfio


FROM python:3.11-slim-bookworm AS build
ARG ACCELERATOR=cpu
WORKDIR /src
RUN python -m venv /opt/imagebeam
ENV PATH=/opt/imagebeam/bin:$PATH
# The packages change less often than the project, so they are a layer of their own. The GPU lock brings CUDA and cuDNN as
# wheels; of the machine, only the driver is needed.
COPY requirements-build.lock requirements.lock requirements-gpu.lock requirements-tfio.lock ./
RUN case "$ACCELERATOR" in \
        cpu) lock=requirements.lock ;; \
        gpu) lock=requirements-gpu.lock ;; \
        tfio) lock=requirements-tfio.lock ;; \
        *) echo "ACCELERATOR is cpu, gpu or tfio. Received: $ACCELERATOR" >&2; exit 2 ;; \
    esac \
    && pip install --no-cache-dir --disable-pip-version-check --no-deps --require-hashes -r requirements-build.lock \
    && pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation --require-hashes -r "$lock"
COPY setup.py pyproject.toml README.md LICENSE ./
COPY imagebeam imagebeam
COPY pipelines pipelines
COPY transforms transforms
RUN pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation . \
    && pip check \
    && imagebeam --version


FROM python:3.11-slim-bookworm AS runtime
COPY --from=beam /opt/apache/beam /opt/apache/beam
COPY --from=build /opt/imagebeam /opt/imagebeam
# Beam's boot would make a new environment beside /opt/imagebeam, without its packages, unless told not to.
# /usr/local/nvidia is where Dataflow and GKE mount the driver; the NVIDIA_ variables ask Docker's runtime for it.
ENV PATH=/opt/imagebeam/bin:$PATH \
    RUN_PYTHON_SDK_IN_DEFAULT_ENVIRONMENT=1 \
    LD_LIBRARY_PATH=/usr/local/nvidia/lib64:/usr/local/nvidia/lib \
    NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility
ENTRYPOINT ["/opt/apache/beam/boot"]


# For Flink, Spark and Kubernetes, which mount nothing that belongs to root.
FROM runtime AS rootless
RUN useradd --create-home --uid 10001 imagebeam
USER 10001


# With tensorflow-io, for DICOM, OpenEXR and Radiance HDR: the oldest stack, whose workers' boot is Beam's of its version.
FROM runtime AS tfio
COPY --from=beam-tfio /opt/apache/beam /opt/apache/beam
RUN python -c "from importlib.metadata import version; version('tensorflow-io')"


# For Dataflow: a worker image that is a Flex Template's launcher too, so that both sides have the same packages.
FROM gcr.io/dataflow-templates-base/python311-template-launcher-base:20230622_RC00 AS template-launcher


FROM runtime AS dataflow
COPY --from=template-launcher /opt/google/dataflow/python_template_launcher /opt/google/dataflow/python_template_launcher
COPY deploy/dataflow/extract.py /opt/imagebeam/extract.py
ENV FLEX_TEMPLATE_PYTHON_PY_FILE=/opt/imagebeam/extract.py


# The default. It runs as root because Dataflow mounts the worker's folders under /var/opt, and the launcher's log folder,
# for root only.
FROM runtime AS worker
