"""How answers are scored: a module for each family of metrics, each like its published reference.

`metric` says what a metric is.
"""
