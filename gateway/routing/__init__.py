"""Which replica should serve a call: filters, then weighted scorers, then a ranking."""
