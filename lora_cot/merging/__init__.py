"""Merging an adapter into its base, and proving that the result is the adapter's model."""
