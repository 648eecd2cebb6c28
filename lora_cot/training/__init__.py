"""Training: QLoRA through TRL, with losses by stage."""
