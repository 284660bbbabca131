"""Evaluation of models on suites of questions whose answers are known.

`suites` is the table of what can be asked, `run.evaluate` asks and scores, `report`, `harness`
and `lmms_harness` write down what came out. docs/evaluation.md tells people how to use it.
"""
