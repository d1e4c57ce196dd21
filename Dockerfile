# Images of photon-server and the photon command line. scripts/build_image builds them; docs/operate/install.md
# says how to run them.
#
#   cpu     the server for processors
#   cuda    the server with its engine for NVIDIA GPUs
#   model   a checkpoint: mounted as an image volume, or copied by an init container
#
# Base images are arguments: any Debian 12 or Ubuntu 24.04 will do, the two of a target of the same one.
ARG BUILD_IMAGE=debian:12-slim
ARG RUNTIME_IMAGE=debian:12-slim
ARG CUDA_BUILD_IMAGE=nvidia/cuda:13.0.1-devel-ubuntu24.04
ARG CUDA_RUNTIME_IMAGE=ubuntu:24.04

# hadolint ignore=DL3006
FROM ${BUILD_IMAGE} AS build
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
FROM ${CUDA_BUILD_IMAGE} AS build-cuda
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
    && cmake --build --preset release --target photon-server photon photon_cuda_plugin \
    && install -s -D -t /out/bin build/release/server/photon-server build/release/client/photon \
    && install -s -D -t /out/lib build/release/engine/cuda/libphoton_cuda_plugin.so \
    && deploy/image/runtime-packages /out/bin/* /out/lib/* > /out/packages \
    && cp deploy/image/install-runtime /out/ \
    && cp -L "$(ldd /out/lib/libphoton_cuda_plugin.so | awk '$1 ~ /cublasLt/ { print $3 }')" /out/lib/

# hadolint ignore=DL3006
FROM ${RUNTIME_IMAGE} AS cpu
ARG SOURCE_DATE_EPOCH
ARG VERSION=0.1.0
RUN --mount=type=bind,from=build,source=/out,target=/out \
    /out/install-runtime /out/packages "${VERSION}"
COPY --from=build /out/bin/ /usr/local/bin/
COPY LICENSE /usr/share/photon/LICENSE
# All addresses, since a container has its own. Plaintext there has to be allowed, or TLS set up: the server does not
# start otherwise. Health is told on a port of its own, to probes without certificates too; the server's certificate is not
# one to call with.
ENV PHOTON_MODEL=/models \
    PHOTON_LISTEN=0.0.0.0:50051 \
    PHOTON_HTTP_LISTEN=0.0.0.0:8000 \
    PHOTON_HEALTH_LISTEN=0.0.0.0:50052 \
    PHOTON_LOG_FORMAT=json
EXPOSE 50051 50052 8000
USER 65532:65532
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=60s \
    CMD ["env", "--unset=PHOTON_TLS_CERT", "--unset=PHOTON_TLS_KEY", \
         "photon", "health", "--server", "127.0.0.1:50052", "--deadline", "3"]
# Last, since it differs with every commit.
ARG REVISION=unknown
LABEL org.opencontainers.image.title="photon" \
      org.opencontainers.image.description="Serves PHOTON language models over gRPC" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENTRYPOINT ["photon-server"]

# hadolint ignore=DL3006
FROM ${CUDA_RUNTIME_IMAGE} AS cuda
ARG SOURCE_DATE_EPOCH
ARG VERSION=0.1.0
RUN --mount=type=bind,from=build-cuda,source=/out,target=/out \
    /out/install-runtime /out/packages "${VERSION}"
COPY --from=build-cuda /out/bin/ /usr/local/bin/
COPY --from=build-cuda /out/lib/ /usr/local/lib/
COPY LICENSE /usr/share/photon/LICENSE
# What the container toolkit is to hand in: the driver's libraries.
ENV NVIDIA_VISIBLE_DEVICES=all \
    NVIDIA_DRIVER_CAPABILITIES=compute,utility \
    LD_LIBRARY_PATH=/usr/local/lib \
    PHOTON_DEVICE=cuda \
    PHOTON_MODEL=/models \
    PHOTON_LISTEN=0.0.0.0:50051 \
    PHOTON_HTTP_LISTEN=0.0.0.0:8000 \
    PHOTON_HEALTH_LISTEN=0.0.0.0:50052 \
    PHOTON_LOG_FORMAT=json
EXPOSE 50051 50052 8000
USER 65532:65532
STOPSIGNAL SIGTERM
HEALTHCHECK --interval=10s --timeout=5s --start-period=120s \
    CMD ["env", "--unset=PHOTON_TLS_CERT", "--unset=PHOTON_TLS_KEY", \
         "photon", "health", "--server", "127.0.0.1:50052", "--deadline", "3"]
ARG REVISION=unknown
LABEL org.opencontainers.image.title="photon-cuda" \
      org.opencontainers.image.description="Serves PHOTON language models over gRPC, on NVIDIA GPUs" \
      org.opencontainers.image.licenses="Apache-2.0" \
      org.opencontainers.image.version="${VERSION}" \
      org.opencontainers.image.revision="${REVISION}"
ENTRYPOINT ["photon-server"]

# hadolint ignore=DL3006
FROM ${RUNTIME_IMAGE} AS model
ARG MODEL=models/demo
COPY ${MODEL}/ /model/
USER 65532:65532
# As an init container: fills the volume that the server reads.
CMD ["cp", "-rL", "/model/.", "/models/"]
