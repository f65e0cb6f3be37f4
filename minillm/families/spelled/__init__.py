"""What published files say in words of their own, where transformers has others that families read."""
