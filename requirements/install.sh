#!/bin/sh
# The recipe of the images: Dockerfile and Singularity.def both call it. It installs from /src.
# packages: the pinned packages, in /opt/singlestrip. app: the app, beside them.
set -eu
: "${1:?packages, app, or both}"
export PIP_DISABLE_PIP_VERSION_CHECK=1 PIP_NO_CACHE_DIR=1 PIP_ROOT_USER_ACTION=ignore
pip=/opt/singlestrip/bin/pip

packages() {
    python3 -m venv /opt/singlestrip
    "$pip" install --require-hashes --only-binary :all: -r /src/requirements/build.txt
    "$pip" install --require-hashes --no-build-isolation -r /src/requirements/image.txt
}

app() {
    "$pip" install --no-deps --no-build-isolation /src
    "$pip" check
}

for step in "$@"; do "$step"; done
