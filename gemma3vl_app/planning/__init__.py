"""What a model needs and where it goes: arithmetic over configs and machines, no torch."""

from gemma3vl_app.planning.load_plan import DeviceBytes, LoadPlan, TrainingAdvice
from gemma3vl_app.planning.plan import plan_for
from gemma3vl_app.planning.sources import plan
from gemma3vl_app.planning.wishes import check_weights

__all__ = ["DeviceBytes", "LoadPlan", "TrainingAdvice", "check_weights", "plan", "plan_for"]
