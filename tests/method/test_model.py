from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from singlestrip_bids.config import PRESETS, sloppy
from singlestrip_bids.errors import BadData, NoInput
from singlestrip_bids.image.frame import Frame
from singlestrip_bids.image.grid import Grid
from singlestrip_bids.machine import files
from singlestrip_bids.machine.files import fingerprint, sha256
from singlestrip_bids.machine.runtime import Runtime
from singlestrip_bids.method.model import (
    AUTOENCODER,
    CARD,
    FORMAT,
    load,
    made_of,
    retract,
    write_card,
)
from singlestrip_bids.method.networks import Autoencoder, UNet

CPU = Runtime(torch.device("cpu"), bfloat16=False)
CALIBRATION = {"score": 0.4, "agreement": 0.8, "constant": 1.0, "better": -0.5, "worse": 0.6}
METHOD = sloppy(PRESETS["quick"])
NETWORK = "network.safetensors"


@pytest.fixture(scope="module")
def networks():
    torch.manual_seed(0)
    return UNet(METHOD.network), Autoencoder(METHOD.quality)


@pytest.fixture
def folder(tmp_path, networks):
    made = tmp_path / "model"
    for name, network in zip((NETWORK, AUTOENCODER), networks, strict=True):
        files.save_tensors(made / name, network.state_dict(), {})
    card = {
        "network": NETWORK,
        "voxel_size_mm": 2.5,
        "brain_ml": 1500.0,
        "head_width": 45.0,
        "calibration": CALIBRATION,
        "guard": {"standings": {Path(NETWORK).stem: {"copies": 0.9, "pool": 0.95}}},
    }
    write_card(made, {**card, "method": METHOD.to_dict()})
    return made


def change(folder, **fields) -> None:
    """Change fields of the card; None takes one away."""
    path = folder / CARD
    card = {**json.loads(path.read_text()), **fields}
    path.write_text(json.dumps({k: v for k, v in card.items() if v is not None}))


def method(**fields) -> dict:
    return {**METHOD.to_dict(), **fields}


class TestRoundTrip:
    def test_load(self, folder, networks):
        model = load(folder, CPU)
        for made, network in zip((model.network, model.autoencoder), networks, strict=True):
            expected = network.state_dict()
            assert made.state_dict().keys() == expected.keys()
            assert all(torch.equal(v, expected[k]) for k, v in made.state_dict().items())
            assert not made.training
        assert model.frame == Frame(Grid(2.5, METHOD.size, METHOD.network.multiple), 1500.0, 45.0)
        assert model.autoencoder.config == METHOD.quality
        assert model.network.config == METHOD.network
        assert model.folder == folder

    def test_card(self, folder):
        card = json.loads((folder / CARD).read_text())
        assert card["format"] == FORMAT
        assert card["sha256"] == {n: sha256(folder / n) for n in (NETWORK, AUTOENCODER)}
        assert load(folder, CPU).card == card

    def test_moved_folder(self, folder):
        assert load(folder.rename(folder.with_name("elsewhere")), CPU).frame.grid.voxel_size == 2.5


