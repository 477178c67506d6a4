# The external processor, the operator's CLI and the demonstration's fake providers; Envoy serves from its own image.
FROM python:3.11-slim-bookworm AS build
WORKDIR /src
COPY requirements.lock pyproject.toml README.md LICENSE ./
COPY extproc extproc
COPY configctl configctl
# The lock also holds what only developers need: it says which versions, pyproject.toml says which packages.
RUN sed -n 's/^\([A-Za-z0-9._-]*==[^ ;\\]*\).*/\1/p' requirements.lock > constraints.txt \
 && python -m venv /opt/gateway \
 && /opt/gateway/bin/pip install --no-cache-dir --disable-pip-version-check -c constraints.txt '.[postgres]'

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
