# docker build --tag singlestrip-bids .
# Singularity.def holds the same recipe; tests/test_containers.py compares the two.
# hadolint global ignore=DL3059
ARG BASE=docker.io/library/python:3.13-slim-trixie

FROM ${BASE} AS build
ENV PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
RUN python3 -m venv /opt/singlestrip
COPY requirements /src/requirements
RUN /opt/singlestrip/bin/pip install --require-hashes --only-binary :all: -r /src/requirements/build.txt
RUN /opt/singlestrip/bin/pip install --require-hashes --no-build-isolation -r /src/requirements/image.txt
COPY pyproject.toml README.md LICENSE /src/
COPY boilerplate /src/boilerplate
COPY singlestrip_bids /src/singlestrip_bids
RUN /opt/singlestrip/bin/pip install --no-deps --no-build-isolation /src
RUN /opt/singlestrip/bin/pip check

FROM ${BASE}
LABEL org.opencontainers.image.title="singlestrip-bids" \
      org.opencontainers.image.description="A BIDS App that learns skull-stripping from one labelled scan" \
      org.opencontainers.image.version="0.1.0" \
      org.opencontainers.image.licenses="Apache-2.0"
# Nothing of the user's own Python, and nothing written beside the code
ENV PATH="/opt/singlestrip/bin:$PATH" \
    LC_ALL="C.UTF-8" \
    PYTHONNOUSERSITE="1" \
    PYTHONDONTWRITEBYTECODE="1" \
    SINGLESTRIP_CONTAINER="singlestrip-bids:0.1.0"
COPY --from=build /opt/singlestrip /opt/singlestrip
ENTRYPOINT ["/opt/singlestrip/bin/singlestrip-bids"]
