"""Small random models of multimodal classes, which read text and images of 56 by 56 pixels."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import (
    AutoConfig,
    AutoModelForImageTextToText,
    AutoProcessor,
    Gemma3ImageProcessor,
    Gemma3Processor,
    PixtralImageProcessor,
    PixtralProcessor,
    PreTrainedTokenizerFast,
    ProcessorMixin,
    Qwen2_5_VLProcessor,
    Qwen2VLImageProcessor,
    Qwen2VLVideoProcessor,
    Qwen3VLProcessor,
    Qwen3VLVideoProcessor,
)

from support.random_models import EOS, VOCAB_SIZE, save_tokenizer

IMAGE_SIZE = 56
PATCH_SIZE = 14
FIRST_SPECIAL = 500
"""The ids of images begin here, above those that tests draw prompts from."""

QWEN_SPECIALS = {
    "vision_start_token": "<|vision_start|>",
    "vision_end_token": "<|vision_end|>",
    "image_token": "<|image_pad|>",
    "video_token": "<|video_pad|>",
}
SPECIALS = {
    "gemma3": {"boi_token": "<start_of_image>", "image_token": "<image_soft_token>", "eoi_token": "<end_of_image>"},
    "mistral3": {"image_token": "[IMG]", "image_break_token": "[IMG_BREAK]", "image_end_token": "[IMG_END]"},
    "qwen2_5_vl": QWEN_SPECIALS,
    "qwen3_vl": QWEN_SPECIALS,
    "qwen3_5": QWEN_SPECIALS,
}


CHAT_TEMPLATE_OF_PARTS = (
    "{% for message in messages %}{{ message['role'] }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for part in message['content'] %}"
    "{{ '<start_of_image>' if part['type'] == 'image' else part['text'] | trim }}{% endfor %}{% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant: {% endif %}"
)
"""As Gemma 3 is published, a message is a list of parts. For a template of text vLLM puts a line break behind the image, does
not find the image again, and answers with status 500, with and without this package (`_find_mm_placeholders` in
`gemma3_mm.py` takes three line breaks for one and two, where they are two and one)."""

IDS = {family: {name: FIRST_SPECIAL + place for place, name in enumerate(names)} for family, names in SPECIALS.items()}
"""Of the tokens that stand for images and what is around them."""


def _text_config(hidden_size: int, num_layers: int, **overrides: Any) -> dict[str, Any]:
    return {
        "vocab_size": VOCAB_SIZE,
        "hidden_size": hidden_size,
        "intermediate_size": 2 * hidden_size,
        "num_hidden_layers": num_layers,
        "num_attention_heads": hidden_size // 32,
        "num_key_value_heads": max(1, hidden_size // 64),
        "head_dim": 32,
        "max_position_embeddings": 1024,
        "initializer_range": 0.15,
        "bos_token_id": None,
        "eos_token_id": EOS,
        "pad_token_id": None,
        **overrides,
    }


def _config(family: str, text: dict[str, Any]) -> dict[str, Any]:
    ids = IDS[family]
    vision = {"hidden_size": 32, "intermediate_size": 64, "initializer_range": 0.15}
    if family == "gemma3":
        return {
            "text_config": {
                **text,
                "sliding_window": 48,
                "query_pre_attn_scalar": 32,
                "layer_types": ["sliding_attention", "full_attention"] * (text["num_hidden_layers"] // 2),
            },
            "vision_config": {
                **vision,
                "num_attention_heads": 2,
                "num_hidden_layers": 1,
                "image_size": IMAGE_SIZE,
                "patch_size": PATCH_SIZE,
            },
            "mm_tokens_per_image": 4,
            "boi_token_index": ids["boi_token"],
            "eoi_token_index": ids["eoi_token"],
            "image_token_index": ids["image_token"],
        }
    if family == "mistral3":
        return {
            "text_config": {**text, "model_type": "mistral", "sliding_window": None},
            "vision_config": {
                **vision,
                "model_type": "pixtral",
                "num_attention_heads": 2,
                "num_hidden_layers": 1,
                "image_size": IMAGE_SIZE,
                "patch_size": PATCH_SIZE,
                "head_dim": 16,
            },
            "image_token_index": ids["image_token"],
            "vision_feature_layer": -1,
        }
    qwen = {**vision, "depth": 2, "num_heads": 2, "patch_size": PATCH_SIZE, "out_hidden_size": text["hidden_size"]}
    common = {f"{name}_id": token_id for name, token_id in ids.items()}
    if family == "qwen2_5_vl":
        rope = {"rope_type": "default", "mrope_section": [4, 6, 6], "rope_theta": 10000.0}
        qwen |= {"fullatt_block_indexes": [1], "window_size": 112}
    elif family == "qwen3_vl":
        rope = {"rope_type": "default", "mrope_section": [6, 5, 5], "mrope_interleaved": True, "rope_theta": 10000.0}
        qwen |= {"num_position_embeddings": 16, "deepstack_visual_indexes": [0]}
    else:
        rope = {"rope_type": "default", "mrope_section": [3, 3, 2], "mrope_interleaved": True, "rope_theta": 10000.0}
        rope["partial_rotary_factor"] = 0.25
        qwen |= {"num_position_embeddings": 16}
    return {"text_config": {**text, "rope_parameters": rope}, "vision_config": qwen, **common}


def save_multimodal_model(
    path: Path, family: str, *, hidden_size: int = 64, num_layers: int = 2, seed: int = 0, **overrides: Any
) -> str:
    """Save a random model of a multimodal class, its tokenizer and its processor.

    Args:
        path: a folder.
        family: gemma3, mistral3, qwen2_5_vl, qwen3_vl or qwen3_5, by the name of transformers.
        hidden_size, num_layers, seed: of the language model.
        overrides: fields of its configuration.
    """
    torch.manual_seed(seed)
    config = AutoConfig.for_model(
        family, **_config(family, _text_config(hidden_size, num_layers, **overrides)), tie_word_embeddings=True
    )
    model = AutoModelForImageTextToText.from_config(config)
    model.save_pretrained(path)
    if family == "gemma3":
        _rename_as_published(Path(path) / "model.safetensors")
    _processor(family, save_image_tokenizer(path, family)).save_pretrained(path)
    return str(path)


def _rename_as_published(file: Path) -> None:
    """transformers leaves a level out of the names of the vision tower, which published checkpoints and vLLM have."""
    tower = "vision_tower."
    weights = load_file(file)
    renamed = {name.replace(tower, f"{tower}vision_model.", 1): weight for name, weight in weights.items()}
    save_file(renamed, file, metadata={"format": "pt"})


def _processor(family: str, tokenizer: PreTrainedTokenizerFast) -> ProcessorMixin:
    if family == "gemma3":
        size = {"height": IMAGE_SIZE, "width": IMAGE_SIZE}
        return Gemma3Processor(Gemma3ImageProcessor(size=size), tokenizer, image_seq_length=4)
    if family == "mistral3":
        images = PixtralImageProcessor(size={"longest_edge": IMAGE_SIZE}, patch_size=PATCH_SIZE)
        return PixtralProcessor(images, tokenizer, patch_size=PATCH_SIZE, spatial_merge_size=2)
    pixels = {"size": {"shortest_edge": IMAGE_SIZE**2, "longest_edge": IMAGE_SIZE**2}, "patch_size": PATCH_SIZE}
    if family == "qwen2_5_vl":
        return Qwen2_5_VLProcessor(Qwen2VLImageProcessor(**pixels), tokenizer, Qwen2VLVideoProcessor(**pixels))
    return Qwen3VLProcessor(Qwen2VLImageProcessor(**pixels), tokenizer, Qwen3VLVideoProcessor(**pixels))


def save_image_tokenizer(path: Path, family: str) -> PreTrainedTokenizerFast:
    """The tokenizer of the other random models, with the tokens of images from `FIRST_SPECIAL` on."""
    save_tokenizer(path)
    file = Path(path) / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"<filler {i}>": i for i in range(len(vocabulary), FIRST_SPECIAL)}
    file.write_text(json.dumps(content))
    names = SPECIALS[family]
    tokenizer = PreTrainedTokenizerFast.from_pretrained(path, extra_special_tokens=names)
    tokenizer.add_tokens(["\n" * count for count in range(1, 5)])  # vLLM's Gemma 3 looks for them
    assert {name: tokenizer.convert_tokens_to_ids(token) for name, token in names.items()} == IDS[family]
    if family == "gemma3":
        tokenizer.chat_template = CHAT_TEMPLATE_OF_PARTS
    tokenizer.save_pretrained(path)
    return tokenizer


def random_image(seed: int) -> Image.Image:
    """Of the size that the models read."""
    pixels = np.random.default_rng(seed).integers(0, 256, (IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def image_prompt(family: str, before: list[int], after: list[int]) -> list[int]:
    """A prompt with one image, before vLLM makes as many placeholders as it has.

    Tokens that no test draws lie around it, so that no n-gram of a text is drafted on into the image.
    """
    ids = IDS[family]
    if family == "gemma3":
        image = [ids["boi_token"]]
    elif family == "mistral3":
        image = [ids["image_token"]]
    else:
        image = [ids["vision_start_token"], ids["image_token"], ids["vision_end_token"]]
    return [*before, *range(450, 454), *image, *range(454, 456), *after]


def image_inputs(model: str, image: Image.Image) -> dict[str, torch.Tensor]:
    """What the model of transformers is called with beside the tokens, in float64."""
    processor = AutoProcessor.from_pretrained(model)
    inputs = processor.image_processor(images=[image], return_tensors="pt")
    inputs.pop("num_crops", None)
    return {name: value.double() if value.is_floating_point() else value for name, value in inputs.items()}


VIDEO_METADATA: dict[str, Any] = {
    "fps": 8.0,
    "duration": 0.5,
    "total_num_frames": 4,
    "frames_indices": [0, 1, 2, 3],
    "video_backend": "opencv",
    "do_sample_frames": False,
}
"""Of a video so short that transformers and vLLM agree where its text goes on: behind the frames' rows and columns in the one,
behind their times too in the other."""


def random_video(seed: int) -> np.ndarray:
    """Four frames [frames, height, width, channels] of the size that the models read."""
    return np.random.default_rng(seed).integers(0, 256, (4, IMAGE_SIZE, IMAGE_SIZE, 3), dtype=np.uint8)


def video_inputs(model: str, video: np.ndarray) -> dict[str, torch.Tensor]:
    """Of Qwen2.5-VL: what the model of transformers is called with beside the tokens, in float64."""
    processor = AutoProcessor.from_pretrained(model)
    inputs = processor.video_processor(videos=[video], do_sample_frames=False, return_tensors="pt")
    seconds = processor.video_processor.temporal_patch_size / VIDEO_METADATA["fps"]
    return {
        "pixel_values_videos": inputs["pixel_values_videos"].double(),
        "video_grid_thw": inputs["video_grid_thw"],
        "second_per_grid_ts": torch.tensor([seconds]),
    }
