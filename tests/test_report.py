# SPDX-License-Identifier: Apache-2.0
"""`report`: what it says of each layer, with times from a clock that the layers move."""

from __future__ import annotations

import json
from typing import Any

import pytest
import sparsekern as sk
import torch
from sparsekern import measure
from sparsekern.convert import convert_
from sparsekern.nn import CSRConv2d, CSRLinear
from torch import Tensor, nn

BANDWIDTH, PEAK = 1e9, 1e12


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(8, 128, 1, stride=2)
        self.first = nn.Linear(128, 64)
        self.second = nn.Linear(64, 4)
        self.spare = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(self.conv(x).flatten(2).transpose(1, 2)))


@pytest.fixture
def model() -> Net:
    model = Net().eval()
    sk.prune_(model, {"conv": sk.Block(4, 0.75), "first": sk.Unstructured(0.9)})
    convert_(model, policy="always")
    return model


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Packed layers take 1 ms, dense ones 3; the machine has the limits above."""
    now = [0.0]
    monkeypatch.setattr(measure, "clock", lambda: now[0])
    monkeypatch.setattr(measure, "read_bandwidth", lambda: BANDWIDTH)
    monkeypatch.setattr(measure, "fma_peak", lambda: PEAK)
    for kind, cost in ((CSRLinear, 1e-3), (CSRConv2d, 1e-3), (nn.Linear, 3e-3), (nn.Conv2d, 3e-3)):

        def forward(self: nn.Module, x: Tensor, real: Any = kind.forward, cost: float = cost):
            now[0] += cost
            return real(self, x)

        monkeypatch.setattr(kind, "forward", forward)


def test_without_examples_nothing_is_timed(model: Net):
    result = sk.report(model)
    assert [layer.name for layer in result.layers] == ["conv", "first", "second", "spare"]
    first, second = result["first"], result["second"]
    assert (first.format, first.dtype, first.block_rows, first.shape) == (
        "csr", "float32", 1, (64, 128)
    )  # fmt: skip
    assert first.density == pytest.approx(0.1, abs=0.001)
    assert first.kernel == model.first.kernel(1)
    assert first.nbytes == model.first.weight.nbytes
    assert first.dense_nbytes == 64 * 128 * 4
    assert (second.format, second.kernel, second.density) == ("dense", "torch", 1.0)
    assert second.reason == "fewer than 30% zeros"
    assert result["conv"].block_rows == 4
    assert result.seconds is None
    assert result.nbytes == sum(layer.nbytes for layer in result.layers)


@pytest.mark.usefixtures("timed")
def test_times_ratios_and_totals(model: Net):
    result = sk.report(model, torch.randn(2, 8, 5, 5), seconds=0)
    first, second = result["first"], result["second"]
    assert (first.seconds, first.dense_seconds) == pytest.approx((1e-3, 3e-3))
    assert first.ratio == pytest.approx(3.0)
    assert second.ratio == 1.0
    assert (result.seconds, result.dense_seconds) == pytest.approx((5e-3, 9e-3))
    assert result["conv"].rows == 2 * 3 * 3
    assert first.rows == 2 * 9
    assert first.kernel == model.first.kernel(18)
    assert result["conv"].kernel == model.conv.kernel(18)
    assert result["spare"].seconds is None
    assert result["spare"].ratio is None


@pytest.mark.usefixtures("timed")
def test_share_of_the_limit(model: Net):
    few = sk.report(model, torch.randn(1, 8, 1, 1), seconds=0)["first"]
    assert few.bound == "memory"
    assert few.share == pytest.approx(few.nbytes / BANDWIDTH / 1e-3)
    many = sk.report(model, torch.randn(60, 8, 9, 9), seconds=0)["first"]
    assert many.rows == 1500
    nnz = model.first.weight.nnz
    arithmetic = 2 * nnz * many.rows / PEAK
    memory = many.nbytes / BANDWIDTH
    assert many.share == pytest.approx(max(arithmetic, memory) / 1e-3)
    assert many.bound == ("memory" if memory >= arithmetic else "arithmetic")


@pytest.mark.usefixtures("timed")
def test_arithmetic_bounds_where_it_takes_longer(model: Net, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "fma_peak", lambda: 1e6)
    result = sk.report(model, torch.randn(2, 8, 5, 5), seconds=0)
    first, second = result["first"], result["second"]
    assert (first.bound, second.bound) == ("arithmetic", "arithmetic")
    assert first.share == pytest.approx(2 * model.first.weight.nnz * 18 / 1e6 / 1e-3)
    assert second.share == pytest.approx(2 * 64 * 4 * 18 / 1e6 / 3e-3)


@pytest.mark.usefixtures("timed")
def test_the_model_is_as_it_was(model: Net):
    before = dict(model.named_modules())
    x = torch.randn(2, 8, 5, 5)
    with torch.no_grad():
        y = model(x)
        sk.report(model, x, seconds=0)
        assert dict(model.named_modules()) == before
        assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
        torch.testing.assert_close(model(x), y, rtol=0, atol=0)


@pytest.mark.usefixtures("timed")
def test_plain_types_and_json(model: Net):
    result = sk.report(model, torch.randn(2, 8, 5, 5), seconds=0)
    read = json.loads(result.to_json())
    assert read["seconds"] == pytest.approx(5e-3)
    assert read["nbytes"] == result.nbytes
    by_name = {layer["name"]: layer for layer in read["layers"]}
    assert by_name["first"]["ratio"] == pytest.approx(3.0)
    assert by_name["conv"]["shape"] == [128, 8]


@pytest.mark.usefixtures("timed")
def test_table(model: Net):
    plain = str(sk.report(model)).splitlines()
    assert plain[0].split()[:4] == ["layer", "format", "shape", "density"]
    assert "ratio" not in plain[0]
    lines = str(sk.report(model, torch.randn(2, 8, 5, 5), seconds=0)).splitlines()
    assert "csr r4 float32" in lines[2]
    assert "csr_conv2d_r4_f32" in lines[2]
    assert "3.00x" in lines[3]
    assert lines[-2].startswith("total")
    assert lines[-2].split()[-5:] == ["9.00", "ms", "1.80x", "whole", "model"]
    assert "1.0 GB/s read, 1000 GFLOP/s" in lines[-1]


def test_a_real_run_has_times_for_every_layer_reached(model: Net, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "read_bandwidth", lambda: BANDWIDTH)
    monkeypatch.setattr(measure, "fma_peak", lambda: PEAK)
    result = sk.report(model, [torch.randn(2, 8, 5, 5), torch.randn(1, 8, 3, 3)], seconds=0)
    assert all(layer.seconds > 0 for layer in result.layers if layer.name != "spare")
    assert result["first"].rows == 18 + 4


def test_int8_counts_dense_as_float32():
    model = nn.Sequential(nn.Linear(16, 32)).eval()
    sk.prune_(model, sk.Unstructured(0.5))
    convert_(model, policy="smallest", allow_dtypes=[torch.int8])
    layer = sk.report(model)["0"]
    assert layer.dtype == "int8"
    assert layer.dense_nbytes == 32 * 16 * 4


def test_a_packed_layer_with_activation_is_compared_with_both(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(measure, "read_bandwidth", lambda: BANDWIDTH)
    monkeypatch.setattr(measure, "fma_peak", lambda: PEAK)
    model = nn.Sequential(nn.Linear(16, 32), nn.GELU()).eval()
    sk.prune_(model, sk.Unstructured(0.5))
    convert_(model, policy="always", fuse=True)
    assert sk.report(model, torch.randn(2, 16), seconds=0)["0"].dense_seconds > 0


def test_a_bare_packed_layer_is_reported():
    layer = CSRLinear.from_dense(nn.Linear(16, 32))
    assert [line.kernel for line in sk.report(layer).layers] == [layer.kernel()]


def test_bad_arguments(model: Net):
    with pytest.raises(TypeError, match=r"report: model must be an nn\.Module, got str"):
        sk.report("model")
    with pytest.raises(ValueError, match="report: example_inputs must hold at least one input"):
        sk.report(model, [])
    with pytest.raises(KeyError):
        sk.report(model)["third"]
