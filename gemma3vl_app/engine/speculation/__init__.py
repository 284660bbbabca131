"""Guessing the next tokens, so that one pass of the model can check several at once.

`speculation` is what the engine asks; `lookup` and `draft` guess, `policy` says when it pays. A
guess never decides anything: tokens are chosen from the model's own logits.
"""
