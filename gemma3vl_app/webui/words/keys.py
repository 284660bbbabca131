"""What there is to say; every language has a word for each."""

from __future__ import annotations

from typing import TypedDict


class Words(TypedDict):
    """All that stands on buttons and beside fields."""

    conversation: str
    conversations: str
    user: str
    assistant: str
    placeholder: str
    welcome: str
    send: str
    stop: str
    cancel: str
    copy: str
    edit: str
    again: str
    undo: str
    versions: str
    earlier: str
    later: str
    new: str
    search: str
    nothing_found: str
    rename: str
    pin: str
    unpin: str
    delete: str
    really_delete: str
    export: str
    bring_in: str
    settings: str
    system: str
    temperature: str
    top_k: str
    top_p: str
    seed: str
    answer_tokens: str
    crops: str
    confidence: str
    pictures: str
    remove: str
    move_left: str
    move_right: str
    webcam: str
    tokens: str
    context: str
    squashed: str
    chat: str
    models: str
    compare: str
    unload: str
    go_on: str
    attach: str
    take: str
    close: str
    no_camera: str
    not_taken: str
    more: str
    presets: str
    preset_short: str
    preset_detailed: str
    preset_read: str
    preset_compare: str
    preset_json: str
    schema: str
    crops_off: str
    crops_on: str
    crops_auto: str
    precision: str
    use: str
    in_use: str
    loaded: str
    fits: str
    does_not_fit: str
    memory: str
    why: str
    other_source: str
    part_weights: str
    part_kv_global: str
    part_kv_sliding: str
    part_vision: str
    part_logits: str
    part_reserve: str
    model: str
    question: str
    adapter: str
    add_adapter: str
    add: str
    no_adapter: str
    preset_question: str
    preset_general: str
