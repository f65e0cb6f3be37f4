"""What families with pictures and sounds read in the same way."""
