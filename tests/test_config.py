from __future__ import annotations

import dataclasses
import json

import pytest

from singlestrip_bids.config import (
    PRESETS,
    MethodConfig,
    NetworkConfig,
    QualityConfig,
    SynthesisConfig,
    TrainingConfig,
    sloppy,
)
from singlestrip_bids.networks import Autoencoder

METHODS = {**PRESETS, **{f"sloppy {name}": sloppy(method) for name, method in PRESETS.items()}}
EACH = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


@EACH
def test_grid_fits_the_network(method):
    assert method.size % method.network.multiple == 0
    assert method.size > method.network.multiple, "instance normalisation of a single voxel"


@EACH
def test_slices_fit_the_autoencoder(method):
    Autoencoder(method.quality.latent, method.quality.slice_size)


@EACH
def test_plain_data_to_json_and_back(method):
    plain = json.loads(json.dumps(method.to_dict()))
    network = {**plain.pop("network")}
    network["features"] = tuple(network["features"])
    again = MethodConfig(
        network=NetworkConfig(**network),
        training=TrainingConfig(**plain.pop("training")),
        finetuning=TrainingConfig(**plain.pop("finetuning")),
        synthesis=SynthesisConfig(**plain.pop("synthesis")),
        finetuning_synthesis=SynthesisConfig(**plain.pop("finetuning_synthesis")),
        quality=QualityConfig(**plain.pop("quality")),
        **plain,
    )
    assert again == method


def test_names():
    assert all(name == method.preset for name, method in PRESETS.items())


@pytest.mark.parametrize(
    ("features", "stem", "multiple"), [((16,) * 7, 1, 64), ((4, 8), 2, 4), ((8,), 1, 1)]
)
def test_multiple_is_stem_times_poolings(features, stem, multiple):
    assert NetworkConfig(features=features, stem=stem).multiple == multiple


@pytest.mark.parametrize("preset", PRESETS)
def test_sloppy_is_small_and_keeps_the_rest(preset):
    method, small = PRESETS[preset], sloppy(PRESETS[preset])
    voxels = small.size**3 * max(small.network.features)
    assert voxels * (small.training.steps + small.finetuning.steps) < 5e7
    assert small.quality.epochs <= 2
    assert small.quality.slice_size <= 64
    assert small.training.learning_rate == method.training.learning_rate
    assert (small.synthesis, small.top_k, small.rounds, small.seed) == (
        method.synthesis,
        method.top_k,
        method.rounds,
        method.seed,
    )


def test_probabilities_and_fractions():
    config = SynthesisConfig()
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        assert value >= 0, field.name
        if "probability" in field.name or field.name in ("real_fraction", "crop"):
            assert value <= 1, field.name


def test_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        PRESETS["quick"].size = 1
