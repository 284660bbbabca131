"""Speed as ratios against a baseline of the same run; `python -m gemma3vl_app.benchmark`."""
