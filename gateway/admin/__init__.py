"""Administration: keys, tenants, what was used, and who changed what; behind a listener and credentials of its own."""
