"""`vitrail plan`: the paper's compute, sums that agree, a pace that is measured, and what cannot be planned."""

from typing import get_args, get_type_hints

import numpy as np
import pytest
from command_line import TINY, photos, printed, refused, status

from vitrail.cli import plan as command
from vitrail.runtime.devices import KINDS

JFT = ["--images", 303_000_000, "--batch", 4096, "--image-size", 224]
L16 = ["ViT-L/16", *JFT, "--duration", "7 epochs", "--kind", "h100"]


@pytest.mark.parametrize(
    ("what", "epochs", "exaflops"),  # of the paper's Table 6
    [
        ("ViT-B/16", 7, 224), ("ViT-L/32", 7, 196), ("ViT-L/16", 7, 783), ("ViT-L/16", 14, 1567),
        ("ViT-H/14", 14, 4262), ("R50+ViT-B/16", 7, 274), ("vit_b16_jft", 7, 224), ("vit_l16_jft", 14, 1567),
    ],
)  # fmt: skip
def test_the_papers_compute(capsys, what, epochs, exaflops):
    card, _ = printed(capsys, "plan", what, *JFT, "--duration", f"{epochs} epochs", "--kind", "h100")
    assert card["flops_training"] / 1e18 == pytest.approx(exaflops, rel=0.02)
    assert card["steps"] == pytest.approx(epochs * 303e6 / 4096, abs=1)


def test_the_sums_agree(capsys):
    one, _ = printed(capsys, "plan", *L16, "--devices", 8, "--utilisation", 0.5)
    assert one["flops_per_second"] == 0.5 * KINDS["h100"].bf16 * 1e12
    seconds = one["flops_training"] / (8 * one["flops_per_second"])
    assert (one["hours"], one["device_hours"]) == pytest.approx((seconds / 3600, seconds / 450))
    assert one["images_per_second"] == pytest.approx(7 * 303e6 / seconds, rel=1e-4)
    more, _ = printed(capsys, "plan", *L16, "--devices", 16, "--utilisation", 0.25, "--price", 2)
    assert (more["hours"], more["cost"]) == pytest.approx((one["hours"], 4 * one["device_hours"]))
    # To compute each block's forward pass again is a third more.
    again, _ = printed(capsys, "plan", *L16, "--devices", 8, "--utilisation", 0.5, "--checkpointing")
    assert again["hours"] == pytest.approx(4 / 3 * one["hours"])


def test_people_read_the_same(capsys):
    card, _ = printed(capsys, "plan", *L16, "--devices", 8, "--price", 2)
    assert status("plan", *(str(word) for word in L16), "--devices", 8, "--price", 2) == 0
    out = capsys.readouterr().out
    assert all(text in out for text in ("304,326,632", "517,822 steps of 4,096", "8 x h100 in bf16", "40% of its peak"))
    assert f"--micro-batch {card['best']['micro_batch']}" in out
    assert f"{card['hours']:,.2f} hours" in out
    assert f"{card['cost']:,.2f}" in out
    assert out.count("does not fit") == sum(not one["fits"] for one in card["layouts"]) > 0
    assert status("plan", "vit_7b_patch16_dinov3", "--images", 9, "--kind", "t4") == 0
    assert "nothing fits" in capsys.readouterr().out


def test_the_data_is_counted_where_it_is_there(capsys, tmp_path):
    place = photos(tmp_path / "photos", ["cat", "dog", "owl"], count=10)
    card, _ = printed(capsys, "plan", "small", "--data", place, "--kind", "l4", "--duration", "2 epochs", *TINY)
    assert (card["images"], card["steps"]) == (27, 7)
    free, _ = printed(capsys, "plan", "small", "--kind", "t4", "--duration", "5 steps", *TINY)
    assert (free["images"], free["steps"], free["precision"]) == (None, 5, "fp32")


def test_the_pace_is_measured_here(capsys, tmp_path, monkeypatch):
    monkeypatch.setattr(command, "SECONDS", 0.2)
    place = photos(tmp_path / "photos", ["cat", "dog"], count=10)
    for words in (["small", "--data", place, *TINY], ["ViT-Ti/16", "--images", 9, "--image-size", 32]):
        card, _ = printed(capsys, "plan", *words, "--calibrate", "--devices", 2)
        assert card["images_per_second"] > 0
        assert (card["kind"], card["utilisation"]) == ("here", None)
        assert np.isclose(card["flops_per_second"] * 2, 3 * card["flops_forward"] * card["images_per_second"])


def test_the_kinds_are_those_of_the_table():
    assert get_args(get_type_hints(command.Plan)["kind"]) == tuple(KINDS)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("nothing --images 5", "'nothing'"), ("ViT-L/17 --images 5", "ViT-L/16"), ("ViT-L/16", "--images"),
        ("finetune --images 5", "vitrail finetune"), ("demo --data gone", "gone does not exist"),
        ("ViT-L/16 --images 5 --kind h1000", "h100"), ("ViT-L/16 --images -5", "--images"),
        ("ViT-L/16 --images 5 --devices 0", "--devices"), ("ViT-L/16 --images 5 --utilisation 2", "--utilisation"),
        ("ViT-L/16 --images 5 --kind t4 --precision bf16", "bf16"), ("ViT-L/16 --images 5 --imags 6", "--images"),
        ("vit_7b_patch16_dinov3 --images 5 --model.depth 999 --calibrate", "does not fit"),
        ("ViT-L/16 --images 5 --optim.lr x", "lr"),
    ],
)  # fmt: skip
def test_what_cannot_be_planned_is_said(capsys, words, said):
    assert said in refused(capsys, "plan", *words.split())
