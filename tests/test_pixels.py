"""The fields of transformers' image processors: honoured, or refused by name."""

import pytest

from vitrail.weights.pixels import processor

PROCESSORS = [
    ({"size": 256, "crop_size": 224, "image_processor_type": "DeiTImageProcessor"}, (224, "squash", 0.875, "bicubic")),
    ({"size": [192, 192], "resample": 3}, (192, "squash", 1.0, "bicubic")),
    ({"size": {"shortest_edge": 256}, "crop_size": 224, "do_center_crop": True}, (224, "crop", 0.875, "bilinear")),
    ({"size": {"shortest_edge": 224}, "crop_pct": 0.875, "image_processor_type": "ConvNextImageProcessor"},
     (224, "crop", 0.875, "bicubic")),
    ({"size": 224, "crop_size": 224, "do_center_crop": True, "feature_extractor_type": "CLIPFeatureExtractor"},
     (224, "crop", 1.0, "bicubic")),
    ({"do_resize": False}, (224, "native", 1.0, "bilinear")),
]  # fmt: skip


@pytest.mark.parametrize(("found", "expected"), PROCESSORS)
def test_the_fields_of_a_processor_are_honoured(found, expected):
    how = processor(found, "vit", (224, 224), 3)
    assert (how.image_size[0], how.resize, how.crop_fraction, how.interpolation) == expected


@pytest.mark.parametrize(("found", "mean", "std"), [
    ({"image_mean": 0.25, "image_std": [0.5] * 3}, 0.25, 0.5), ({"do_normalize": False}, 0.0, 1.0),
    ({"do_rescale": False, "image_mean": [127.5] * 3, "image_std": [255.0] * 3}, 0.5, 1.0),
    ({"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3}, 0.5, 0.5),
])  # fmt: skip
def test_colours_are_those_of_pixels_from_0_to_1(found, mean, std):
    how = processor(found, "vit", (224, 224), 3)
    assert how.mean == pytest.approx((mean,) * 3)
    assert how.std == pytest.approx((std,) * 3)


@pytest.mark.parametrize("found", [
    {"resample": 1}, {"do_pad": True}, {"size": {"longest_edge": 224}}, {"size": {"shortest_edge": 224}},
    {"image_processor_type": "SamImageProcessor"}, {"do_center_crop": True, "crop_size": 300}, {"size": "224"},
])  # fmt: skip
def test_what_a_processor_asks_for_and_is_not_done_is_refused(found):
    with pytest.raises(ValueError, match="preprocessor_config"):
        processor(found, "vit", (224, 224), 3)
