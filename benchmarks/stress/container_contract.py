"""Run the app under the hardest terms a container may set, and check what comes out.

The terms: a read-only root, no network, a user id without a passwd entry, an unwritable HOME,
64 MB of /dev/shm, and only /tmp and the output to write to.

Usage: ``python -m benchmarks.stress.container_contract ENGINE [IMAGE] --work FOLDER``. ENGINE is
docker, podman or apptainer; or ``here``, which needs no image: the installed app in namespaces of
Linux made by ``unshare``, without root.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from singlestrip_bids.demo import write_dataset

UID = 12345
PYTHON = "/opt/singlestrip/bin/python"
LOG_OF_TRAINING = "Working grid"
STOPPED = 75  # exit code after SIGTERM, see docs/errors.md

PROBE = """
import json, os, pwd, site, socket, torch
def writable(folder):
    try:
        open(os.path.join(folder, "probe"), "x").close()
    except OSError:
        return False
    return True
def named():
    try:
        return bool(pwd.getpwuid(os.getuid()))
    except KeyError:
        return False
def online():
    try:
        socket.create_connection(("192.0.2.1", 80), 1)
    except OSError as error:
        return "unreachable" not in str(error)
    return True
shm = os.statvfs("/dev/shm")
home = os.environ.get("HOME", "/")
gpus = torch._C._cuda_getArchFlags() if torch.version.cuda else ""
print(json.dumps({
    "uid": os.getuid(), "named": named(), "online": online(),
    "root": writable("/") or writable(os.path.dirname(torch.__file__)),
    "home": home, "home_writable": writable(home),
    "user_site": bool(site.ENABLE_USER_SITE), "shm_mb": shm.f_blocks * shm.f_frsize // 2**20,
    "torch": torch.__version__, "gpus": gpus,
}))
"""

HERE = """
set -eu
cd "$1"; mount --bind "$2" "$2"
mount -t tmpfs -o size=64m tmpfs "$2/tmp"
mount -t tmpfs -o size=64m tmpfs /dev/shm
for folder in "$2/bids" "$2/home" "$1" "$3" /; do
    mount --bind "$folder" "$folder" 2>/dev/null || test "$folder" = /
    mount -o remount,bind,ro "$folder"
done
mount --bind "$2/out" "$2/out"; mount -o remount,bind,rw "$2/out"
work="$2" uid="$4"; shift 4
umask 027
exec unshare --user --map-user="$uid" --map-group="$uid" env -i PATH=/usr/bin:/bin \
    HOME="$work/home" TMPDIR="$work/tmp" PYTHONNOUSERSITE=1 PYTHONDONTWRITEBYTECODE=1 \
    OMP_NUM_THREADS="${OMP_NUM_THREADS:-1}" "$@"
"""
"""Arguments: the checkout, the work folder, Python's prefix, the user id, the command."""


def command(
    engine: str, image: str, work: Path, words: Sequence[str], *, probe: bool = False,
    options: Sequence[str] = (),
) -> list[str]:  # fmt: skip
    """Return the command that runs the app, or Python for the probe, under the terms.

    Parameters
    ----------
    engine : str
        docker, podman, apptainer or here.
    image : str
        Its image; not used by ``here``.
    work : Path
        Holds the folders bids, out, home and tmp.
    words : sequence of str
        Arguments of the app or of Python.
    probe : bool
        Run Python instead of the app.
    options : sequence of str
        More options of the engine.
    """
    if engine == "here":
        source, program = Path(__file__).resolve().parents[2], [sys.executable]
        program += [] if probe else ["-m", "singlestrip_bids.cli"]
        spaces = ["unshare", "--user", "--map-root-user", "--mount", "--net"]
        script = ["sh", "-c", HERE, "sh", str(source), str(work), sys.prefix, str(UID)]
        return [*spaces, *script, *program, *words]
    volumes = (f"{work / 'bids'}:{work / 'bids'}:ro", f"{work / 'out'}:{work / 'out'}")
    if engine == "apptainer":
        binds = [part for volume in volumes for part in ("--bind", volume)]
        start = ["exec"] if probe else ["run"]
        terms = ["--containall", "--net", "--network", "none", *binds]
        return [engine, *start, *terms, *options, image, *([PYTHON] if probe else []), *words]
    terms = ["--read-only", "--network", "none", "-u", f"{UID}:{UID}", "--tmpfs", "/tmp"]
    terms += ["--shm-size", "64m", *(part for volume in volumes for part in ("-v", volume))]
    terms += ["--passwd=false"] if engine == "podman" else []  # it would add an entry
    terms += ["--entrypoint", PYTHON] if probe else []
    return [engine, "run", "--rm", *terms, *options, image, *words]


