"""Seeded stories of failing swarms: the product's own machines, in virtual time."""
