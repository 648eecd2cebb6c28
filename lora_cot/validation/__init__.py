"""Checks of data before anything is trained on it: `lora-cot validate`, and a sample of the same at every start."""
