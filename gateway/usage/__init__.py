"""Usage on its way from calls to the database: kept in memory for a moment, written in batches, beside the path."""
