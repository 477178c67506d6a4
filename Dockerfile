# The external processor, the operator's CLI and the demonstration's fake providers; Envoy serves from its own image.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY requirements-runtime.lock pyproject.toml README.md LICENSE ./
COPY extproc extproc
COPY configctl configctl
# Nothing is installed whose digest the lock does not name, what builds the package included.
RUN python -m venv /opt/gateway \
 && /opt/gateway/bin/pip install --no-cache-dir --disable-pip-version-check --require-hashes -r requirements-runtime.lock \
 && /opt/gateway/bin/pip install --no-cache-dir --disable-pip-version-check --no-deps --no-build-isolation .

FROM python:3.11-slim-bookworm
COPY --from=build /opt/gateway /opt/gateway
# Envoy's container runs under the same id: both work in one directory, which is closed to everybody else.
RUN groupadd --gid 10001 gateway \
 && useradd --uid 10001 --gid 10001 --no-create-home --shell /usr/sbin/nologin gateway \
 && install -d -o gateway -g gateway -m 0700 /var/lib/gateway
ENV PATH=/opt/gateway/bin:$PATH PYTHONDONTWRITEBYTECODE=1 PYTHONUNBUFFERED=1 GATEWAY_DATA_DIR=/var/lib/gateway
USER 10001:10001
VOLUME /var/lib/gateway
EXPOSE 18080 18082
HEALTHCHECK --interval=5s --timeout=3s --start-period=30s \
    CMD ["python", "-c", "import urllib.request; urllib.request.urlopen('http://127.0.0.1:18082/metrics', timeout=2)"]
CMD ["extproc", "serve"]
