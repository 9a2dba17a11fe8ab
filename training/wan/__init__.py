"""The Wan transformer with its adapters, codec and encoders."""
