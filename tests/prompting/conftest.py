"""The real tokenizer, the published sizes, and transformers' own processor to compare with."""

from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast
from transformers.models.gemma3.image_processing_pil_gemma3 import Gemma3ImageProcessorPil
from transformers.models.gemma3.processing_gemma3 import Gemma3Processor

from gemma3vl_app.pictures import Picture
from gemma3vl_app.prompting import PromptFormat, TextTokenizer

DATA = Path(__file__).parents[1] / "data"
SIZE, IMAGE_TOKENS = 896, 256

HUB_CONFIG = {  # what prompting reads of google/gemma-3-4b-it's config.json
    "architectures": ["Gemma3ForConditionalGeneration"],
    "boi_token_index": 255999,
    "eoi_token_index": 256000,
    "eos_token_id": [1, 106],
    "image_token_index": 262144,
    "mm_tokens_per_image": IMAGE_TOKENS,
    "model_type": "gemma3",
    "text_config": {"hidden_size": 2560, "model_type": "gemma3_text"},
    "vision_config": {"image_size": SIZE, "model_type": "siglip_vision_model"},
}


@pytest.fixture(scope="session")
def tokenizer_file(base_270m):
    return base_270m / "tokenizer.json"


@pytest.fixture(scope="session")
def tokenizer(tokenizer_file):
    return TextTokenizer.from_file(tokenizer_file)


@pytest.fixture(scope="session")
def format(tokenizer):
    return PromptFormat.from_config(HUB_CONFIG, None, tokenizer)


@pytest.fixture(scope="session")
def processor(tokenizer_file):
    """Transformers' processor with the published template; control tokens in text are live."""
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer.from_file(str(tokenizer_file)),
        bos_token="<bos>",
        extra_special_tokens={
            "boi_token": "<start_of_image>",
            "eoi_token": "<end_of_image>",
            "image_token": "<image_soft_token>",
        },
    )
    return Gemma3Processor(
        Gemma3ImageProcessorPil(size={"height": SIZE, "width": SIZE}),
        tokenizer,
        chat_template=(DATA / "gemma3_chat_template.jinja").read_text(encoding="utf-8"),
        image_seq_length=IMAGE_TOKENS,
    )


@pytest.fixture(scope="session")
def photo():
    """A function of (width, height, crops) that makes a picture full of detail."""

    def make(width, height, crops="off", seed=0):
        noise = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
        return Picture.open(noise, name=f"{width}x{height}", crops=crops)

    return make
