"""What a model needs and where it goes: arithmetic over configs and machines, no torch."""

from gemma3vl_app.planning.load_plan import DeviceBytes, LoadPlan

__all__ = ["DeviceBytes", "LoadPlan"]
