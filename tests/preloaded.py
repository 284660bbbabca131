"""What nearly every program imports and reads, for a process from which others are forked."""

import transformers
from transformers import Gemma3ForConditionalGeneration

import gemma3vl_app.backends.local
from gemma3vl_app.loading import base_270m_folder
from gemma3vl_app.prompting import TextTokenizer

__all__ = ["Gemma3ForConditionalGeneration", "gemma3vl_app", "transformers"]

# The demo's, too: equal files are read once while somebody uses them
TOKENIZER = TextTokenizer.from_file(base_270m_folder() / "tokenizer.json")
