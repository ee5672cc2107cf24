"""What a call leaves behind: spans, metrics, one log line."""
