# Images of photon-server and the photon command line. scripts/build_image builds them; docs/operate/install.md
# says how to run them.
#
#   cpu     the server
#   cuda    the same, and its engine for NVIDIA GPUs
#   model   a checkpoint: mounted as an image volume, or copied by an init container
#
# Base images are arguments: any Debian 12 or Ubuntu 24.04, and for `cuda` one of the same release with a CUDA 13
# toolkit. Where there is none, `--build-arg CUDA_IMAGE=cuda-toolkit` takes the toolkit of the stage of that name.
ARG BASE_IMAGE=ubuntu:24.04
ARG CUDA_IMAGE=nvidia/cuda:13.0.1-devel-ubuntu24.04

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS build
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
COPY scripts/install_deps /src/scripts/install_deps
RUN /src/scripts/install_deps --build
COPY . /src
WORKDIR /src
ARG SOURCE_DATE_EPOCH
ENV CCACHE_DIR=/ccache
RUN --mount=type=cache,target=/ccache \
    cmake --preset release -DBUILD_TESTING=OFF -DPHOTON_WERROR=OFF -DPHOTON_CUDA=OFF \
    && cmake --build --preset release --target photon-server photon \
    && install -s -D -t /out/bin build/release/server/photon-server build/release/client/photon \
    && deploy/image/runtime-packages /out/bin/* > /out/packages \
    && cp deploy/image/install-runtime /out/

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS cuda-toolkit
COPY deploy/image/install-cuda deploy/image/cuda-requirements.txt /
RUN /install-cuda /cuda-requirements.txt

# The engine alone: the programs are those of the other image.
# hadolint ignore=DL3006
FROM ${CUDA_IMAGE} AS build-cuda
SHELL ["/bin/bash", "-euo", "pipefail", "-c"]
COPY scripts/install_deps /src/scripts/install_deps
RUN /src/scripts/install_deps --build
COPY . /src
WORKDIR /src
ARG SOURCE_DATE_EPOCH
ENV PATH=/usr/local/cuda/bin:$PATH \
    CCACHE_DIR=/ccache
RUN --mount=type=cache,target=/ccache \
    cmake --preset release -DBUILD_TESTING=OFF -DPHOTON_WERROR=OFF -DPHOTON_CUDA=ON \
    && cmake --build --preset release --target photon_cuda_plugin \
    && install -s -D -t /out/lib build/release/engine/cuda/libphoton_cuda_plugin.so \
    && cp -L "$(ldd /out/lib/libphoton_cuda_plugin.so | awk '$1 ~ /cublasLt/ { print $3 }')" /out/lib/ \
    && deploy/image/cublas-spdx > /out/cublas.spdx

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS server
ARG SOURCE_DATE_EPOCH
ARG VERSION=0.1.0
RUN --mount=type=bind,from=build,source=/out,target=/out \
    /out/install-runtime /out/packages "${VERSION}"
COPY --from=build /out/bin/ /usr/local/bin/
COPY LICENSE /usr/share/photon/LICENSE
# All addresses, since a container has its own. Plaintext there has to be allowed, or TLS set up: the server does not
# start otherwise. Health is told on a port of its own, to probes without certificates too.
ENV PHOTON_MODEL=/models \
    PHOTON_LISTEN=0.0.0.0:50051 \
    PHOTON_HTTP_LISTEN=0.0.0.0:8000 \
    PHOTON_HEALTH_LISTEN=0.0.0.0:50052 \
    PHOTON_LOG_FORMAT=json
EXPOSE 50051 50052 8000
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["photon", "health", "--server", "127.0.0.1:50052", "--deadline", "3"]
ENTRYPOINT ["photon-server"]

# Labels come last, since the revision differs with every commit.
FROM server AS cpu
USER 65532:65532
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="photon" \
      org.opencontainers.image.description="Serves PHOTON language models over gRPC" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

FROM server AS cuda
COPY --from=build-cuda /out/lib/ /usr/local/lib/
# Of the libraries, those that the programs have must be all that the engine needs.
RUN --mount=type=bind,from=build-cuda,source=/out,target=/out \
    libraries=$(LD_LIBRARY_PATH=/usr/local/lib ldd /usr/local/lib/libphoton_cuda_plugin.so) \
    && case $libraries in *"not found"*) echo "$libraries" && exit 1 ;; esac \
    && cat /out/cublas.spdx >> /usr/share/photon/sbom.spdx
# What the container toolkit is to hand in: the driver's libraries.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LD_LIBRARY_PATH=/usr/local/lib \
    PHOTON_DEVICE=cuda
USER 65532:65532
ARG VERSION=0.1.0
ARG REVISION=unknown
LABEL org.opencontainers.image.title="photon-cuda" \
      org.opencontainers.image.description="Serves PHOTON language models over gRPC, on NVIDIA GPUs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"

# hadolint ignore=DL3006
FROM ${BASE_IMAGE} AS model
ARG MODEL=models/demo
COPY ${MODEL}/ /model/
USER 65532:65532
# As an init container: fills the volume that the server reads.
CMD ["cp", "-rL", "/model/.", "/models/"]
