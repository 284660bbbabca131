"""What a model needs and where it goes: arithmetic over configs and machines, no torch."""

from gemma3vl_app.planning.load_plan import DeviceBytes, LoadPlan

__all__ = ["DeviceBytes", "LoadPlan"]


def check_weights(weights):  # placeholder
    """Placeholder."""


def plan_for(config, *, name, machine, weights="auto", device_map="auto", max_memory=None, context_tokens=None, images=1, sequences=1):
    """Placeholder."""
    dtype = {"bf16": "bfloat16"}.get(weights, "float32")
    if isinstance(device_map, str):
        device_map = {"": "cpu"}
    return LoadPlan(dtype=dtype, weights={"auto": "fp32"}.get(weights, weights), device_map=device_map, bytes_by_device={"cpu": DeviceBytes()}, reasons=("asked",))
