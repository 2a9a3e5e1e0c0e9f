"""Several processes that train one model: what they share, and what becomes of a failure."""

from __future__ import annotations

import io
import os
import signal
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import said, together

from singlestrip_bids import cli
from singlestrip_bids.config import NetworkConfig, SynthesisConfig, TrainingConfig
from singlestrip_bids.errors import TemporaryFailure, Usage
from singlestrip_bids.machine import files, processes, runtime
from singlestrip_bids.machine.runtime import Runtime, start, stopping_on_sigterm
from singlestrip_bids.method.classes import source
from singlestrip_bids.method.losses import soft_dice
from singlestrip_bids.method.networks import UNet
from singlestrip_bids.method.synthesis import training_batch
from singlestrip_bids.method.training import fit

CPU = Runtime(torch.device("cpu"), bfloat16=False)
THREE = TrainingConfig(8, batch_size=3, learning_rate=0.02, optimiser="muon")
RANGES = SynthesisConfig()


def unet() -> UNet:
    torch.manual_seed(0)
    return UNet(NetworkConfig(features=(2, 4), normalise=True))


def one_source():
    image = torch.rand((16, 16, 16), generator=torch.Generator().manual_seed(1))
    mask = torch.zeros(image.shape, dtype=torch.bool)
    mask[4:12, 4:12, 5:13] = True
    return source(torch.where(mask, 7 + (image * 9.99).int(), 1 + image.int()), image, mask)


def loss(network, generators):
    origin = one_source()
    pairs = [training_batch(g, [origin], 8, RANGES) for g in generators]
    image, target = (torch.cat(part) for part in zip(*pairs, strict=True))
    return soft_dice(network(image).sigmoid(), target)


def gradients(machine: Runtime) -> list[np.ndarray]:
    """Of one batch of three images; the loss comes last."""
    network = unet()
    images = range(3)[machine.rank :: machine.world]
    value = loss(network, [machine.generator(5, image) for image in images])
    value.backward()
    mean, asked = machine.average(network, value, len(images) / 3).tolist()
    assert asked == 0
    return [*(p.grad.numpy() for p in network.parameters()), np.array(mean)]


def train(machine: Runtime, checkpoint: Path, drawn=loss) -> tuple[list[float], dict]:
    network = unet()
    history = fit(network, drawn, THREE, machine, checkpoint, "a", 7, "test")
    return history, {name: tensor.numpy() for name, tensor in network.state_dict().items()}


# what the processes do -------------------------------------------------------------------------


def share_a_batch(checkpoint: Path):
    machine = start("cpu")
    return gradients(machine), train(machine, checkpoint)


def stop_one(checkpoint: Path):
    """The second process is asked to stop in its third step."""
    machine, steps = start("cpu"), iter(range(100))
    processes.GRACE_S = 300.0  # however slow this machine is

    def stopping(network, generators):
        if next(steps) == 2 and machine.rank:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(network, generators)

    with stopping_on_sigterm():
        try:
            return train(machine, checkpoint, stopping)
        except TemporaryFailure as error:
            return str(error)


def lose_one(checkpoint: Path):
    machine, steps = start("cpu"), iter(range(100))

    def dying(network, generators):
        if next(steps) == 2 and machine.rank:
            os.kill(os.getpid(), signal.SIGKILL)
        return loss(network, generators)

    try:
        return train(machine, checkpoint, dying)
    except TemporaryFailure as error:
        return str(error), processes.failed_before(75)


def exchange(folder: Path):
    machine = start("cpu")
    found = [machine.gather([machine.rank, None, 0.1])]
    with machine.share(list("abcde")) as own:
        found.append(own)
        found.append(machine.collect([f"{letter}{machine.rank}" for letter in own]))
    with machine.first():
        if machine.main:
            time.sleep(0.3)
            (folder / "made").touch()
        found.append((folder / "made").exists())
    assert machine.alone().gather(1) == [1]
    return found


