"""Open the chat page on the demo model, or on the one that GEMMA3VL_MODEL names."""

import os

from gemma3vl_app.backends.local import load
from gemma3vl_app.server import serve
from gemma3vl_app.store import default_folder

if __name__ == "__main__":
    is_space = "SPACE_ID" in os.environ  # Hugging Face runs this file behind its own front door
    serve(
        load(os.environ.get("GEMMA3VL_MODEL", "demo")),
        host="0.0.0.0" if is_space else "127.0.0.1",  # a container is asked from outside
        no_auth=is_space,
        conversations=None if is_space else default_folder(),
    )
