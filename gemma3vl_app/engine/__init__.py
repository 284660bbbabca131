"""The engine: prompts to tokens, with nothing computed twice. Start reading at `engine.py`.

One thread steps the model (`engine`); a sequence's keys and values (`kv`) are attended row by row
(`attention`, `model`); pictures go through the tower once (`vision`); finished prompts are kept as
snapshots (`prefix`); tokens are chosen (`sampling`, `grammar`) and become text (`answer_text`).
"""
