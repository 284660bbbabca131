"""Which models are in memory, one load at a time, and memory that comes back."""

from gemma3vl_app.manager.manager import FINISH_SEC, ModelManager
from gemma3vl_app.manager.news import Listener
from gemma3vl_app.manager.values import Freed, ModelEvent, Resident

__all__ = ["FINISH_SEC", "Freed", "Listener", "ModelEvent", "ModelManager", "Resident"]
