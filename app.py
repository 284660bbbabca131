"""Open the chat page on the demo model, or on the one that GEMMA3VL_MODEL names."""

import os

from gemma3vl_app.backends.local import load
from gemma3vl_app.server import serve

if __name__ == "__main__":
    serve(load(os.environ.get("GEMMA3VL_MODEL", "demo")))
