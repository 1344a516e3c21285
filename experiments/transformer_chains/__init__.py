"""`bert` and `gpt`: small transformers trained from scratch, fine-tuned with all parameters and with adapters."""
