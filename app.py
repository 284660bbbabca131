"""Open the chat page: on a Hugging Face Space with what fits there, else as `gemma3vl app` does."""

import os
import sys

if os.environ.get("SPACES_ZERO_GPU"):
    import spaces  # before anything that could look for a GPU

from gemma3vl_app.cli import main
from gemma3vl_app.space import serve_space, serve_zero_gpu

if __name__ == "__main__":
    if "SPACE_ID" in os.environ:  # Hugging Face's proxy says whether a browser came by https
        os.environ.setdefault("FORWARDED_ALLOW_IPS", "*")
    if os.environ.get("SPACES_ZERO_GPU"):
        serve_zero_gpu(os.environ, spaces.GPU)
    elif "SPACE_ID" in os.environ:
        serve_space(os.environ)
    else:
        model = os.environ.get("GEMMA3VL_MODEL", "demo")
        sys.argv[1:1] = ["app", "--model", model]
        main()
