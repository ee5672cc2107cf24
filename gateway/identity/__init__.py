"""Who is calling: a credential becomes a principal that acts for a tenant."""