def broken_terms(facts: dict[str, object], engine: str) -> list[str]:
    """List the terms that do not hold, by what the probe has seen."""
    wanted: dict[str, object] = {"online": False, "root": False, "user_site": False}
    if engine != "apptainer":  # there the user is the caller, with an empty HOME in memory
        wanted |= {"uid": UID, "named": False, "home_writable": False}
    broken = [f"{name} is {facts[name]}" for name in wanted if facts[name] != wanted[name]]
    return broken + ([f"shm_mb is {facts['shm_mb']}"] if engine != "apptainer" and
                     int(str(facts["shm_mb"])) > 64 else [])  # fmt: skip


def missing_outputs(bids: Path, out: Path) -> list[str]:
    """List what both levels should have left and have not."""
    scans = sorted(bids.glob("sub-*/anat/*.nii.gz"))
    masks = {path.parent.parent.name for path in out.glob("sub-*/anat/*_desc-brain_mask.nii.gz")}
    absent = [scan.name for scan in scans if scan.parent.parent.name not in masks]
    rest = ("dataset_description.json", "code/singlestrip/model.json")
    return absent + [name for name in rest if not (out / name).is_file()]


def stop(call: Sequence[str]) -> int:
    """Start the app, send SIGTERM once it trains, and return its exit code."""
    with subprocess.Popen(call, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if LOG_OF_TRAINING in line:
                time.sleep(2)
                process.terminate()
                break
        process.stderr.read()
    return process.returncode


def main(argv: Sequence[str] | None = None) -> int:
    """Check the terms, both levels, and the stop by SIGTERM; return 0 if all hold."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("engine", choices=("docker", "podman", "apptainer", "here"))
    parser.add_argument("image", nargs="?", default="singlestrip-bids")
    parser.add_argument("--work", type=Path, required=True, help="a folder that is not there yet")
    parser.add_argument("--option", action="append", default=[], help="one more of the engine's")
    parser.add_argument("--no-stop", action="store_true", help="leave out the stop by SIGTERM")
    args = parser.parse_args(argv)
    work = args.work.absolute()
    for name in ("out", "home", "tmp"):
        (work / name).mkdir(parents=True)
        (work / name).chmod(0o777)
    bids, out = work / "bids", work / "out"
    write_dataset(bids, subjects=2, spacing_scale=2.5)

    def call(*words: str, probe: bool = False) -> list[str]:
        return command(args.engine, args.image, work, words, probe=probe, options=args.option)

    seen = subprocess.run(call("-c", PROBE, probe=True), stdout=subprocess.PIPE, check=True)
    facts = json.loads(seen.stdout)
    print(json.dumps(facts, indent=2), flush=True)
    faults = broken_terms(facts, args.engine)
    began = time.monotonic()
    folders, options = (str(bids), str(out)), ("--device", "cpu")
    both = call(*folders, "group", "participant", "--sloppy", *options)
    code = subprocess.run(both).returncode
    print(f"group participant: exit code {code} in {time.monotonic() - began:.0f} s", flush=True)
    faults += [f"exit code {code}"] if code else missing_outputs(bids, out)
    if not args.no_stop:
        code = stop(call(*folders, "group", "--preset", "quick", *options))
        print(f"SIGTERM: exit code {code}")
        faults += [f"exit code {code} after SIGTERM"] if code != STOPPED else []
    faults += [f"{path} was written" for path in (work / "home").iterdir()]
    print("\n".join(faults) or "All terms hold.")
    return int(bool(faults))


if __name__ == "__main__":
    sys.exit(main())
