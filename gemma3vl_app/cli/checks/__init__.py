"""What `gemma3vl doctor` looks at: small functions from facts to `Check` values."""