class TestDamage:
    def test_retracted(self, folder):
        retract(folder)
        with pytest.raises(NoInput):
            load(folder, CPU)
        retract(folder)
        assert (folder / NETWORK).is_file()

    @pytest.mark.parametrize("name", ["", "nothing"])
    def test_no_card(self, tmp_path, name):
        with pytest.raises(NoInput, match=f"{tmp_path}.*group level"):
            load(tmp_path / name, CPU)

    def test_newer_format(self, folder):
        change(folder, format=FORMAT + 1)
        with pytest.raises(BadData, match=f"{folder / CARD}.*newer"):
            load(folder, CPU)

    def test_older_format(self, folder):
        change(folder, format=FORMAT - 1)
        with pytest.raises(BadData, match=f"{folder / CARD}.*older.*group level again"):
            load(folder, CPU)
        assert made_of(folder) == ""

    @pytest.mark.parametrize("content", ["", "{", "[]", "\x00"])
    def test_card_that_is_not_json(self, folder, content):
        (folder / CARD).write_text(content)
        with pytest.raises(BadData, match=str(folder / CARD)):
            load(folder, CPU)

    @pytest.mark.parametrize(
        "fields",
        [
            {"format": None},
            {"format": "one"},
            {"calibration": {**CALIBRATION, "constant": 1e308}},
            {"calibration": {**CALIBRATION, "worse": float("nan")}},
            {"voxel_size_mm": -1},
            {"voxel_size_mm": float("inf")},
            {"brain_ml": 0},
            {"method": method(size=10**6)},
            {"method": method(size=float("inf"))},
            {"method": None},
            {"method": 3},
            {"method": {}},
            {"network": None},
            {"network": 3},
            {"autoencoder": None},
            {"sha256": None},
            {"sha256": {}},
            {"guard": None},
            {"guard": {"standings": {}}},
            {"guard": {"standings": {Path(NETWORK).stem: {"pool": "good"}}}},
            {"label_kept": True},
            {"voxel_size_mm": None},
            {"voxel_size_mm": "wide"},
            {"head_width": None},
            {"calibration": None},
            {"calibration": {**CALIBRATION, "score": "good"}},
            {"calibration": {"score": 1.0}},
        ],
        ids=str,
    )
    def test_card_with_a_wrong_key(self, folder, fields):
        change(folder, **fields)
        with pytest.raises(BadData, match=str(folder / CARD)):
            load(folder, CPU)

    @pytest.mark.parametrize(
        "fields",
        [
            {"quality": {"unknown": 1}},
            {"quality": {"slice_size": 65}},
            {"quality": {"latent": -1}},
            {"network": {"features": [4, 8], "unknown": 1}},
            {"network": {"normalise": True}},
            {"network": {"features": None}},
            {"network": {"features": []}},
            {"network": {"features": ["a", "b"]}},
            {"network": {"features": [4, -8]}},
            {"size": None},
        ],
        ids=str,
    )
    def test_card_with_a_wrong_method(self, folder, fields):
        change(folder, method=method(**fields))
        with pytest.raises(BadData, match=str(folder / CARD)):
            load(folder, CPU)

    def test_card_of_another_shape(self, folder):
        change(folder, method=method(network={"features": [4, 4], "normalise": True, "stem": 2}))
        with pytest.raises(BadData, match=str(folder / NETWORK)):
            load(folder, CPU)

    @pytest.mark.parametrize("name", [NETWORK, AUTOENCODER])
    def test_exchanged_network(self, folder, networks, name):
        network = networks[0] if name == NETWORK else networks[1]
        state = {k: v + 1 for k, v in network.state_dict().items()}
        files.save_tensors(folder / name, state, {})
        with pytest.raises(BadData, match=f"{folder / name}.*card"):
            load(folder, CPU)

    @pytest.mark.parametrize("name", [NETWORK, AUTOENCODER])
    def test_missing_network(self, folder, name):
        (folder / name).unlink()
        with pytest.raises(NoInput, match=str(folder / name)):
            load(folder, CPU)

    @pytest.mark.parametrize("name", [NETWORK, AUTOENCODER])
    def test_truncated_network(self, folder, name):
        (folder / name).write_bytes((folder / name).read_bytes()[:500])
        with pytest.raises(BadData, match=str(folder / name)):
            load(folder, CPU)

    @pytest.mark.parametrize("way", ["../outside.safetensors", "{root}/outside.safetensors", ".."])
    def test_names_in_the_card_stay_in_the_folder(self, folder, way):
        outside = folder.parent / "outside.safetensors"
        (folder / NETWORK).rename(outside)
        name = way.format(root=folder.parent)
        change(folder, network=name, sha256={name: sha256(outside), AUTOENCODER: ""})
        with pytest.raises(NoInput):
            load(folder, CPU)


class TestFingerprint:
    def test_depends_on_every_part(self):
        base = fingerprint("a", {"x": 1, "y": [1, 2]}, 3)
        assert base == fingerprint("a", {"y": [1, 2], "x": 1}, 3)
        others = [
            fingerprint("a", {"x": 1, "y": [2, 1]}, 3),
            fingerprint("a", {"x": 1, "y": [1, 2]}, 4),
            fingerprint("b", {"x": 1, "y": [1, 2]}, 3),
            fingerprint("a", {"x": 1, "y": [1, 2]}),
            fingerprint(["a"], {"x": 1, "y": [1, 2]}, 3),
        ]
        assert len({base, *others}) == 6

    def test_sha256_of_nothing(self, tmp_path):
        (tmp_path / "x").touch()
        assert sha256(tmp_path / "x").startswith("e3b0c44298fc1c149afbf4c8996fb924")
