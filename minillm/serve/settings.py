"""What a server is told at its start, and the limits of what it takes."""

from __future__ import annotations

from dataclasses import dataclass

MAX_MESSAGES = 10_000
MAX_TOOLS = 128
MAX_SCHEMA_BYTES, MAX_SCHEMA_DEPTH = 200_000, 40  # of one JSON schema
MAX_STOPS, MAX_STOP_CHARS = 4, 1000
MAX_BIASES = 1024
MAX_LOGPROBS = 20
MAX_PROMPTS = 256  # of one request, or texts to embed
MAX_SALT = 128  # characters
MAX_HEADERS = 65_536  # bytes of a request's head
MAX_DEPTH = 100  # of JSON in a body
MAX_VALUES = 2_000_000  # commas of a body: a list of 7 million ids would take seconds to look at
MAX_NESTED = 300_000  # lists and objects of a body: decoding more keeps the event loop for seconds, with Python's lock


@dataclass(frozen=True)
class Settings:
    """Seconds, bytes and counts. `hosts` are the names that requests may ask for, where nobody needs a key."""

    max_body: int = 16_000_000
    header_timeout: float = 10.0
    body_timeout: float = 60.0
    write_timeout: float = 60.0  # until a client takes what it is sent
    idle_timeout: float = 75.0  # between the requests of a connection
    keep_alive: float = 10.0  # between signs of life in a stream that has nothing new
    request_timeout: float = 3600.0
    drain_timeout: float = 30.0
    stuck_after: float = 120.0  # without a step while there is work: the server is ill
    max_connections: int = 1024
    max_batch: int = 32
    max_waiting: int = 1000
    metrics_prefix: str = "minillm"
    hosts: tuple[str, ...] = ()
    origins: tuple[str, ...] = ()
    fold_system: bool = False
