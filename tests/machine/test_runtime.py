from __future__ import annotations

import getpass
import io
import itertools
import json
import logging
import os
import re
import signal
import sys
import tempfile
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from singlestrip_bids.errors import TemporaryFailure, Usage
from singlestrip_bids.machine import runtime
from singlestrip_bids.machine.runtime import (
    Runtime,
    check_stop,
    describe,
    mix_seed,
    start,
    start_logging,
    stop_asked,
    stopping_on_sigterm,
)

PROPERTY = settings(max_examples=50, deadline=None, derandomize=True)
NUMBER = st.integers(-(2**63), 2**63 - 1)


class TestStart:
    def test_a_user_without_home_and_passwd_entry_gets_both(self, monkeypatch):
        for name in ("HOME", "LOGNAME", "USER", "LNAME", "USERNAME"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setattr(os, "getuid", lambda: 2**31)
        with pytest.raises(RuntimeError):
            Path.home()
        with pytest.raises((KeyError, OSError)):
            getpass.getuser()
        start("cpu")
        assert Path.home() == Path(tempfile.gettempdir())
        assert getpass.getuser() == str(2**31)

    def test_home_and_name_are_left_alone(self, monkeypatch):
        monkeypatch.setenv("HOME", "/somewhere")
        monkeypatch.setenv("LOGNAME", "somebody")
        start("cpu")
        assert (str(Path.home()), getpass.getuser()) == ("/somewhere", "somebody")

    @pytest.mark.parametrize("device", ["tpu", "", "gpu", "cpu:x", "cuda:-2", "meta", "mps"])
    def test_unknown_device(self, device):
        with pytest.raises(Usage, match=re.escape(f"--device {device}:")):
            start(device)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    @pytest.mark.parametrize("device", ["cuda", "cuda:0", "cuda:7"])
    def test_gpu_that_is_not_there(self, device):
        with pytest.raises(Usage, match=f"--device {device}:.*0 CUDA devices"):
            start(device)

    def test_gpu_beyond_the_last(self, monkeypatch):
        def capability(device):  # the second one is older: bfloat16 is emulated there
            return (7, 0) if device.index == 1 else (9, 0)

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.cuda, "get_device_capability", capability)
        assert start("cuda:0") == Runtime(torch.device("cuda:0"), bfloat16=True)
        assert start("cuda:1") == Runtime(torch.device("cuda:1"), bfloat16=False)
        assert start("auto").device == torch.device("cuda")
        with pytest.raises(Usage, match=r"--device cuda:2:.*2 CUDA devices"):
            start("cuda:2")

    def test_auto_without_gpu_says_so(self, monkeypatch, caplog):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        with caplog.at_level(logging.INFO):
            assert start("auto").device == torch.device("cpu")
        assert "No GPU" in caplog.text

    def test_threads(self):
        before = torch.get_num_threads()
        try:
            start("cpu", threads=1)
            assert torch.get_num_threads() == 1
        finally:
            torch.set_num_threads(before)
        start("cpu")
        assert torch.get_num_threads() == before


class TestRuntime:
    @pytest.mark.parametrize("bfloat16", [False, True])
    def test_autocast(self, bfloat16):
        here = Runtime(torch.device("cpu"), bfloat16)
        with here.autocast():
            made = torch.nn.Linear(2, 2)(torch.ones((1, 2)))
        assert made.dtype == (torch.bfloat16 if bfloat16 else torch.float32)

    def test_generators(self):
        here = Runtime(torch.device("cpu"), bfloat16=False)
        one, same, other = (
            torch.rand(8, generator=here.generator(*seed)) for seed in ((1, 2), (1, 2), (2, 1))
        )
        assert torch.equal(one, same)
        assert not torch.equal(one, other)
        assert here.generator(1).device == here.device

    def test_a_network_that_moves_in_prediction_can_be_trained_later(self):
        network = torch.nn.Linear(2, 2).train()
        with torch.inference_mode():
            moved = Runtime(torch.device("meta"), bfloat16=False).take(network)
        assert moved is network and not network.training
        assert {parameter.device.type for parameter in network.parameters()} == {"meta"}
        assert not any(parameter.is_inference() for parameter in network.parameters())


class TestMixSeed:
    @PROPERTY
    @given(st.lists(NUMBER, max_size=4))
    def test_deterministic_and_fit_for_torch(self, numbers):
        seed = mix_seed(*numbers)
        assert seed == mix_seed(*numbers)
        assert 0 <= seed < 2**63
        torch.Generator().manual_seed(seed)

    def test_distinct(self):
        seeds = [mix_seed(a, b) for a, b in itertools.product(range(-3, 200), range(100))]
        seeds += [mix_seed(a) for a in range(-3, 200)]
        seeds += [mix_seed(a, b, c) for a, b, c in itertools.product(range(20), repeat=3)]
        assert len(set(seeds)) == len(seeds)

    def test_neighbouring_seeds_share_no_bits_by_rule(self):
        """About half of the bits change from one seed to the next."""
        changed = [(mix_seed(n, 0) ^ mix_seed(n + 1, 0)).bit_count() for n in range(200)]
        assert 20 < sum(changed) / len(changed) < 43


class TestStopping:
    def test_sigterm_asks(self):
        before = signal.getsignal(signal.SIGTERM)
        with stopping_on_sigterm():
            assert not stop_asked()
            check_stop()
            os.kill(os.getpid(), signal.SIGTERM)
            assert stop_asked()
            with pytest.raises(TemporaryFailure):
                check_stop()
        assert not stop_asked()
        assert signal.getsignal(signal.SIGTERM) is before

    def test_handler_is_put_back_after_an_error(self):
        before = signal.getsignal(signal.SIGTERM)
        with pytest.raises(ZeroDivisionError), stopping_on_sigterm():
            raise ZeroDivisionError
        assert signal.getsignal(signal.SIGTERM) is before


class TestLogging:
    @pytest.mark.parametrize(("verbosity", "lines"), [(0, 1), (1, 2)])
    def test_to_standard_error(self, monkeypatch, verbosity, lines):
        log = runtime.LOG
        before = (log.handlers[:], log.level, log.propagate)
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        try:
            start_logging(verbosity)
            start_logging(verbosity)  # once more, and still one line a message
            log.debug("detail")
            log.info("fact")
        finally:
            log.handlers[:], log.propagate = before[0], before[2]
            log.setLevel(before[1])
        assert len(stream.getvalue().splitlines()) == lines
        assert "INFO fact" in stream.getvalue()


def test_describe_is_plain():
    facts = describe(torch.device("cpu"))
    assert json.loads(json.dumps(facts)) == facts
    assert facts["torch"] == torch.__version__
    assert facts["threads"] == torch.get_num_threads()
    assert facts["gpu"] is None
