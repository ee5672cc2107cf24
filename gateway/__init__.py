"""Pagegate's gateway process: one OpenAI-style endpoint in front of vLLM engines."""
