"""The edge: HTTP in, HTTP out. Reads a call from bytes and renders replies and errors back to bytes."""
