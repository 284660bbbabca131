"""Made-up pictures whose content is known: scenes of shapes, printed words, questions about both.

The demo learns from them and is examined with them, and anybody's model can be: `items` holds the
questions of the examination.
"""
