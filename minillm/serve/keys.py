"""Who may ask, and how much: keys from a file, compared as SHA-256 digests, with limits for each.

    - name: anna
      key: sk-…                    # or sha256: the digest of it, in hex
      requests_per_minute: 60
      tokens_per_minute: 100000    # prompt and answer; max_tokens are reserved, what is not used comes back
      concurrency: 4

A limit is a bucket that fills evenly: `rate` per minute, and no more than a minute's worth in it. Limits that are not
given do not exist.
"""

from __future__ import annotations

import hashlib
import secrets
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any

import msgspec

from minillm.guard.files import read_text
from minillm.serve.errors import MAX_RETRY, Refusal, retry

Count = Annotated[int, msgspec.Meta(ge=1, le=2**40)]
Clock = Callable[[], float]


class Entry(msgspec.Struct, forbid_unknown_fields=True, kw_only=True):
    """A key as the file has it."""

    name: Annotated[str, msgspec.Meta(min_length=1, max_length=100)]
    key: Annotated[str, msgspec.Meta(min_length=8, max_length=500)] | None = None
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")] | None = None
    requests_per_minute: Count | None = None
    tokens_per_minute: Count | None = None
    concurrency: Count | None = None


class Bucket:
    """So much a minute. `left` may be below zero: what was used beyond a reservation is paid for later."""

    def __init__(self, rate: int, clock: Clock = time.monotonic):
        self.rate, self.left, self.clock = rate, float(rate), clock
        self.seen = clock()

    def fill(self) -> float:
        now = self.clock()
        self.left = min(float(self.rate), self.left + (now - self.seen) * self.rate / 60)
        self.seen = now
        return self.left

    def wait(self, count: float) -> float:
        """Seconds until `count` can be taken."""
        return max(0.0, count - self.fill()) * 60 / self.rate

    @property
    def reset(self) -> float:
        """Seconds until it is full."""
        return self.wait(self.rate)


class Key:
    """One who asks. Without limits where the file gives none."""

    def __init__(self, entry: Entry | None = None, clock: Clock = time.monotonic):
        self.name = entry.name if entry else ""
        self.requests = Bucket(entry.requests_per_minute, clock) if entry and entry.requests_per_minute else None
        self.tokens = Bucket(entry.tokens_per_minute, clock) if entry and entry.tokens_per_minute else None
        self.concurrency = entry.concurrency if entry else None
        self.running = 0

    def admit(self, tokens: int) -> Lease:
        """Take a place for a request that may need so many tokens. Raises Refusal 429, with when to come again."""
        if self.concurrency is not None and self.running >= self.concurrency:
            raise self._refused(f"{self.concurrency} requests at a time", 1.0)
        if self.requests and (wait := self.requests.wait(1)):
            raise self._refused(f"{self.requests.rate} requests a minute", wait)
        if self.tokens and tokens > self.tokens.rate:
            said = f"the request may need {tokens:,} tokens, the key has {self.tokens.rate:,} a minute; ask for fewer"
            raise Refusal(429, said, "rate_limit_exceeded", headers={"x-should-retry": "false"})
        if self.tokens and (wait := self.tokens.wait(tokens)):
            raise self._refused(f"{self.tokens.rate} tokens a minute", wait)
        if self.requests:
            self.requests.left -= 1
        if self.tokens:
            self.tokens.left -= tokens
        self.running += 1
        return Lease(self, tokens)

    def headers(self) -> dict[str, str]:
        """What is left, as OpenAI's headers say it."""
        found = {}
        for name, bucket in (("requests", self.requests), ("tokens", self.tokens)):
            if bucket:
                left, reset = max(0, int(bucket.fill())), f"{bucket.reset:.3f}s"
                pairs = {"limit": str(bucket.rate), "remaining": str(left), "reset": reset}
                found.update({f"x-ratelimit-{what}-{name}": value for what, value in pairs.items()})
        return found

    def _refused(self, limit: str, wait: float) -> Refusal:
        said = f"the key {self.name!r} has {limit}; come again in {min(wait, MAX_RETRY):.0f} seconds"
        return retry(429, said, wait, "rate_limit_exceeded", **self.headers())


class Lease:
    """A place that a request has. Ending it twice does nothing."""

    def __init__(self, key: Key, reserved: int):
        self.key, self.reserved, self.ended = key, reserved, False

    def end(self, used: int) -> None:
        if not self.ended:
            self.ended = True
            self.key.running -= 1
            if self.key.tokens:
                self.key.tokens.left += self.reserved - used


class Keys:
    """All that there are. Without any everybody may ask."""

    def __init__(self, entries: Sequence[Entry] = (), clock: Clock = time.monotonic):
        self.anybody = Key()
        self._digests: list[tuple[bytes, Key]] = []
        for entry in entries:
            if (entry.key is None) == (entry.sha256 is None):
                raise ValueError(f"keys: {entry.name!r} needs a key or its sha256, one of them")
            digest = _digest(entry.key) if entry.key is not None else bytes.fromhex(str(entry.sha256))
            if digest in [each for each, _ in self._digests]:
                raise ValueError(f"keys: {entry.name!r} has the key of another; give each its own")
            self._digests.append((digest, Key(entry, clock)))

    def __bool__(self) -> bool:
        return bool(self._digests)

    def holder(self, secret: str | None) -> Key:
        """Whose key this is. All are compared, whichever it is, so that time tells nothing. Raises Refusal 401."""
        if not self._digests:
            return self.anybody
        found, digest = None, _digest(secret or "")
        for each, key in self._digests:
            if secrets.compare_digest(each, digest):
                found = key
        if found is None or not secret:
            missing = "no API key; send it as 'Authorization: Bearer KEY' or 'x-api-key: KEY'"
            said = "the API key is not one of this server's" if secret else missing
            raise Refusal(401, said, "invalid_api_key", headers={"www-authenticate": "Bearer"})
        return found


def _digest(secret: str) -> bytes:
    return hashlib.sha256(secret.encode("utf-8", "surrogatepass")).digest()


def load(path: Path) -> Keys:
    """Keys of a YAML or JSON file. Raises ValueError that does not repeat what the file says."""
    try:
        entries: Any = msgspec.yaml.decode(read_text(path), type=list[Entry])
    except msgspec.ValidationError as error:
        raise ValueError(f"{path}: {error}") from None
    except msgspec.DecodeError:
        raise ValueError(f"{path}: no YAML; expected a list of entries with name and key") from None
    if not entries:
        raise ValueError(f"{path}: no keys in it; leave --api-keys out for a server that is open to all")
    return Keys(entries)
