"""How long a remote server may take, and how often it is asked again."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class RemoteLimits:
    """Times in seconds.

    `connect_sec` to be let in; `silence_sec` without a byte, also before the first; `total_sec` for
    one answer. A request of which nothing has come back is tried `tries` times in all, within
    `retry_sec`; the first pause is about `pause_sec`, each next one twice as long. `at_once`
    requests may run; more are refused. With several servers each is looked at every `health_sec`.
    """

    connect_sec: float = 5.0
    silence_sec: float = 300.0
    total_sec: float = 3600.0
    probe_sec: float = 120.0
    tries: int = 4
    retry_sec: float = 30.0
    pause_sec: float = 0.5
    at_once: int = 512
    health_sec: float = 10.0
