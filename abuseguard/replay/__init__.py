"""A request log, read back: what `abuseguard demo --trace` drives."""

from abuseguard.replay.log import LogError, LoggedRequest, LogReader, Message, read_log

__all__ = ["LogError", "LogReader", "LoggedRequest", "Message", "read_log"]
