"""What a published checkpoint holds: its config, weights and tokenizer, each read and checked."""
