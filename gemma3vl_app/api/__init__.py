"""The HTTP API: what OpenAI's clients ask, answered by any backend; health and metrics with it.

A request's way: `routes` (paths) -> `serving` (admit, read, answer while the client is there)
-> `chat_completions` or `responses` (from fields to values and back) -> `choices` (the streams).
"""
