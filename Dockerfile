# The gateway alone: vLLM runs in its own image, as deploy/compose.yaml shows.
#
# The tag says which Python, the digest which bytes. To take another base, look its digest up with
# `docker buildx imagetools inspect python:TAG` and write TAG@sha256:DIGEST here or in --build-arg PYTHON_IMAGE.
ARG PYTHON_IMAGE=python:3.11.14-slim-bookworm@sha256:65a93d69fa75478d554f4ad27c85c1e69fa184956261b4301ebaf6dbb0a3543d

FROM ${PYTHON_IMAGE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 \
    PIP_NO_CACHE_DIR=1 \
    PIP_NO_INPUT=1 \
    PIP_ROOT_USER_ACTION=ignore
WORKDIR /src
# Dependencies first: this layer is built again only when a lock changes.
COPY requirements.lock deploy/requirements-build.lock ./
RUN python -m venv /opt/build \
    && /opt/build/bin/python -m pip install --require-hashes --only-binary :all: -r requirements-build.lock \
    && python -m venv --without-pip /opt/joulegate \
    && python -m pip --python /opt/joulegate/bin/python install --require-hashes --only-binary :all: -r requirements.lock
COPY pyproject.toml README.md LICENSE ./
COPY backends backends
COPY bench bench
COPY proxy proxy
COPY scheduler scheduler
COPY workloads workloads
RUN /opt/build/bin/python -m pip wheel --no-deps --no-build-isolation --wheel-dir /wheels . \
    && python -m pip --python /opt/joulegate/bin/python install --no-deps --no-index /wheels/joulegate-*.whl

FROM ${PYTHON_IMAGE}
LABEL org.opencontainers.image.title="Joulegate" \
      org.opencontainers.image.description="An OpenAI-compatible gateway in front of vLLM" \
      org.opencontainers.image.licenses="Apache-2.0"
COPY --from=build /opt/joulegate /opt/joulegate
ENV PATH=/opt/joulegate/bin:$PATH \
    PYTHONDONTWRITEBYTECODE=1 \
    PYTHONUNBUFFERED=1
# A number, so that Kubernetes' runAsNonRoot can see that it is not root. /var/lib/joulegate is for state_dir.
RUN install -d -o 65532 -g 65532 /var/lib/joulegate
USER 65532:65532
WORKDIR /var/lib/joulegate
# 8080: the model API. 8081: the control plane (metrics, health, admin): not for the outside.
EXPOSE 8080 8081
STOPSIGNAL SIGTERM
# The control plane answers while the process is sound, engines or not. Not urllib: it would ask HTTP_PROXY for the loopback.
HEALTHCHECK --interval=10s --timeout=3s --start-period=10s --retries=3 \
    CMD ["python", "-c", "from http.client import HTTPConnection as C; c = C('127.0.0.1', 8081, timeout=2); c.request('GET', '/health'); raise SystemExit(c.getresponse().status != 200)"]
ENTRYPOINT ["joulegate"]
CMD ["serve", "--config", "/etc/joulegate/joulegate.toml"]
