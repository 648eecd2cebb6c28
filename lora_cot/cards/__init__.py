"""What is said of a model to whoever meets it: its card, its licence, and what can serve it."""
