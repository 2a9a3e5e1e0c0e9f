from __future__ import annotations

import dataclasses
import json

import pytest

from singlestrip_bids import cli
from singlestrip_bids.config import (
    PRESETS,
    AutoencoderConfig,
    MethodConfig,
    NetworkConfig,
    SynthesisConfig,
    TrainingConfig,
    method_for,
    sloppy,
    with_settings,
    with_steps,
)
from singlestrip_bids.errors import Usage
from singlestrip_bids.method.networks import Autoencoder

METHODS = {**PRESETS, **{f"sloppy {name}": sloppy(method) for name, method in PRESETS.items()}}
EACH = pytest.mark.parametrize("method", METHODS.values(), ids=METHODS.keys())


@EACH
def test_grid_fits_the_network(method):
    assert method.size % method.network.multiple == 0
    assert method.size > method.network.multiple, "instance normalisation of a single voxel"


@EACH
def test_slices_fit_the_autoencoder(method):
    Autoencoder(method.quality)


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
        quality=AutoencoderConfig(**plain.pop("quality")),
        **plain,
    )
    assert again == method


def test_names():
    assert all(name == method.preset for name, method in PRESETS.items())


@pytest.mark.parametrize(
    ("features", "stem", "multiple"), [((16,) * 7, 1, 64), ((4, 8), 2, 4), ((8, 8), 1, 2)]
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


QUICK = PRESETS["quick"]


def changed(*pairs: str) -> MethodConfig:
    return with_settings(QUICK, pairs)


class TestSet:
    """``--set KEY=VALUE``."""

    def test_nothing_set_is_the_preset(self):
        assert changed() == method_for("quick") == QUICK

    def test_a_nested_key_changes_its_field_alone(self):
        made = changed("training.steps=400", "finetuning_synthesis.real_fraction=0")
        assert made.training == dataclasses.replace(QUICK.training, steps=400)
        expected = dataclasses.replace(QUICK.finetuning_synthesis, real_fraction=0.0)
        assert made.finetuning_synthesis == expected
        assert made == dataclasses.replace(
            QUICK, training=made.training, finetuning_synthesis=expected
        )

    @pytest.mark.parametrize("steps", [1, 40, 1000, 30_000])
    def test_steps_keep_their_proportion(self, steps):
        made = changed(f"steps={steps}")
        assert made == with_steps(QUICK, steps)
        assert made.training.steps == steps
        assert made.finetuning.steps == max(round(steps * 7 / 3), 1)
        assert made.quality.epochs == max(round(500 * steps / 300), 1)
        assert made.trials == max(round(60 * steps / 300), 20)
        longer = with_settings(PRESETS["standard"], [f"steps={steps}"])
        assert longer.finetuning.steps == max(round(steps / 2), 1)

    @pytest.mark.parametrize(
        ("pair", "path", "value"),
        [
            ("voxel_size=4", ("voxel_size",), 4.0),
            ("voxel_size=none", ("voxel_size",), None),
            ("top_k=none", ("top_k",), None),
            ("top_k=7", ("top_k",), 7),
            ("network.features=16,32,64", ("network", "features"), (16, 32, 64)),
            ("network.normalise=false", ("network", "normalise"), False),
            ("warm_start=False", ("warm_start",), False),
            ("training.cosine=true", ("training", "cosine"), True),
            ("training.optimiser=adam", ("training", "optimiser"), "adam"),
            ("training.learning_rate=1e-4", ("training", "learning_rate"), 1e-4),
            ("pseudo_labels=network", ("pseudo_labels",), "network"),
            ("quality.slice_size=128", ("quality", "slice_size"), 128),
        ],
    )
    def test_a_value_has_the_kind_of_its_field(self, pair, path, value):
        found = changed(pair)
        for name in path:
            found = getattr(found, name)
        assert found == value
        assert type(found) is type(value)

    def test_the_last_one_counts(self):
        assert changed("copies=2", "copies=3").copies == 3
        assert changed("steps=40", "training.steps=50").training.steps == 50

    def test_a_smaller_network_and_then_its_grid(self):
        made = with_settings(PRESETS["full"], ["network.features=4,8", "size=32"])
        assert (made.size, made.network.multiple) == (32, 2)

    @pytest.mark.parametrize(
        ("pair", "words"),
        [
            ("colour=3", ("no setting 'colour'", "voxel_size", "synthesis", "training")),
            ("training.colour=3", ("no setting 'colour'", "batch_size", "learning_rate")),
            ("colour.steps=3", ("no setting 'colour'",)),
            ("preset=full", ("no setting 'preset'",)),
            ("seed=3", ("no setting 'seed'",)),
            ("=3", ("no setting ''",)),
            ("training=3", ("training is a group of settings",)),
            ("size.x=3", ("size is no group",)),
            ("steps.x=3", ("no setting 'steps'",)),
        ],
    )
    def test_unknown_keys(self, pair, words):
        with pytest.raises(Usage) as raised:
            changed(pair)
        said = str(raised.value)
        assert said.startswith(f"--set {pair}: ")
        assert "Give KEY=VALUE, as training.steps=400." in said
        for word in words:
            assert word in said
        assert "seed," not in said, "what has an option of its own is not offered"
        assert "preset," not in said

    @pytest.mark.parametrize(
        "pair",
        [
            "steps",
            "steps=many",
            "training.steps=1.5",
            "training.steps=none",
            "size=",
            "voxel_size=wide",
            "warm_start=1",
            "network.normalise=none",
            "network.features=4,x",
            "network.features=none",
        ],
    )
    def test_values_of_a_wrong_kind(self, pair):
        with pytest.raises(Usage, match=f"--set {pair}: "):
            changed(pair)

    @pytest.mark.parametrize(
        ("pair", "word"),
        [
            ("steps=0", "1 or more"),
            ("training.steps=0", "1 or more"),
            ("training.batch_size=0", "1 or more"),
            ("training.learning_rate=0", "positive"),
            ("training.learning_rate=nan", "positive"),
            ("training.weight_decay=-1", "0 or more"),
            ("training.optimiser=sgd", "adam or muon"),
            ("synthesis.noise=-0.1", "noise is 0 or more"),
            ("synthesis.blur=inf", "blur is 0 or more"),
            ("synthesis.real_fraction=1.5", "real_fraction is a share"),
            ("finetuning_synthesis.crop_probability=2", "crop_probability is a share"),
            ("quality.slice_size=65", "64, 128 or 256"),
            ("quality.epochs=0", "1 or more"),
            ("network.features=4", "two or more"),
            ("network.features=4,0", "1 or more"),
            ("network.stem=0", "1 or more"),
            ("size=40", "does not suit the network"),
            ("size=4096", "between 8 and 1024"),
            ("voxel_size=0", "positive"),
            ("voxel_size=nan", "positive"),
            ("rounds=10", "between 0 and 9"),
            ("top_k=0", "1 or more"),
            ("pseudo_labels=guess", "consensus"),
            ("copies=0", "1 or more"),
            ("trials=3", "4 or more"),
        ],
    )
    def test_values_out_of_range(self, pair, word):
        with pytest.raises(Usage, match=f"--set {pair}: .*{word}"):
            changed(pair)

    def test_on_the_command_line(self, tmp_path, capfd):
        for words, said in (
            (["--set", "steps=2", "colour=3"], "no setting 'colour'"),
            (["--set", "steps=2", "--set", "trials=0"], "--set trials=0: trials is 4 or more"),
        ):
            code = cli.main([str(tmp_path), str(tmp_path / "out"), "group", *words])
            assert code == 64
            assert said in capfd.readouterr().err
        assert not (tmp_path / "out").exists()


class TestMethodFor:
    def test_given_fields_and_settings(self):
        made = method_for("quick", ["rounds=3"], rounds=2, top_k=None, seed=5)
        assert (made.preset, made.rounds, made.top_k, made.seed) == ("quick", 3, None, 5)

    def test_settings_are_changed_after_shrinking(self):
        made = method_for("quick", ["training.steps=7"], tiny=True)
        expected = sloppy(QUICK)
        assert made == dataclasses.replace(
            expected, training=dataclasses.replace(expected.training, steps=7)
        )

    def test_unknown_preset(self):
        with pytest.raises(Usage, match=r"No preset 'fast'.*full, quick, standard"):
            method_for("fast")


GONE = (
    ("--mem=8", "--low-mem"),
    ("--mem-gb=8", "--low-mem"),
    ("--boilerplate-only", "--reports-only"),
    ("--real-fraction=0", "--set synthesis.real_fraction=F finetuning_synthesis.real_fraction=F"),
    ("--steps=40", "--set steps=N"),
    ("--voxel-size=4", "--set voxel_size=MM"),
)
OLD_NAMES = {"mem": 8, "real_fraction": 0.0, "steps": 40, "voxel_size": 4.0}


class TestGone:
    """Options that there were."""

    @pytest.mark.parametrize(("word", "instead"), GONE)
    def test_exit_code_and_what_took_its_place(self, word, instead, tmp_path, capfd):
        name, *value = word.split("=")
        for words in ([word], [name, *value]):
            assert cli.main([str(tmp_path), str(tmp_path / "out"), "group", *words]) == 64
            said = capfd.readouterr().err
            assert f"{name} is gone: " in said
            assert instead in said
            assert "Traceback" not in said
        assert not (tmp_path / "out").exists()

    @pytest.mark.parametrize(("name", "value"), OLD_NAMES.items())
    def test_in_the_record_of_an_earlier_run(self, name, value, tmp_path, capfd):
        path = tmp_path / "config.json"
        path.write_text(json.dumps({"options": {"rounds": 1, name: value}}))
        words = [str(tmp_path), str(tmp_path / "out"), "group", "--config-file", str(path)]
        assert cli.main(words) == 64
        assert f"--{name.replace('_', '-')} is gone: " in capfd.readouterr().err

    def test_a_record_that_did_not_use_them_still_counts(self, tmp_path):
        path = tmp_path / "config.json"
        path.write_text(json.dumps({"options": {"rounds": 2, **dict.fromkeys(OLD_NAMES)}}))
        assert cli.parse(["in", "out", "group", "--config-file", str(path)]).rounds == 2


def test_steps_are_those_of_the_last_and_come_first():
    quick = PRESETS["quick"]
    assert with_settings(quick, ["steps=2", "steps=300"]) == quick
    mixed = with_settings(quick, ["training.steps=7", "steps=150"])
    assert (mixed.training.steps, mixed.finetuning.steps) == (7, 350)


def test_a_number_beyond_all_bounds_is_refused():
    with pytest.raises(Usage, match="steps=9"):
        with_settings(PRESETS["quick"], ["steps=" + "9" * 400])


@pytest.mark.parametrize(
    ("option", "kind"),
    [
        ("--qc-threshold", "number"),
        ("--random-seed", "int"),
        ("--border-mm", "number"),
        ("--top-k", "positive int"),
    ],
)
def test_impossible_values_are_named_in_plain_words(tmp_path, capsys, option, kind):
    assert cli.main([str(tmp_path), str(tmp_path), "participant", option, "high"]) == 64
    assert f"invalid {kind} value: 'high'" in capsys.readouterr().err
