"""One question about every picture of a folder: which pictures, asking them, keeping the answers.

`batch` brings the parts together; docs/batch.md tells people how to use it.
"""
