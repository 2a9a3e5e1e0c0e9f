# docker build --tag singlestrip-bids .
# requirements/install.sh is the recipe; Singularity.def calls it too.
ARG BASE=docker.io/library/python:3.13-slim-trixie

FROM ${BASE} AS build
COPY requirements /src/requirements
# A layer of its own: it is built again only when the requirements change
RUN sh /src/requirements/install.sh packages
# All that .dockerignore lets through
COPY . /src
RUN sh /src/requirements/install.sh app

FROM ${BASE}
LABEL org.opencontainers.image.title="singlestrip-bids" \
      org.opencontainers.image.description="A BIDS App that learns skull-stripping from one labelled scan" \
      org.opencontainers.image.licenses="Apache-2.0"
# Nothing of the user's own Python, and nothing written beside the code
ENV PATH="/opt/singlestrip/bin:$PATH" \
    LC_ALL="C.UTF-8" \
    PYTHONNOUSERSITE="1" \
    PYTHONDONTWRITEBYTECODE="1" \
    SINGLESTRIP_CONTAINER="singlestrip-bids"
COPY --from=build /opt/singlestrip /opt/singlestrip
ENTRYPOINT ["/opt/singlestrip/bin/singlestrip-bids"]
