"""The installed app under the terms of a container, without root and without an engine."""

import shutil
import stat
import subprocess

import pytest

from benchmarks.stress import container_contract as contract

FACTS = {
    "uid": 12345, "named": False, "online": False, "root": False, "home_writable": False,
    "user_site": False, "shm_mb": 64,
}  # fmt: skip


def namespaces_are_allowed() -> bool:
    if shutil.which("unshare") is None:
        return False
    call = ["unshare", "--user", "--map-root-user", "--mount", "--net"]
    call += ["unshare", "--user", "--map-user=12345", "--map-group=12345", "true"]
    return subprocess.run(call, capture_output=True).returncode == 0


def test_the_app_keeps_the_terms(tmp_path, capfd):
    if not namespaces_are_allowed():
        pytest.skip("this machine lets nobody make user namespaces with unshare")
    work = tmp_path / "work"
    assert contract.main(["here", "--work", str(work), "--no-stop"]) == 0, capfd.readouterr()
    masks = list((work / "out").glob("sub-*/anat/*_mask.nii.gz"))
    assert len(masks) == 2
    assert {stat.S_IMODE(path.stat().st_mode) for path in masks} == {0o640}  # by the umask
    assert not list((work / "home").iterdir())


@pytest.mark.parametrize("engine", ["docker", "podman"])
def test_engines_are_given_the_terms_literally(engine, tmp_path):
    call = " ".join(contract.command(engine, "app:1", tmp_path, ["in", "out", "group"]))
    assert "run --rm --read-only --network none -u 12345:12345 --tmpfs /tmp" in call
    assert f"-v {tmp_path}/bids:{tmp_path}/bids:ro" in call
    assert call.endswith("app:1 in out group")


@pytest.mark.parametrize("name", [name for name in FACTS if name != "shm_mb"])
def test_a_broken_term_is_named(name):
    assert contract.broken_terms(FACTS, "docker") == []
    wrong = {**FACTS, name: 0 if name == "uid" else True}
    assert contract.broken_terms(wrong, "docker") == [f"{name} is {wrong[name]}"]
    assert contract.broken_terms({**FACTS, "shm_mb": 4096}, "docker") == ["shm_mb is 4096"]


def test_missing_outputs_are_named(tmp_path):
    scan = tmp_path / "bids" / "sub-1" / "anat" / "sub-1_T1w.nii.gz"
    scan.parent.mkdir(parents=True)
    scan.touch()
    missing = contract.missing_outputs(tmp_path / "bids", tmp_path / "out")
    assert missing == [scan.name, "dataset_description.json", "code/singlestrip/model.json"]
