"""Devices by their names, and what a training gets of them."""

import math
from types import SimpleNamespace

import pytest
import torch

from vitrail.models.cost import TRAINING, flops
from vitrail.models.zoo import configure
from vitrail.runtime.blocks import pick_device
from vitrail.runtime.devices import KINDS, watch
from vitrail.runtime.distributed import ALONE

MODEL = configure("ViT-Ti/16")


def test_a_device_that_is_picked_computes_convolutions_in_fp32(monkeypatch):
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)  # as torch has it
    pick_device("cpu")
    assert not torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize(
    ("name", "memory", "kind"),
    [
        ("NVIDIA A100-SXM4-40GB", 39.4, "a100-40"), ("NVIDIA A100 80GB PCIe", 79.3, "a100-80"),
        ("NVIDIA H100 80GB HBM3", 79.1, "h100"), ("NVIDIA H200", 139.8, "h200"), ("NVIDIA L4", 22.0, "l4"),
        ("Tesla T4", 14.6, "t4"), ("NVIDIA GeForce RTX 4090", 23.5, "rtx4090"),
        ("NVIDIA L40S", 44.4, None), ("NVIDIA H100 NVL", 93.1, None), ("Quadro", 16.0, None),
    ],
)  # fmt: skip
def test_a_device_is_known_by_its_name_and_memory(monkeypatch, name, memory, kind):
    found = SimpleNamespace(name=name, total_memory=int(memory * 2**30))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: found)
    watched = watch(MODEL, (224, 224), "bf16", torch.device("cuda"), ALONE)
    assert watched.flops == TRAINING * flops(MODEL, (224, 224))
    expected = KINDS[kind].peak("bf16") if kind else 0  # a T4 has no bf16
    assert watched.peak == expected if expected else math.isnan(watched.peak)


def test_a_cpu_has_no_known_peak_but_memory():
    watched = watch(MODEL, (224, 224), "fp32", torch.device("cpu"), ALONE)
    assert math.isnan(watched.peak)
    assert 2**26 < watched.memory() < 2**40
