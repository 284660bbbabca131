"""Open the chat page: on a Hugging Face Space with what fits there, else as `gemma3vl app` does."""

import os
import sys

from gemma3vl_app.cli import main
from gemma3vl_app.space import serve_space

if __name__ == "__main__":
    if "SPACE_ID" in os.environ:
        serve_space(os.environ)
    else:
        model = os.environ.get("GEMMA3VL_MODEL", "demo")
        sys.argv[1:1] = ["app", "--model", model]
        main()
