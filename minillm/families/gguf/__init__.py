"""What GGUF files say, in the words of config.json and of the families; and back."""
