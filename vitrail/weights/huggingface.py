"""Hugging Face's image encoders: ViT, DeiT, MSN, I-JEPA, MAE, BEiT, DINOv2, DINOv3, CLIP's and SigLIP's vision towers.

config.json tells the numerics; every field of it is read, or known to change no answer, or refused by name.
"""

import re
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

from vitrail.config import parse
from vitrail.models import vit
from vitrail.weights.format import Place, Weights, as_it_was, from_state_dict
from vitrail.weights.huggingface_names import BESIDE, SPELLINGS, disk, entries
from vitrail.weights.mapping import scatter
from vitrail.weights.pixels import processor, processor_of
from vitrail.weights.shapes import Shapes
from vitrail.weights.spelling import spelled
from vitrail.weights.tensors import write_folder

# Fields of config.json that are ours under other names.
FIELDS = {"num_channels": "channels", "hidden_size": "width", "num_hidden_layers": "depth"}
FIELDS |= {"num_attention_heads": "heads", "layer_norm_eps": "norm_eps", "qkv_bias": "qkv_bias"}
NAMES = {"vit": "ViTModel", "dinov2": "Dinov2Model", "dinov2_with_registers": "Dinov2WithRegistersModel"}
ACTIVATIONS = {"gelu": "gelu", "gelu_pytorch_tanh": "gelu_tanh", "gelu_new": "gelu_tanh", "quick_gelu": "quick_gelu"}
# Values of fields that older files leave out, by kind; "" for all.
TOWER = {"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12}
TOWER |= {"image_size": 224}
DEFAULTS: dict[str, dict[str, Any]] = {
    "": {"num_channels": 3, "qkv_bias": True, "hidden_act": "gelu"},
    "clip": {**TOWER, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    "siglip": {**TOWER, "patch_size": 16, "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6},
    "dinov3_vit": {
        "use_gated_mlp": False,
        "query_bias": True,
        "key_bias": False,
        "value_bias": True,
        "rope_theta": 100.0,
    },
}
KINDS = ("vit", "deit", "vit_mae", "vit_msn", "ijepa", "beit", "dinov2", "dinov2_with_registers", "dinov3_vit", "clip")
KINDS += ("siglip",)
READ = {"image_size", "patch_size", "intermediate_size", "hidden_act", "mlp_ratio", "layerscale_value", *FIELDS}
READ |= {"num_register_tokens", "use_swiglu_ffn", "use_relative_position_bias", "use_shared_relative_position_bias"}
READ |= {
    "use_absolute_position_embeddings",
    "use_mean_pooling",
    "layer_scale_init_value",
    "use_gated_mlp",
    "rope_theta",
}
READ |= {"query_bias", "key_bias", "value_bias", "proj_bias", "mlp_bias", "pooler_act", "vision_use_head", "id2label"}
READ |= {"label2id", "problem_type", "rope_parameters"}
# What changes no answer: of training, of text, of other heads, of the library itself.
IDLE = re.compile(
    r"_|architectures$|model_type$|transformers_version$|(torch_)?dtype$|initializer_|.*dropout|.*drop_?path|.*_prob$|"
    r"attn_implementation|encoder_stride$|pooler_output_size$|num_labels$|projection_dim$|decoder_|mask_ratio$|norm_pix|"
    r"out_(features|indices)$|stage_names$|apply_layernorm$|reshape_hidden_states$|return_dict|output_|vocab_size$|"
    r"use_(mask_token|auxiliary_head|cache|bfloat16|return_dict)|auxiliary_|semantic_|pool_scales$|add_fpn$|"
    r"pos_embed_(jitter|rescale|shift)$|finetuning_task$|torchscript$|pruned_heads$|tie_|chunk_size|is_|cross_|add_cross|"
    r"(bos|eos|pad|sep)_token_id$|tokenizer_class$|prefix$|task_specific|custom_pipelines$|auto_map$|name_or_path$|"
    r"tf_legacy_loss$|logit_scale_init|text_config|vision_config$|(max|min)_length$|num_beam|temperature$|top_|typical_p|"
    r".*_penalty$|.*ngram_size$|bad_words|num_return|forced_|remove_invalid|.*suppress|do_sample$|early_stopping$|"
    r"diversity|length_penalty|segmentation_indices$|gradient_checkpointing$|feature_extractor|backbone|model_name$"
)
# problem_type: what the outputs are.
PROBLEMS: dict[str | None, dict[str, Any]] = {
    None: {},
    "single_label_classification": {"kind": "classify", "config": {}},
    "multi_label_classification": {"kind": "classify", "config": {"loss": "sigmoid"}},
    "regression": {"kind": "regression", "config": {}},  # of which no task here makes predictions
}
# Fields that transformers leaves open: how positions are resampled and images cut, and what only training needs.
FREE = {"resample", "remainder", "dropout", "attention_dropout", "drop_path"}


class HuggingFace:
    """The format: a folder with config.json, preprocessor_config.json and a state dict."""

    name = "huggingface"

    def recognise(self, place: Place) -> bool:
        return place.settings.get("model_type", "timm_wrapper") != "timm_wrapper"

    def read(self, place: Place) -> Weights:
        kind, settings = vision(place.settings)
        _refuse_unknown({name: value for name, value in settings.items() if not place.ignores(name)}, kind)
        inside = {name: file for name, file in place.named.items() if not BESIDE.match(name)}
        if beside := sorted(set(place.named) - set(inside)):
            place.notes.append(f"of the other half of the model, {len(beside)} tensors are not read ({beside[0]}, ...)")
        names = {ours: inside[name] for ours, name in spelled(inside, SPELLINGS).items()}
        shapes = Shapes({ours: tuple(place.tensors[file].shape) for ours, file in names.items()})
        config = infer(kind, settings, shapes)
        if config.pool == "avg" and "pool.probe" in names:  # SigLIP's classifier reads the tokens, not its own pooling
            names = {ours: file for ours, file in names.items() if not ours.startswith("pool.")}
        if (read := shapes.sizes("patch.weight", 4)[1]) != config.channels:
            raise ValueError(f"config.json has num_channels {config.channels}, but the patches' weights are of {read}.")
        found = place.json("preprocessor_config.json") or place.json("processor_config.json").get("image_processor", {})
        how = processor(found, kind, config.image_size, config.channels)
        if not found:
            place.notes.append("pixels are a guess, for there is no preprocessor_config.json: those of its family")
        table = entries(config, names)
        weights = from_state_dict(self.name, place, config, table, how, class_names(place.settings), names)
        problem = place.settings.get("problem_type")
        if problem not in PROBLEMS:
            raise ValueError(f"config.json has problem_type {problem!r}; known are {', '.join(map(str, PROBLEMS))}.")
        return replace(weights, task=PROBLEMS[problem]) if problem else weights

    def write(self, weights: Weights, target: Path) -> list[str]:
        own, config = weights.format == self.name, weights.vit(self.name)
        if own:
            settings, back = weights.original.settings, weights.original.names
            tensors = scatter(entries(config, back), weights.tensors)
            kind, vision_settings = vision(settings)
            spelt = tensors
        else:
            settings = describe(config, weights.class_names)
            if weights.task["config"].get("loss") == "sigmoid":
                settings["problem_type"] = "multi_label_classification"
            kind, vision_settings, gated = settings["model_type"], settings, config.activation == "swiglu"
            spelt = scatter(entries(config, _Every()), weights.tensors)
            root = "vit." if config.classes and kind == "vit" else f"{kind}." if config.classes else ""
            names = {n: ("" if n.startswith("head.") else root) + disk(kind, n, gated) for n in spelt}
            tensors = {names[n].replace("head.", "classifier."): t for n, t in spelt.items()}
        again = infer(kind, vision_settings, Shapes.of(spelt))
        for name in (field.name for field in fields(config) if field.name not in FREE):
            if (value := getattr(config, name)) != getattr(again, name):
                raise ValueError(f"transformers' {kind} cannot have {name} {value!r}; choose another format.")
        files = {"preprocessor_config": processor_of(weights.preprocessing)}
        write_folder(target, as_it_was(weights, self.name, tensors), config=settings, **files)
        return []


class _Every:
    """The names of a file that has whatever is asked for, but for MLPs in two halves and distillation."""

    def __contains__(self, name: object) -> bool:
        return not re.search(r"\.mlp\.(gate|up)\.|^dist$", str(name))


def vision(settings: Mapping[str, Any]) -> tuple[str, Mapping[str, Any]]:
    """(model_type, its fields) of the vision half of a model. ValueError where it is of another kind."""
    kind = str(settings["model_type"])
    inside = settings.get("vision_config")
    if kind in ("clip", "siglip") and isinstance(inside, dict):
        return kind, inside
    kind = {"clip_vision_model": "clip", "siglip_vision_model": "siglip"}.get(kind, kind)
    if kind not in KINDS:
        raise ValueError(f"config.json is of a {kind!r}, which is not known; known are {', '.join(KINDS)}.")
    return kind, settings


def _refuse_unknown(settings: Mapping[str, Any], kind: str) -> None:
    for name, value in settings.items():
        if name not in READ and not IDLE.match(name):
            raise ValueError(
                f"config.json has {name} {value!r}, which is not known of a {kind}; leave it out by --ignore {name}, "
                f"or ignore=[{name!r}] in Python."
            )
    for name in ("proj_bias", "mlp_bias"):
        if settings.get(name) is False:
            raise ValueError(f"config.json has {name} false; models without these biases are not known here.")


def infer(kind: str, settings: Mapping[str, Any], shapes: Shapes) -> vit.Config:
    """The configuration that config.json describes. ValueError where it lacks a field, or has one that is not known.

    shapes: in our spelling.
    """
    own = {**DEFAULTS[""], **DEFAULTS.get(kind, {}), **settings}
    try:
        width = own["hidden_size"]
        if own["hidden_act"] not in ACTIVATIONS and not (own["hidden_act"] == "silu" and own.get("use_gated_mlp")):
            raise ValueError(f"the activation {own['hidden_act']!r} is not known.")
        sizes = {name: own[name] for name in ("image_size", "patch_size")}
        found: dict[str, Any] = {n: [size, size] if isinstance(size, int) else size for n, size in sizes.items()}
        found |= {ours: own[theirs] for theirs, ours in FIELDS.items()}
        found |= {"resample": "bicubic", "classes": shapes.size("head.weight")}
        mlp_dim = int(width * own["mlp_ratio"]) if kind.startswith("dinov2") else own["intermediate_size"]
        found |= {"mlp_dim": mlp_dim, "activation": ACTIVATIONS.get(own["hidden_act"], "swiglu")}
        found |= _OF[kind](own, shapes) if kind in _OF else {}
        if shapes.size("head.weight", 1) == 2 * width and kind.startswith("dinov2"):
            found["pool"] = "token_avg"
        return parse(vit.Config, {"kind": "vit", "config": found})
    except KeyError as error:
        raise ValueError(f"config.json lacks {error}.") from None
    except TypeError as error:
        raise ValueError(f"config.json cannot be used: {error}.") from None


def _vit(own: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    if "pooler.dense.weight" not in shapes:
        return {}
    if own.get("pooler_act", "tanh") != "tanh":
        raise ValueError(f"config.json has pooler_act {own['pooler_act']!r}; tanh is known.")
    return {"representation": shapes.size("pooler.dense.weight")}


def _deit(own: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    """The distillation token is a register, with its position in its value."""
    return _vit(own, shapes) | {"registers": 1} | ({"pool": "distilled"} if "head_dist.weight" in shapes else {})


def _ijepa(own: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    return _vit(own, shapes) | {"class_token": False, "class_position": False, "pool": "avg"}


def _dinov2(own: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    gated = own.get("use_swiglu_ffn", False)
    found = {"layer_scale": own["layerscale_value"], "registers": own.get("num_register_tokens", 0)}
    if gated:
        found |= {"activation": "swiglu", "mlp_dim": shapes.size("layer.0.mlp.fc2.weight", 1)}
    return found | ({"resample": "bicubic_antialias"} if own["model_type"] == "dinov2_with_registers" else {})


def _dinov3(own: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    flags = own["query_bias"], own["key_bias"], own["value_bias"]
    if flags[0] != flags[2] or (flags[1] and not flags[0]):
        raise ValueError("config.json has biases of queries, keys and values that are not known together.")
    base = (own.get("rope_parameters") or {}).get("rope_theta", own["rope_theta"])
    found = {"registers": own["num_register_tokens"], "layer_scale": own["layerscale_value"], "qkv_bias": flags[0]}
    found |= {"key_bias": flags[1] or not flags[0]}
    found |= {"positions": "none", "rotary": {"base": float(base)}}
    if own["use_gated_mlp"] != (own["hidden_act"] == "silu"):
        raise ValueError(f"config.json has use_gated_mlp {own['use_gated_mlp']} with {own['hidden_act']!r}.")
    return found


def _beit(own: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    shared, each = own["use_shared_relative_position_bias"], own["use_relative_position_bias"]
    if shared and each:
        raise ValueError(
            "config.json has relative positions for each block and shared ones, which are not known together."
        )
    found: dict[str, Any] = {"relative": "bilinear" if shared or each else "none", "relative_shared": shared}
    found |= {"positions": "learned" if own["use_absolute_position_embeddings"] else "none", "key_bias": False}
    found |= {"pool": "avg", "norm_first": False} if own["use_mean_pooling"] else {"pool": "token"}
    scale = own["layer_scale_init_value"]
    return found | {"layer_scale": float(scale) if scale > 0 else None}


def _clip(own: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    if "head.weight" in shapes:
        raise ValueError("CLIP's classifier reads the mean of tokens that no norm has seen, which is not known here.")
    return {"pre_norm": True, "patch_bias": False}


def _siglip(own: Mapping[str, Any], shapes: Shapes) -> dict[str, Any]:
    pool = "map" if "pool.probe" in shapes and "head.weight" not in shapes else "avg"
    return {"class_token": False, "class_position": False, "pool": pool}


_OF = {"vit": _vit, "deit": _deit, "ijepa": _ijepa, "dinov2": _dinov2, "dinov2_with_registers": _dinov2, "beit": _beit}
_OF |= {"dinov3_vit": _dinov3, "clip": _clip, "siglip": _siglip}


def class_names(settings: Mapping[str, Any]) -> tuple[str, ...] | None:
    """The names in id2label, in order; None where there are none, or only LABEL_0, LABEL_1, ..."""
    labels = settings.get("id2label") or {}
    names = tuple(str(labels[key]) for key in sorted(labels, key=int))
    return None if not names or all(name == f"LABEL_{i}" for i, name in enumerate(names)) else names


def _ratio(config: vit.Config) -> int:
    """DINOv2's mlp_ratio, a whole number; the gated MLP takes two thirds of it, in steps of 8."""
    for ratio in range(1, 17):
        hidden = config.width * ratio
        if config.mlp_dim == ((hidden * 2 // 3 + 7) // 8 * 8 if config.activation == "swiglu" else hidden):
            return ratio
    raise ValueError(f"transformers' DINOv2 cannot have an MLP of {config.mlp_dim} at width {config.width}.")


def describe(config: vit.Config, names: tuple[str, ...] | None) -> dict[str, Any]:
    """config.json of a model, or of the nearest one. ValueError where it cannot have the classifier or the MLP."""
    if config.classes and (config.layer_scale is not None or config.representation):
        raise ValueError("transformers has no classifier beside LayerScale or pre-logits; choose another format.")
    height, width = config.image_size
    kind = "vit" if config.layer_scale is None else "dinov2_with_registers" if config.registers else "dinov2"
    back = {ours: theirs for theirs, ours in ACTIVATIONS.items()}
    settings: dict[str, Any] = {theirs: getattr(config, ours) for theirs, ours in FIELDS.items()} | {
        "model_type": kind,
        "architectures": ["ViTForImageClassification" if config.classes else NAMES[kind]],
        "image_size": height if height == width else [height, width],
        "patch_size": config.patch_size[0],
        "intermediate_size": config.mlp_dim,
        "hidden_act": back.get(config.activation, "gelu"),
    }
    if kind != "vit":
        settings |= {"mlp_ratio": _ratio(config), "use_swiglu_ffn": config.activation == "swiglu"}
        settings |= {"layerscale_value": config.layer_scale, "num_register_tokens": config.registers}
    if config.classes:
        labels = names or tuple(f"LABEL_{i}" for i in range(config.classes))
        settings |= {"id2label": dict(enumerate(labels)), "label2id": {name: i for i, name in enumerate(labels)}}
    return settings