def fail_one():
    machine = start("cpu")
    if machine.rank:
        return processes.failed_before(65)
    try:
        return machine.gather(None)
    except TemporaryFailure as error:
        return str(error), processes.failed_before(error.exit_code)


def wait_for_the_dead():
    machine = start("cpu")
    if machine.rank:
        os.kill(os.getpid(), signal.SIGKILL)
    processes.GRACE_S = 0.2
    with stopping_on_sigterm():
        os.kill(os.getpid(), signal.SIGTERM)
        try:
            return machine.gather(None)
        except TemporaryFailure as error:
            return str(error)


# what comes of it ------------------------------------------------------------------------------


def test_an_uneven_share_has_the_gradient_of_the_whole_batch(tmp_path):
    (found, trained), (other, twin) = together(tmp_path, share_a_batch, tmp_path / "c")
    for one, two, whole in zip(found, other, gradients(CPU), strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_allclose(one, whole, rtol=1e-4, atol=1e-6)
    history, weights = train(CPU, tmp_path / "alone")
    np.testing.assert_allclose(trained[0], history, rtol=1e-3)
    assert trained[0] == twin[0]
    for name, whole in weights.items():
        np.testing.assert_array_equal(trained[1][name], twin[1][name])
        np.testing.assert_allclose(trained[1][name], whole, atol=1e-3)
    assert not list(tmp_path.glob("c*"))


def test_all_stop_at_the_same_step_and_go_on_to_the_same_result(tmp_path):
    checkpoint = tmp_path / "c"
    messages = together(tmp_path, stop_one, checkpoint)
    assert len(set(messages)) == 1
    assert "stopped after 3 of 8 steps and saved" in messages[0]
    assert files.load_tensors(checkpoint)[0]["history"].shape == (3,)
    (_, resumed), _ = together(tmp_path, share_a_batch, checkpoint)
    (_, straight), _ = together(tmp_path, share_a_batch, tmp_path / "other")
    assert resumed[0] == straight[0]
    for name, whole in straight[1].items():
        np.testing.assert_array_equal(resumed[1][name], whole)


def test_the_end_of_one_is_told_by_another(tmp_path):
    (message, before), nothing = together(tmp_path, lose_one, tmp_path / "c")
    assert nothing is None
    assert "Another process of this run has ended" in message
    assert before is None


def test_plain_data_are_exchanged(tmp_path):
    for rank, found in enumerate(together(tmp_path, exchange, tmp_path)):
        assert found == [
            [[0, None, 0.1], [1, None, 0.1]],
            list(["ace", "bd"][rank]),
            ["a0", "b1", "c0", "d1", "e0"],
            True,
        ]


def test_the_first_failure_is_that_of_all(tmp_path):
    (message, code), before = together(tmp_path, fail_one)
    assert before is None
    assert "Another process" in message
    assert code == 65


def test_nobody_waits_for_the_dead_when_asked_to_stop(tmp_path):
    message, nothing = together(tmp_path, wait_for_the_dead)
    assert nothing is None
    assert "Stopped by SIGTERM" in message


def test_all_fail_alike_and_one_says_so(heads, tmp_path):
    words = [str(heads), str(tmp_path / "out"), "group", "--label-subject", "77"]
    assert together(tmp_path, cli.main, words) == [66, 66]
    assert said(tmp_path).count("which is to give the label") == 1
    assert "process 1" not in said(tmp_path)


def test_a_folder_of_its_own_is_noticed(heads, tmp_path):
    assert together(tmp_path, separate, heads, tmp_path) == [66, 66]
    assert said(tmp_path).count("does not find here what the first one has written") == 1


def separate(heads: Path, folder: Path) -> int:
    out = folder / f"out-{processes.ranks()[0]}"
    return cli.main([str(heads), str(out), "group", "--sloppy"])


class TestWithoutOthers:
    def test_ranks_are_those_of_torchrun(self, monkeypatch):
        assert processes.ranks() == (0, 1, 0)
        monkeypatch.setenv("RANK", "5")
        assert processes.ranks() == (0, 1, 0)
        monkeypatch.setenv("WORLD_SIZE", "8")
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert processes.ranks() == (5, 8, 1)

    def test_one_process_needs_nothing(self):
        assert CPU.gather(3) == [3]
        assert CPU.collect([1, 2]) == [1, 2]
        with CPU.first(), CPU.share("abc") as own:
            assert own == "abc"
        assert processes.failed_before(65) is None
        processes.leave()

    def test_only_the_first_tells_progress(self, monkeypatch):
        log = runtime.LOG
        before = (log.handlers[:], log.level, log.propagate)
        stream = io.StringIO()
        monkeypatch.setattr("sys.stderr", stream)
        for name, value in (("RANK", "3"), ("WORLD_SIZE", "8"), ("LOCAL_RANK", "3")):
            monkeypatch.setenv(name, value)
        try:
            runtime.start_logging(1)
            log.info("progress")
            log.warning("what all see")
            with replace(CPU, rank=3, world=8).share(range(8)):
                log.info("progress")
                log.warning("of my share")
            log.error("what ends it")
        finally:
            log.handlers[:], log.propagate = before[0], before[2]
            log.setLevel(before[1])
        assert [line.partition(" ")[2] for line in stream.getvalue().splitlines()] == [
            "WARNING [process 3] of my share",
            "ERROR [process 3] what ends it",
        ]

    def test_different_devices_are_no_team(self, monkeypatch):
        """A node whose driver has failed."""
        monkeypatch.setattr(processes, "ranks", lambda: (0, 2, 0))
        monkeypatch.setattr(processes, "meet", lambda: None)
        found = [["cpu", False], ["cuda", True]]
        monkeypatch.setattr(processes, "exchange", lambda own, _: found)
        with pytest.raises(Usage, match="different devices"):
            start("cpu")

    @pytest.mark.parametrize("failed", [True, False])
    def test_after_a_failure_nccl_is_not_waited_for(self, monkeypatch, failed):
        store, left = dist.HashStore(), []
        if failed:
            store.set("failed", "0 65")
        monkeypatch.setattr(processes._Meeting, "store", store)
        monkeypatch.setattr(dist, "is_initialized", lambda: True)
        monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
        monkeypatch.setattr(dist, "destroy_process_group", lambda: left.append("group"))
        processes.leave()
        assert left == ([] if failed else ["group"])

    @pytest.mark.parametrize("name", ["auto", "cuda"])
    def test_each_takes_a_gpu_of_its_own(self, monkeypatch, name):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        assert runtime._device(name, 1) == torch.device("cuda:1")
        with pytest.raises(Usage, match="2 CUDA devices"):
            runtime._device(name, 2)
        with pytest.raises(Usage, match="a GPU of its own"):
            runtime._device("cuda:1", 1)
        assert replace(CPU, device=torch.device("cuda:1"), world=2).device_name == "cuda"


def test_losses_are_looked_at_now_and_then(tmp_path, monkeypatch):
    """As on a GPU: nothing changes but the step at which a stop or a bad loss is noticed."""
    history, weights = train(CPU, tmp_path / "c")
    monkeypatch.setattr(Runtime, "look_every", 3)
    calls = iter(range(100))

    def stopping(network, generators):
        if next(calls) == 3:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss(network, generators)

    with stopping_on_sigterm(), pytest.raises(TemporaryFailure, match="after 6 of 8"):
        train(CPU, tmp_path / "c", stopping)
    again, resumed = train(CPU, tmp_path / "c")
    assert again == history
    for name, whole in weights.items():
        np.testing.assert_array_equal(resumed[name], whole)

    counted = iter(range(100))
    with pytest.raises(Exception, match="nan at step 4"):
        train(CPU, tmp_path / "d", lambda n, g: loss(n, g) * (1 if next(counted) < 4 else np.nan))
