"""Data: sources of samples, images opened safely, tokens with the prompt masked, batches."""
